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
    private let embedTokens: Parameter
    private let blocks: [LlamaBlock]
    private let norm: RMSNorm
    /// The way of one text through a packed model.
    private lazy var packedDecoder = PackedDecoder(
        configuration, embedding: embedTokens, blocks: blocks.map(\.parts), norm: norm.weight)

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
        embedTokens = try weights.matrix("model.embed_tokens.weight", vocabulary)
        // No room is taken in advance: the count is only believed layer by layer.
        var blocks: [LlamaBlock] = []
        for layer in 0..<configuration.numHiddenLayers {
            blocks.append(try LlamaBlock(configuration, layer: layer, weights))
        }
        self.blocks = blocks
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
        [embedTokens] + blocks.flatMap(\.parameters) + [norm.weight] + head.parameters
    }

    /// The final hidden states of token ids, see ``Backbone/hiddenStates(_:_:)``.
    ///
    /// - Throws: `ModelError` when the ids are no batch, packed rows do not fit them, or the cache is full; `TorchError`
    ///   when an id is unknown.
    public func hiddenStates(_ ids: Tensor, _ context: Context) throws -> Tensor {
        if let states = try packedDecoder?.states(after: ids, context) { return states }
        guard ids.rank == 2 else { throw ModelError("token ids have shape \(ids.shape); expected [batch, time]") }
        try context.segments?.requireFit(ids, context)
        let past = context.cache?.length ?? 0
        let time = ids.size(1)
        let given = try context.positions.map { try $0.rank == 1 ? $0.unsqueezed(0) : $0 }
        let positions =
            try given ?? context.segments?.positions(device: device)
            ?? Tensor.arange(past, past + time, device: device).unsqueezed(0)
        let keyPositions = try context.cache.map { try $0.notePositions(given, time: time, device: device) } ?? given
        let rotary = try configuration.rotary.table(
            positions: positions, length: context.length ?? context.segments?.longest ?? past + time, dtype: dtype)
        let masks = AttentionMasks(
            time: time, past: past, given: context.mask, positions: keyPositions.map { (positions, $0) },
            segments: context.segments, device: device)
        var states = try context.observed(embedTokens.rows(ids), embedTokens.modulePath)
        // What a sublayer computes is added to the stream by the norm that follows.
        var delta: Tensor?
        for block in blocks { (states, delta) = try block(states, adding: delta, rotary, masks, context) }
        context.cache?.advance(by: time)
        return try norm(states, adding: delta, context).normed
    }
}

/// One block: attention and MLP, each on normalised input and added to the stream.
private final class LlamaBlock {
    private let path: String
    private let attention: LlamaAttention
    private let mlp: LlamaMLP
    private let inputNorm: RMSNorm
    private let postAttentionNorm: RMSNorm

    init(_ configuration: LlamaConfiguration, layer: Int, _ weights: LlamaWeights) throws {
        path = "model.layers.\(layer)"
        attention = try LlamaAttention(configuration, layer: layer, path: path + ".self_attn", weights)
        mlp = try LlamaMLP(configuration, layer: layer, path: path + ".mlp", weights)
        inputNorm = try weights.norm(
            path + ".input_layernorm", [configuration.hiddenSize], epsilon: configuration.rmsNormEps)
        postAttentionNorm = try weights.norm(
            path + ".post_attention_layernorm", [configuration.hiddenSize], epsilon: configuration.rmsNormEps)
    }

    var linears: [Linear] { attention.linears + mlp.linears }

    var parts: PackedDecoder.Block {
        PackedDecoder.Block(
            linears: linears, inputNorm: inputNorm.weight, attentionNorm: postAttentionNorm.weight,
            queryNorm: attention.queryNorm?.weight, keyNorm: attention.keyNorm?.weight)
    }

    var parameters: [Parameter] {
        attention.parameters + mlp.linears.flatMap(\.parameters) + [inputNorm.weight, postAttentionNorm.weight]
    }

    /// Returns the stream, and what is still to be added to it.
    func callAsFunction(
        _ states: Tensor, adding delta: Tensor?, _ rotary: (cos: Tensor, sin: Tensor), _ masks: AttentionMasks,
        _ context: Context
    ) throws -> (states: Tensor, delta: Tensor?) {
        let input = try inputNorm(states, adding: delta, context)
        let attended = try postAttentionNorm(
            input.sum, adding: attention(input.normed, rotary, masks, context), context)
        let output = try mlp(attended.normed, context)
        guard context.observer != nil else { return (attended.sum, output) }
        return (try context.observed(attended.sum + output, path), nil)
    }
}

/// Grouped-query attention with rotary positions.
private final class LlamaAttention {
    private let query: Linear
    private let key: Linear
    private let value: Linear
    private let output: Linear
    let queryNorm: RMSNorm?
    let keyNorm: RMSNorm?
    private let path: String
    private let layer: Int
    private let headDimension: Int
    private let slidingWindow: Int?

    init(_ configuration: LlamaConfiguration, layer: Int, path: String, _ weights: LlamaWeights) throws {
        let (hidden, dimension) = (configuration.hiddenSize, configuration.headDim)
        func projection(_ name: String, _ role: LinearRole, heads: Int) throws -> Linear {
            let side: HeadLayout.Side = role == .output ? .input : .output
            let width = heads * dimension
            return try weights.linear(
                "\(path).\(name)", role, layer: layer, out: role == .output ? hidden : width,
                in: role == .output ? width : hidden,
                hasBias: role == .output ? configuration.attentionOutputBias : configuration.attentionBias,
                heads: HeadLayout(count: heads, dimension: dimension, side: side))
        }
        query = try projection("q_proj", .query, heads: configuration.numAttentionHeads)
        key = try projection("k_proj", .key, heads: configuration.numKeyValueHeads)
        value = try projection("v_proj", .value, heads: configuration.numKeyValueHeads)
        output = try projection("o_proj", .output, heads: configuration.numAttentionHeads)
        func headNorm(_ name: String) throws -> RMSNorm? {
            guard configuration.hasQueryKeyNorm else { return nil }
            return try weights.norm("\(path).\(name)", [dimension], epsilon: configuration.rmsNormEps)
        }
        queryNorm = try headNorm("q_norm")
        keyNorm = try headNorm("k_norm")
        self.path = path
        self.layer = layer
        headDimension = dimension
        slidingWindow = configuration.slidingWindow(layer: layer)
    }

