import Backbones
import PEFT
import Torch

/// What the forward passes of an optimiser step come to.
package struct StepSums: Sendable, Equatable {
    /// The sum of the losses of the passes that were computed, in the objective's unit: of supervised tokens, or of rows.
    package var loss = 0.0
    /// The tokens of those passes.
    package var tokens = 0
    /// The same with what fills rows up.
    package var computedTokens = 0
    /// The supervised tokens, or the rows, of the whole step, whoever computes them: what ``loss`` is divided by.
    package var supervised = 0
    /// What those passes add to the step's measures, in the order of ``LossFunction/measures``.
    package var measures: [Double] = []

    /// Nothing yet.
    package init() {}

    /// The share of the computed tokens that only fill rows up.
    package var paddingShare: Double { 1 - Double(tokens) / Double(max(computedTokens, tokens, 1)) }
}

/// Computes the gradient of an optimiser step.
///
/// The one place where losses are normalised: the gradient is that of the sums of a step's losses over what the whole
/// step counts, such as its supervised tokens, so it does not depend on how rows are divided among passes or processes.
package struct GradientStep {
    /// What is minimised.
    package let lossFunction: LossFunction
    private let model: LanguageModel
    private let data: Dataset
    private let layout: BatchLayout
    private let seed: Seed
    private let references: ReferenceCache?

    /// Prepares the steps of a run.
    ///
    /// - Parameters:
    ///   - model: The model with what is attached to it.
    ///   - data: The rows.
    ///   - layout: How rows share forward passes.
    ///   - seed: The run's seed, which dropout masks depend on.
    ///   - lossFunction: What is minimised.
    package init(
        _ model: LanguageModel, _ data: Dataset, layout: BatchLayout, seed: Seed,
        lossFunction: LossFunction = LossFunction()
    ) {
        self.model = model
        self.data = data
        self.layout = layout
        self.seed = seed
        self.lossFunction = lossFunction
        let keeps = (lossFunction.objective as? PreferenceObjective)?.keepsReferences ?? false
        references = keeps ? ReferenceCache() : nil
    }

    /// Adds the gradient of a step to the trainable tensors.
    ///
    /// - Parameters:
    ///   - plan: The step.
    ///   - share: The passes to compute here; nil: all. The gradients of all shares add up to that of the step.
    /// - Returns: What the passes come to.
    /// - Throws: ``NonFiniteLoss`` when a loss is no number; `TorchError` when memory is short.
    package func addGradients(of plan: StepPlan, share: [MicroBatch]? = nil) throws -> StepSums {
        let totals = StepTotals(plan.rows, of: data)
        var sums = StepSums()
        sums.supervised = Int(totals[type(of: lossFunction.objective).unit])
        sums.measures = lossFunction.measures.map { _ in 0 }
        let logits = lossFunction.needsOtherLogits ? try classLogits(of: plan, totals) : nil
        for pass in share ?? plan.microBatches {
            let forward = try forwardPass(plan, pass, totals)
            forward.otherLogits = try logits.flatMap { try Self.rows(of: $0, outside: pass) }
            let (loss, sum, measures) = try lossFunction.loss(of: forward)
            guard sum.isFinite else { throw NonFiniteLoss(value: sum, pass: pass) }
            sums.loss += sum
            sums.tokens += forward.batch.tokens
            sums.computedTokens += forward.batch.computedTokens
            sums.measures = zip(sums.measures, measures).map { $0 + $1 }
            try loss.backward()
        }
        return sums
    }

    /// The sum of the losses of a pass, without gradients.
    ///
    /// - Parameter observer: Sees what each module computes.
    func lossSum(
        of plan: StepPlan, _ pass: MicroBatch, observer: ((String, Tensor) throws -> Void)? = nil
    ) throws -> Double {
        try withoutGrad {
            let forward = try forwardPass(plan, pass, StepTotals(plan.rows, of: data), observer: observer)
            return try LossFunction(lossFunction.objective).loss(of: forward).sum
        }
    }

    /// The loss of training rows for methods that judge by it, without gradients and without dropout.
    ///
    /// - Parameter epochRows: The rows of each pass over the data, in an order of their own.
    func probe(_ epochRows: EpochRows) -> LossProbe {
        LossProbe { rows, round in
            var order = DataOrder(epochRows, rowsPerStep: rows)
            let plan = order.plan(step: round, layout: layout) { data.length(at: $0) }
            let totals = StepTotals(plan.rows, of: data)
            let sum = try withoutGrad {
                try plan.microBatches.reduce(0) { sum, pass in
                    let forward = try forwardPass(plan, pass, totals, drops: false)
                    return try sum + LossFunction(lossFunction.objective).loss(of: forward).sum
                }
            }
            return sum / max(Double(totals[type(of: lossFunction.objective).unit]), 1)
        }
    }

    /// A micro-batch; its dropout masks have the names of step and place.
    private func forwardPass(
        _ plan: StepPlan, _ pass: MicroBatch, _ totals: StepTotals, drops: Bool = true,
        observer: ((String, Tensor) throws -> Void)? = nil
    ) throws -> ForwardPass {
        var context = Context()
        if drops { context.dropout = DropoutSource(seed: seed, pass: "\(plan.step)/\(pass.place)") }
        context.observer = observer
        let forward = try ForwardPass(
            pass.rows.map { data[$0] }, model: model, isPacked: layout.isPacked, totals: totals, context: context)
        forward.references = references
        return forward
    }

    /// The classes' logits of all rows of a step by their places, without gradients.
    private func classLogits(of plan: StepPlan, _ totals: StepTotals) throws -> [Int: Tensor] {
        guard plan.microBatches.count > 1 else { return [:] }
        var logits: [Int: Tensor] = [:]
        try withoutGrad {
            for pass in plan.microBatches {
                let found = try forwardPass(plan, pass, totals).classLogits()
                for (index, place) in pass.places.enumerated() {
                    logits[place] = try found.narrowed(0, start: index, length: 1)
                }
            }
        }
        return logits
    }

    /// The logits of the rows that are not in a pass; nil where there are none.
    private static func rows(of logits: [Int: Tensor], outside pass: MicroBatch) throws -> Tensor? {
        let others = logits.filter { !pass.places.contains($0.key) }.sorted { $0.key < $1.key }.map(\.value)
        return others.isEmpty ? nil : try Tensor.concatenate(others)
    }
}

/// A forward pass has a loss that is no number.
struct NonFiniteLoss: Error {
    let value: Double
    let pass: MicroBatch
}
