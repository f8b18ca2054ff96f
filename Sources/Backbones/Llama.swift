import Torch

/// The Llama family: pre-norm blocks of rotary grouped-query attention and a gated MLP.
///
/// One class serves SmolLM2, Llama 2 and 3, Mistral (sliding window), Qwen2 (biases on q, k, v) and Qwen3 (norms on q
/// and k): they differ by configuration and by which tensors the checkpoint has.
public final class Llama: Backbone {
    /// What the model is.
    public let configuration: LlamaConfiguration
    /// The dtype of weights and activations.
    public let dtype: DType
    /// Where the model lives.
    public let device: Device
    /// The projection onto the vocabulary.
    public let head: Linear
    /// The table of token vectors.
    public let embedding: TokenEmbedding
    /// The blocks.
    public let blockStack: BlockStack
    /// Attention and MLP of every block in turn.
    public let sublayers: [Sublayer]
    /// The keys and values of every block.
    public let attentionStates: [AttentionState]
    /// All places but layers and parameters; every pass asks them.
    private let slots: [any AttachPoint]
    private let blocks: [LlamaBlock]
    private let norm: RMSNorm
    /// The way of one text through a packed model.
    private lazy var packedDecoder = PackedDecoder(
        configuration, embedding: embedding.table, blocks: blocks.map(\.parts), norm: norm.weight)

    /// Builds the model over the tensors of a checkpoint.
    ///
    /// - Parameters:
    ///   - configuration: The sizes.
    ///   - weights: The checkpoint, with Hugging Face's names.
    /// - Throws: `ModelError` when a tensor is missing or has another shape than the configuration says.
    public init(_ configuration: LlamaConfiguration, weights: LlamaWeights) throws {
        self.configuration = configuration
        dtype = weights.dtype
        device = weights.device
        let vocabulary = [configuration.vocabSize, configuration.hiddenSize]
        let embedTokens = try weights.matrix("model.embed_tokens.weight", vocabulary)
        embedding = TokenEmbedding(table: embedTokens)
        // No room is taken in advance: the count is only believed layer by layer.
        var blocks: [LlamaBlock] = []
        for layer in 0..<configuration.numHiddenLayers {
            blocks.append(try LlamaBlock(configuration, layer: layer, weights))
        }
        self.blocks = blocks
        blockStack = BlockStack(path: "model.layers", blocks: blocks)
        sublayers = blocks.flatMap { [$0.attentionSublayer, $0.mlpSublayer] }
        attentionStates = blocks.map(\.attentionState)
        slots = sublayers + attentionStates + [embedding, blockStack]
        norm = try weights.norm("model.norm", [configuration.hiddenSize], epsilon: configuration.rmsNormEps)
        let projection =
            try configuration.tieWordEmbeddings
            ? embedTokens.sharing(path: "lm_head.weight") : weights.matrix("lm_head.weight", vocabulary)
        head = Linear(path: "lm_head", weight: projection, role: .head)
        try weights.requireEverythingUsed(tied: configuration.tieWordEmbeddings)
    }

    /// Every linear layer: block by block, then the head.
    public var linears: [Linear] { blocks.flatMap(\.linears) + [head] }

    /// Every parameter: the embedding, block by block, the final norm, the head.
    public var parameters: [Parameter] {
        [embedding.table] + blocks.flatMap(\.parameters) + [norm.weight] + head.parameters
    }

    /// The final hidden states of token ids, see ``Backbone/hiddenStates(_:_:)``.
    ///
    /// - Throws: `ModelError` when the ids are no batch, packed rows do not fit them, or the cache is full; `TorchError`
    ///   when an id is unknown.
    public func hiddenStates(_ ids: Tensor, _ context: Context) throws -> Tensor {
        guard context.usesAdapters else { return try parameters.pretrained { try states(of: ids, context) } }
        return try states(of: ids, context)
    }

    private func states(of ids: Tensor, _ context: Context) throws -> Tensor {
        let prefix = attentionStates.map { $0.length(in: context) }.max() ?? 0
        let virtualTokens = context.usesAdapters ? embedding.adapter?.virtualTokens(in: context) ?? 0 : 0
        if !hasOccupiedSlots(context), let states = try packedDecoder?.states(after: ids, context) { return states }
        guard ids.rank == 2 else { throw ModelError("token ids have shape \(ids.shape); expected [batch, time]") }
        try context.segments?.requireFit(ids, context)
        let layout = try TokenLayout(
            ids, context, virtualTokens: virtualTokens, prefix: prefix, device: device)
        let rotary = try configuration.rotary.table(
            positions: layout.positions, length: layout.length, dtype: dtype)
        let pass = BlockPass(context: context, rotary: rotary, masks: layout.masks)
        let states = try run(embedding(ids, layout, context), pass)
        context.cache?.advance(by: ids.size(1))
        return try layout.withoutVirtualTokens(states)
    }

    /// Runs the blocks and the final norm.
    private func run(_ embedded: Tensor, _ pass: BlockPass) throws -> Tensor {
        if let execution = blockStack.execution, pass.context.usesAdapters {
            return try norm(execution.run(blocks, embedded, pass), pass.context)
        }
        var states = embedded
        // What a sublayer computes is added to the stream by the norm that follows.
        var delta: Tensor?
        for block in blocks { (states, delta) = try block(states, adding: delta, pass) }
        return try norm(states, adding: delta, pass.context).normed
    }

    /// Whether something stands in a slot other than those of layers and parameters.
    private func hasOccupiedSlots(_ context: Context) -> Bool {
        context.usesAdapters && slots.contains { $0.occupant != nil }
    }
}
