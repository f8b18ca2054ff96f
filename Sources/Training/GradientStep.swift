import Backbones
import PEFT
import Torch

/// What the forward passes of an optimiser step come to.
package struct StepSums: Sendable, Equatable {
    /// The sum of the losses of the supervised tokens of the passes that were computed, in nats.
    package var loss = 0.0
    /// The tokens of those passes.
    package var tokens = 0
    /// The same with what fills rows up.
    package var computedTokens = 0
    /// The supervised tokens of the whole step, whoever computes them: what ``loss`` is divided by in the gradient.
    package var supervised = 0

    /// The share of the computed tokens that only fill rows up.
    package var paddingShare: Double { 1 - Double(tokens) / Double(max(computedTokens, tokens, 1)) }
}

/// Computes the gradient of an optimiser step.
///
/// The one place where losses are normalised: the gradient is that of the sum of all tokens' losses over the number of
/// supervised tokens of the whole step, so it does not depend on how rows are divided among passes or processes.
package struct GradientStep {
    private let model: LanguageModel
    private let data: Dataset
    private let layout: BatchLayout
    private let seed: Seed
    private let objective = SupervisedObjective()

    /// Prepares the steps of a run.
    ///
    /// - Parameters:
    ///   - model: The model with what is attached to it.
    ///   - data: The rows.
    ///   - layout: How rows share forward passes.
    ///   - seed: The run's seed, which dropout masks depend on.
    package init(_ model: LanguageModel, _ data: Dataset, layout: BatchLayout, seed: Seed) {
        self.model = model
        self.data = data
        self.layout = layout
        self.seed = seed
    }

    /// Adds the gradient of a step to the trainable tensors.
    ///
    /// - Parameters:
    ///   - plan: The step.
    ///   - share: The passes to compute here; nil: all. The gradients of all shares add up to that of the step.
    /// - Returns: What the passes come to.
    /// - Throws: ``NonFiniteLoss`` when a loss is no number; `TorchError` when memory is short.
    package func addGradients(of plan: StepPlan, share: [MicroBatch]? = nil) throws -> StepSums {
        var sums = StepSums()
        sums.supervised = plan.rows.reduce(0) { $0 + data.supervisedCount(at: $1) }
        for pass in share ?? plan.microBatches {
            let batch = try batch(pass.rows)
            let loss = try objective.losses(batch, model.backbone, context(plan, pass)).sum()
            let value: Double = try loss.item()
            guard value.isFinite else { throw NonFiniteLoss(value: value, pass: pass) }
            sums.loss += value
            sums.tokens += batch.tokens
            sums.computedTokens += batch.computedTokens
            try (loss / Double(sums.supervised)).backward()
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
            var context = context(plan, pass)
            context.observer = observer
            return try objective.losses(batch(pass.rows), model.backbone, context).sum().item()
        }
    }

    /// The loss of training rows for methods that judge by it, without gradients and without dropout.
    ///
    /// - Parameter epochRows: The rows of each pass over the data, in an order of their own.
    func probe(_ epochRows: EpochRows) -> LossProbe {
        LossProbe { rows, round in
            var order = DataOrder(epochRows, rowsPerStep: rows)
            let plan = order.plan(step: round, layout: layout) { data.length(at: $0) }
            let supervised = plan.rows.reduce(0) { $0 + data.supervisedCount(at: $1) }
            return try withoutGrad {
                try plan.microBatches.reduce(0) { sum, pass in
                    sum + (try objective.losses(batch(pass.rows), model.backbone, Context()).sum().item(as: Double.self))
                } / Double(max(supervised, 1))
            }
        }
    }

    /// Rows as one forward pass.
    private func batch(_ rows: [Int]) throws -> Batch {
        try model.batch(rows.map { data[$0] }, isPacked: layout.isPacked)
    }

    /// The forward pass of a micro-batch; its dropout masks have the names of step and place.
    private func context(_ plan: StepPlan, _ pass: MicroBatch) -> Context {
        Context(dropout: DropoutSource(seed: seed, pass: "\(plan.step)/\(pass.place)"))
    }
}

/// A forward pass has a loss that is no number.
struct NonFiniteLoss: Error {
    let value: Double
    let pass: MicroBatch
}