    var linears: [Linear] { [query, key, value, output] }

    var parameters: [Parameter] {
        linears.flatMap(\.parameters) + [queryNorm?.weight, keyNorm?.weight].compactMap { $0 }
    }

    func callAsFunction(
        _ input: Tensor, _ rotary: (cos: Tensor, sin: Tensor), _ masks: AttentionMasks, _ context: Context
    ) throws -> Tensor {
        let projected = try Linear.outputs(of: [query, key, value], for: input, context)
        var (queries, keys) = try RotaryEmbedding.rotate(
            heads(projected[0], queryNorm, context), heads(projected[1], keyNorm, context), rotary)
        var values = try heads(projected[2], nil, context)
        if let cache = context.cache { (keys, values) = try cache.append(keys, values, layer: layer) }
        let attended = try context.observed(attendInRows(queries, keys, values, masks), path)
        // [batch, heads, time, dim] -> [batch, time, heads * dim]
        return try output(attended.transposed(1, 2).reshaped([input.size(0), input.size(1), -1]), context)
    }

    /// Attention within each row of a packed sequence by itself, so that there is no mask of all tokens by all.
    private func attendInRows(
        _ queries: Tensor, _ keys: Tensor, _ values: Tensor, _ masks: AttentionMasks
    ) throws -> Tensor {
        if let window = masks.plainWindow(slidingWindow), try hasCausalAttention(queries) {
            return try causalAttention(
                query: queries, key: keys, value: values, window: window, lengths: masks.segments ?? [])
        }
        guard let lengths = masks.segments, lengths.count > 1 else { return try attend(queries, keys, values, masks) }
        // Splitting once has one backward step for all rows; views one by one would have one of the full size each.
        let (queries, keys, values) = (
            try queries.split(lengths, dimension: 2), try keys.split(lengths, dimension: 2),
            try values.split(lengths, dimension: 2)
        )
        let rows = try lengths.indices.map { row in
            try attend(queries[row], keys[row], values[row], masks.row(length: lengths[row])).transposed(1, 2)
        }
        // Put together in the order in which the output projection reads: [1, time, heads, dim].
        return try Tensor.concatenate(rows, dimension: 1).transposed(1, 2)
    }

    /// Attention of `[batch, heads, time, dim]` to `[batch, heads or fewer, keys, dim]`, in the fastest form.
    private func attend(
        _ queries: Tensor, _ keys: Tensor, _ values: Tensor, _ masks: AttentionMasks
    ) throws -> Tensor {
        if PlainAttention.pays(queries, keys) {
            let bias = try masks.bias(slidingWindow: slidingWindow, dtype: queries.dtype)
            return try PlainAttention.attend(queries, keys, values, bias: bias)
        }
        let mask = try masks.mask(slidingWindow: slidingWindow)
        let shape = queries.shape
        guard shape[2] == 1, shape[1] != keys.size(1) else {
            return try scaledDotProductAttention(
                query: queries, key: keys, value: values, mask: mask.tensor, isCausal: mask.isCausal)
        }
        // One new token: the queries that share a key's head stand as so many tokens, which kernels are faster with.
        let grouped = try queries.reshaped([shape[0], keys.size(1), -1, shape[3]])
        return try scaledDotProductAttention(query: grouped, key: keys, value: values, mask: mask.tensor).reshaped(
            shape)
    }

    /// `[batch, time, heads * dim]` to `[batch, heads, time, dim]`, normalised where the model does so.
    private func heads(_ projected: Tensor, _ norm: RMSNorm?, _ context: Context) throws -> Tensor {
        let split = try projected.reshaped([projected.size(0), projected.size(1), -1, headDimension])
        return try (norm?(split, context) ?? split).transposed(1, 2)
    }
}

/// The gated MLP: `down(silu(gate(x)) * up(x))`.
private final class LlamaMLP {
    private let gate: Linear
    private let up: Linear
    private let down: Linear
    private let path: String

    init(_ configuration: LlamaConfiguration, layer: Int, path: String, _ weights: LlamaWeights) throws {
        let (hidden, inner) = (configuration.hiddenSize, configuration.intermediateSize)
        func projection(_ name: String, _ role: LinearRole, out: Int, in inputs: Int) throws -> Linear {
            try weights.linear(
                "\(path).\(name)", role, layer: layer, out: out, in: inputs, hasBias: configuration.mlpBias)
        }
        gate = try projection("gate_proj", .gate, out: inner, in: hidden)
        up = try projection("up_proj", .up, out: inner, in: hidden)
        down = try projection("down_proj", .down, out: hidden, in: inner)
        self.path = path
    }

    var linears: [Linear] { [gate, up, down] }

    func callAsFunction(_ input: Tensor, _ context: Context) throws -> Tensor {
        let inner = try Linear.outputs(of: [gate, up], for: input, context)
        let product = try swiglu(gate: inner[0], up: inner[1])
        return try down(context.observed(product, path + ".act_fn"), context)
    }
}
