import Backbones
import Formats
import PEFT
import Torch

/// Next-token cross-entropy at the supervised positions of a batch.
///
/// Only the hidden states of supervised positions reach the head. With a frozen head the logits exist for a few
/// hundred tokens at a time, and the gradient with respect to the hidden states is made in the forward pass, so that no
/// logits are kept.
public struct SupervisedObjective: Sendable {
    /// The logits of one chunk in bytes, as far as one token's logits are not larger.
    private let chunkBytes: Int

    /// How large the logits of one chunk are by default: 48 MiB.
    public static let defaultChunkBytes = 48 << 20

    /// Makes the objective.
    ///
    /// - Parameter chunkBytes: How large the logits of one chunk may be.
    public init(chunkBytes: Int = SupervisedObjective.defaultChunkBytes) {
        self.chunkBytes = chunkBytes
    }

    /// The loss of every supervised token.
    ///
    /// - Parameters:
    ///   - batch: The rows.
    ///   - backbone: The model with what is attached to it.
    ///   - context: The forward pass; the rows of a packed batch are put into it.
    /// - Returns: fp32 `[n]` in nats, in the order of ``Batch/positions``.
    /// - Throws: `TorchError` when memory is short; what the adapter throws.
    public func losses(_ batch: Batch, _ backbone: any Backbone, _ context: Context = Context()) throws -> Tensor {
        let states = try batch.states(backbone, context).gathered(batch.positions)
        return try losses(of: states, targets: batch.targets, backbone, context)
    }

    /// The loss of every supervised token, from the states before it.
    ///
    /// - Parameters:
    ///   - states: `[n, hidden]`.
    ///   - targets: int64 `[n]`.
    ///   - backbone: The model with what is attached to it.
    ///   - context: The forward pass that the states are of.
    /// - Returns: fp32 `[n]` in nats.
    /// - Throws: `TorchError` when memory is short.
    func losses(of states: Tensor, targets: Tensor, _ backbone: any Backbone, _ context: Context) throws -> Tensor {
        let head = backbone.head
        guard !head.isChanged(in: context) else { return try Self.crossEntropy(head(states, context), targets) }
        let weight = try head.weight.values(dtype: head.weight.frozen.dtype)
        return try losses(of: states, targets: targets, weight: weight, bias: head.bias?.frozen)
    }

    /// The plain form, for heads that are trained themselves: `[n, vocabulary]` to fp32 `[n]`.
    package static func crossEntropy(_ logits: Tensor, _ targets: Tensor) throws -> Tensor {
        let noReduction = 0
        return try callTensor(
            "aten::cross_entropy_loss", logits.to(dtype: .float32), targets, Argument.none, noReduction)
    }

    /// How many tokens' logits, of states `[n, hidden]` under a head, are there at a time; at least one.
    package func tokensOfChunk(of states: Tensor, vocabulary: Int) -> Int {
        // The portable form has them in fp32 in any case.
        let width = runsOwnKernels(states) ? states.dtype.byteCount : DType.float32.byteCount
        return max(1, chunkBytes / (width * max(vocabulary, 1)))
    }

    /// The losses of hidden states `[n, hidden]` under a frozen head, chunk by chunk.
    private func losses(of states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor?) throws -> Tensor {
        let needsGradient = isGradEnabled && states.requiresGrad
        let tokens = states.size(0)
        let chunk = tokensOfChunk(of: states, vocabulary: weight.size(0))
        return try withCustomGradient("cross_entropy_of_frozen_head", inputs: [states]) {
            let losses = try Tensor.empty([tokens], device: states.device)
            // A token's loss depends on its own state alone, so its gradient can be made now and scaled later.
            let gradient = needsGradient ? try states.zerosLike() : nil
            for start in stride(from: 0, to: tokens, by: chunk) {
                let length = min(chunk, tokens - start)
                func part(_ tensor: Tensor) throws -> Tensor { try tensor.narrowed(0, start: start, length: length) }
                if runsOwnKernels(states) {
                    let logits = try unrecordedProduct(part(states), weight, bias)
                    let found = try callTensor("graft::cross_entropy_", logits, part(targets), needsGradient)
                    try part(losses).copy(from: found)
                    if let gradient { try part(gradient).copy(from: unrecordedProduct(logits, weight.transposed())) }
                    continue
                }
                let logits = try linear(part(states), weight, bias).to(dtype: .float32)
                let targets = try part(targets).unsqueezed(1)
                let logSums = try callTensor("aten::logsumexp", logits, [-1], true)
                try part(losses).copy(from: (logSums - callTensor("aten::gather", logits, 1, targets)).squeezed(1))
                guard let gradient else { continue }
                // d loss / d logits = softmax - one-hot, worked out in the memory of the logits.
                try call("aten::sub_.Tensor", logits, logSums)
                try call("aten::exp_", logits)
                try call("aten::scatter_add_", logits, 1, targets, Tensor.full([length, 1], -1, device: logits.device))
                try part(gradient).copy(from: logits.to(dtype: weight.dtype).matmul(weight))
            }
            return (
                losses,
                { incoming in
                    guard let gradient else { return [nil] }
                    return [try gradient * incoming.unsqueezed(1).to(dtype: gradient.dtype)]
                }
            )
        }
    }
}

extension SupervisedObjective: Objective {
    package static let name = "sft"
    package static let summary = "Write the rows: next-token cross-entropy of their supervised tokens."
    package static let rows = RowKind.text
    package static let unit = LossUnit.tokens
    package static let fields: [Field<SupervisedObjective>] = []

    package init() { self.init(chunkBytes: Self.defaultChunkBytes) }

    package func results(of pass: ForwardPass) throws -> ObjectiveResults {
        let losses = try pass.tokenLosses()
        return ObjectiveResults(terms: [try LossTerm(losses.sum(), per: .tokens)]) {
            let values = try losses.values(as: Float.self)
            var start = 0
            return zip(pass.examples, pass.batch.supervisedCounts).map { example, count in
                let sum = values[start..<(start + count)].reduce(0.0) { $0 + Double($1) }
                start += count
                return Evaluation.Row(loss: sum / Double(max(count, 1)), tokens: count, line: example.line)
            }
        }
    }

    package func measures(of rows: [Evaluation.Row]) -> KeyedList<Double> { [:] }
}

extension Linear {
    /// Whether the layer computes something else than the pretrained one in a forward pass.
    func isChanged(in context: Context) -> Bool {
        context.usesAdapters && (adapter != nil || parameters.contains { $0.replacement != nil })
    }
}
