import Backbones
import Torch

/// The rows of one forward pass, what the model makes of them, and what the pretrained model makes of them.
///
/// Each is computed when it is first asked for, and once: an objective and its regularisers share the pass.
package final class ForwardPass {
    /// The rows.
    package let examples: [Example]
    /// Their sequences of tokens, a preference's chosen answer before its rejected one.
    package let batch: Batch
    /// The model with what is attached to it.
    package let model: LanguageModel
    /// What the sums of the step are divided by.
    package let totals: StepTotals
    /// The classes' logits of the step's rows in other passes, `[rows, labels]`, where a regulariser asks for them.
    package var otherLogits: Tensor?
    /// Answers of the pretrained model that are kept over a run; nil: they are worked out anew.
    package var references: ReferenceCache?
    private var context: Context
    private var heldStates: Tensor?
    private var heldLogits: Tensor?
    private var heldReference: ForwardPass?
    private var wanted: Set<String> = []
    private var taken: [String: Tensor] = [:]

    /// Lays out a pass.
    ///
    /// - Parameters:
    ///   - examples: The rows.
    ///   - model: The model with what is attached to it.
    ///   - isPacked: Whether the sequences lie in one.
    ///   - totals: What the sums of the step are divided by; nil: the pass is the step.
    ///   - context: Where dropout masks come from, and who looks on.
    /// - Throws: `TorchError` when memory is short.
    package init(
        _ examples: [Example], model: LanguageModel, isPacked: Bool = false, totals: StepTotals? = nil,
        context: Context = Context()
    ) throws {
        self.examples = examples
        self.model = model
        self.context = context
        self.totals = totals ?? StepTotals(examples)
        batch = try model.batch(examples.flatMap(\.sequences), isPacked: isPacked)
    }

    private init(referenceOf pass: ForwardPass) {
        examples = pass.examples
        batch = pass.batch
        model = pass.model
        totals = pass.totals
        context = Context(usesAdapters: false)
    }

    /// Keeps the outputs of some modules, with their gradients; to be said before anything is computed.
    package func tap(_ modules: some Sequence<String>) { wanted.formUnion(modules) }

    /// What a tapped module has computed; nil where the pass did not come by it.
    package func output(of module: String) throws -> Tensor? {
        _ = try states()
        return taken[module]
    }

    /// The final hidden states, `[rows * time, hidden]`.
    package func states() throws -> Tensor {
        if let heldStates { return heldStates }
        var context = context
        if !wanted.isEmpty {
            let others = context.observer
            context.observer = { [weak self] module, output in
                try others?(module, output)
                // A block that is computed again in the backward pass shows its modules again.
                if let self, wanted.contains(module), taken[module] == nil { taken[module] = output }
            }
        }
        let states: Tensor = try withGradEnabled(isGradEnabled && context.usesAdapters) {
            try batch.states(model.backbone, context)
        }
        heldStates = states
        return states
    }

    /// The states that the supervised tokens are predicted from, `[n, hidden]`.
    package func supervisedStates() throws -> Tensor { try states().gathered(batch.positions) }

    /// The loss of every supervised token, fp32 `[n]` in nats.
    package func tokenLosses() throws -> Tensor {
        try withGradEnabled(isGradEnabled && context.usesAdapters) {
            try SupervisedObjective().losses(
                of: supervisedStates(), targets: batch.targets, model.backbone, context)
        }
    }

    /// The log-probability of the supervised tokens of each sequence, fp64 `[sequences]`.
    package func logProbabilities() throws -> Tensor {
        let losses = try tokenLosses().to(dtype: .float64)
        return try Tensor.stack(
            losses.split(batch.supervisedCounts, dimension: 0).map { try $0.sum().negated() })
    }

    /// The logits of rows of hidden states, fp32 `[n, vocabulary or labels]`.
    package func logits(of states: Tensor) throws -> Tensor {
        let head = model.backbone.head
        return try head(states.to(dtype: head.weight.frozen.dtype), context).to(dtype: .float32)
    }

    /// The logits of the classes at the last token of each row, fp32 `[rows, labels]`.
    package func classLogits() throws -> Tensor {
        if let heldLogits { return heldLogits }
        let logits: Tensor = try withGradEnabled(isGradEnabled && context.usesAdapters) {
            try self.logits(of: states().gathered(batch.ends()))
        }
        heldLogits = logits
        return logits
    }

    /// Whether gradients flow into the output head.
    package var hasTrainedHead: Bool { model.backbone.head.isChanged(in: context) }

    /// The same rows through the pretrained model: the same weights without the adapter, dropout or gradients.
    package func reference() -> ForwardPass {
        if let heldReference { return heldReference }
        let pass = ForwardPass(referenceOf: self)
        heldReference = pass
        return pass
    }

    /// ``logProbabilities()`` of the pretrained model, from what is kept where something is.
    package func referenceLogProbabilities() throws -> Tensor {
        guard let references else { return try reference().logProbabilities() }
        return try references.logProbabilities(of: examples, model)
    }
}

/// The log-probabilities that the pretrained model gives to the answers of rows, kept over a run.
///
/// Each row is worked out alone, so what is kept does not depend on the rows beside which it was first met.
package final class ReferenceCache {
    private struct Place: Hashable {
        let source: Int
        let line: Int
    }

    private var kept: [Place: [Double]] = [:]

    /// Begins without any.
    package init() {}

    /// fp64 `[sequences]`.
    func logProbabilities(of examples: [Example], _ model: LanguageModel) throws -> Tensor {
        let values = try examples.flatMap { example -> [Double] in
            let place = Place(source: example.source, line: example.line)
            if let known = kept[place] { return known }
            let found: [Double] = try ForwardPass([example], model: model).reference().logProbabilities().values()
            kept[place] = found
            return found
        }
        return try Tensor(values).to(device: model.backbone.device)
    }
}
