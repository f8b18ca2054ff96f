import Torch

/// A language model with a head that tells texts apart in the place of its projection onto the vocabulary: the layer
/// `score` of transformers' `LlamaForSequenceClassification`, without a bias.
///
/// The head reads the last token of a text. It is fp32, whatever the model's dtype.
public final class SequenceClassifier: Backbone {
    /// The language model, which the classifier shares with whoever else has it.
    public let base: any Backbone
    /// The layer `score`, `[labels, hidden]`.
    public let head: Linear
    /// The names of the labels by their numbers.
    public let labels: [String]

    /// Puts a head on a model, with normal values of the size that transformers gives them.
    ///
    /// - Parameters:
    ///   - base: The language model.
    ///   - labels: The names of the labels, at least one.
    ///   - seed: The head's initial values come from a stream below it.
    /// - Throws: `TorchError` when memory is short.
    public init(_ base: any Backbone, labels: [String], seed: Seed) throws {
        self.base = base
        self.labels = labels
        var stream = seed.stream("score.weight")
        let values = try Tensor.normal(
            [labels.count, base.configuration.hiddenSize], standardDeviation: 0.02, from: &stream
        ).to(device: base.device)
        head = Linear(path: "score", weight: values, role: .head)
    }

    /// What the language model is.
    public var configuration: LlamaConfiguration { base.configuration }
    /// The dtype that activations have.
    public var dtype: DType { base.dtype }
    /// Where the model lives.
    public var device: Device { base.device }
    /// The language model's layers without its head, then the classifier's.
    public var linears: [Linear] { base.linears.filter { $0 !== base.head } + [head] }
    /// The language model's parameters without those of its head, then the classifier's.
    public var parameters: [Parameter] {
        base.parameters.filter { parameter in !base.head.parameters.contains { $0 === parameter } } + head.parameters
    }
    /// Attention and MLP of every block.
    public var sublayers: [Sublayer] { base.sublayers }
    /// The keys and values of every attention layer.
    public var attentionStates: [AttentionState] { base.attentionStates }
    /// The table of token vectors.
    public var embedding: TokenEmbedding { base.embedding }
    /// The blocks.
    public var blockStack: BlockStack { base.blockStack }

    /// The language model's final hidden states.
    ///
    /// - Throws: As the language model's.
    public func hiddenStates(_ ids: Tensor, _ context: Context) throws -> Tensor {
        try base.hiddenStates(ids, context)
    }
}
