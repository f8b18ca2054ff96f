import Torch

/// Grouped-query attention with rotary positions.
final class LlamaAttention {
    private let query: Linear
    private let key: Linear
    private let value: Linear
    private let output: Linear
    let queryNorm: RMSNorm?
    let keyNorm: RMSNorm?
    /// Its keys and values.
    let state: AttentionState
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
        state = AttentionState(
            path: path, layer: layer, heads: configuration.numKeyValueHeads, dimension: dimension)
        headDimension = dimension
        slidingWindow = configuration.slidingWindow(layer: layer)
    }

    var linears: [Linear] { [query, key, value, output] }

    var parameters: [Parameter] {
        linears.flatMap(\.parameters) + [queryNorm?.weight, keyNorm?.weight].compactMap { $0 }
    }

    func callAsFunction(_ input: Tensor, _ pass: BlockPass) throws -> Tensor {
        let context = pass.context
        let projected = try Linear.outputs(of: [query, key, value], for: input, context)
        var (queries, keys) = try RotaryEmbedding.rotate(
            heads(projected[0], queryNorm, context), heads(projected[1], keyNorm, context), pass.rotary)
        var values = try heads(projected[2], nil, context)
        if let cache = context.cache { (keys, values) = try cache.append(keys, values, layer: state.layer) }
        let prefix = try state.prefix(batch: input.size(0), context)
        var attended = try attendInRows(queries, keys, values, prefix, pass.masks)
        if prefix != nil, let gate = try state.prefix?.gate(of: state, in: context) {
            let plain = try attendInRows(queries, keys, values, nil, pass.masks)
            attended = try plain + (attended - plain) * gate
        }
        try context.observer?(state.path, attended)
        // [batch, heads, time, dim] -> [batch, time, heads * dim]
        return try output(attended.transposed(1, 2).reshaped([input.size(0), input.size(1), -1]), context)
    }

    /// Attention within each row of a packed sequence by itself, so that there is no mask of all tokens by all.
    private func attendInRows(
        _ queries: Tensor, _ keys: Tensor, _ values: Tensor, _ prefix: (keys: Tensor, values: Tensor)?,
        _ masks: AttentionMasks
    ) throws -> Tensor {
        if prefix == nil, let window = masks.plainWindow(slidingWindow), try hasCausalAttention(queries) {
            return try causalAttention(
                query: queries, key: keys, value: values, window: window, lengths: masks.segments ?? [])
        }
        guard let lengths = masks.segments, lengths.count > 1 else {
            return try attend(queries, keys, values, behind: prefix, masks)
        }
        // Splitting once has one backward step for all rows; views one by one would have one of the full size each.
        let (queries, keys, values) = (
            try queries.split(lengths, dimension: 2), try keys.split(lengths, dimension: 2),
            try values.split(lengths, dimension: 2)
        )
        let rows = try lengths.indices.map { row in
            let masks = masks.row(length: lengths[row])
            return try attend(queries[row], keys[row], values[row], behind: prefix, masks).transposed(1, 2)
        }
        // Put together in the order in which the output projection reads: [1, time, heads, dim].
        return try Tensor.concatenate(rows, dimension: 1).transposed(1, 2)
    }

    /// Attention with keys and values in front of the tokens' own.
    private func attend(
        _ queries: Tensor, _ keys: Tensor, _ values: Tensor, behind prefix: (keys: Tensor, values: Tensor)?,
        _ masks: AttentionMasks
    ) throws -> Tensor {
        guard let prefix else { return try attend(queries, keys, values, masks) }
        return try attend(
            queries, Tensor.concatenate([prefix.keys, keys], dimension: 2),
            Tensor.concatenate([prefix.values, values], dimension: 2), masks.behind(prefix.keys.size(2)))
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
