import Torch

/// A pretrained causal language model with its attach points.
///
/// A backbone belongs to one thread at a time. It knows nothing of adaptation methods: it only says what it is made
/// of, and asks the slots of its layers.
public protocol Backbone: AnyObject {
    /// What the model is.
    var configuration: LlamaConfiguration { get }
    /// The dtype that activations have.
    var dtype: DType { get }
    /// Where the model lives.
    var device: Device { get }
    /// Every linear layer, in the order of the checkpoint's modules.
    var linears: [Linear] { get }
    /// Every parameter, in the same order; a tied output head is one of its own over the same tensor.
    var parameters: [Parameter] { get }
    /// The projection onto the vocabulary, the last of `linears`.
    var head: Linear { get }
    /// Attention and MLP of every block, in order.
    var sublayers: [Sublayer] { get }
    /// The keys and values of every attention layer, in order.
    var attentionStates: [AttentionState] { get }
    /// The table of token vectors.
    var embedding: TokenEmbedding { get }
    /// The blocks.
    var blockStack: BlockStack { get }

    /// The final hidden states of token ids.
    ///
    /// - Parameters:
    ///   - ids: int64 `[batch, time]`.
    ///   - context: Positions, mask, cache, dropout.
    /// - Returns: `[batch, time, hidden]`, normalised.
    /// - Throws: `ModelError` and `TorchError` on sizes that do not fit.
    func hiddenStates(_ ids: Tensor, _ context: Context) throws -> Tensor
}

extension Backbone {
    /// The logits of token ids, `[batch, time]` to `[batch, time, vocabulary]`.
    ///
    /// - Throws: `ModelError` and `TorchError` on sizes that do not fit.
    public func logits(_ ids: Tensor, _ context: Context = Context()) throws -> Tensor {
        try head(hiddenStates(ids, context), context)
    }

    /// The number of values in the checkpoint; a tied head counts once.
    public var parameterCount: Int {
        parameters.filter { !(configuration.tieWordEmbeddings && $0 === head.weight) }
            .reduce(0) { $0 + $1.frozen.count }
    }

    /// How weights are held: `blocks`, `nf4` or `int8` where some are packed, else the dtype.
    public var heldWeights: String {
        linears.lazy.compactMap { $0.weight.packed?.form }.first ?? "\(dtype)"
    }

    /// How the matrices of the blocks are held.
    public var weightForm: WeightForm {
        linears.lazy.compactMap { $0.weight.packed.flatMap(WeightForm.init) }.first ?? .plain
    }

    /// The bytes that all weights take as they are held; a tied head counts once.
    public var heldBytes: Int {
        parameters.filter { !(configuration.tieWordEmbeddings && $0 === head.weight) }
            .reduce(0) { $0 + $1.storage.byteCount }
    }

    /// A cache for `capacity` tokens.
    public func makeCache(capacity: Int) -> KeyValueCache {
        KeyValueCache(layers: configuration.numHiddenLayers, capacity: capacity)
    }
}
