import CBlocks
import Formats
import Torch

/// Passes the tokens of one text through a model whose weights are packed, all blocks in one call.
///
/// It computes what the blocks compute one operator at a time, in fp32 with products of blocks, and is there for the
/// case that one text is read or generated with nothing attached to the model. In any other case ``states(after:_:)``
/// returns nil.
final class PackedDecoder {
    /// What one block is made of.
    struct Block {
        /// Query, key, value, output, gate, up, down.
        var linears: [Linear]
        var inputNorm: Parameter
        var attentionNorm: Parameter
        var queryNorm: Parameter?
        var keyNorm: Parameter?
    }

    private let configuration: LlamaConfiguration
    private let embedding: Parameter
    private let linears: [Linear]
    private let parameters: [Parameter]
    private let layers: UnsafeMutableBufferPointer<cblocks_layer>
    private let finalNorm: UnsafePointer<Float>
    private var team = TeamSize(most: 1)

    /// Makes the decoder; nil when a weight is not packed or a norm is not in fp32 in main memory.
    init?(_ configuration: LlamaConfiguration, embedding: Parameter, blocks: [Block], norm: Parameter) {
        guard configuration.activation == .silu, embedding.packed is PackedMatrix, !blocks.isEmpty,
            let finalNorm = Self.place(norm)
        else { return nil }
        var layers: [cblocks_layer] = []
        for (index, block) in blocks.enumerated() {
            guard let layer = Self.layer(block, window: configuration.slidingWindow(layer: index)) else { return nil }
            layers.append(layer)
        }
        self.configuration = configuration
        self.embedding = embedding
        self.finalNorm = finalNorm
        linears = blocks.flatMap(\.linears)
        let norms = blocks.flatMap { [$0.inputNorm, $0.attentionNorm, $0.queryNorm, $0.keyNorm].compactMap { $0 } }
        parameters = [embedding, norm] + norms + linears.flatMap(\.parameters)
        self.layers = UnsafeMutableBufferPointer.allocate(capacity: layers.count)
        _ = self.layers.initialize(from: layers)
    }

    deinit { layers.deallocate() }

    /// The final hidden states of new tokens, `[1, time, hidden]`; nil when this is a case that the decoder is not for.
    ///
    /// - Throws: `ModelError` when the cache is full; `FormatError` when there is no such token.
    func states(after ids: Tensor, _ context: Context) throws -> Tensor? {
        let shape = ids.shape
        guard let cache = context.cache, shape.count == 2, shape[0] == 1, shape[1] > 0, isPlain(context),
            cache.countsPositions, isAlone(context)
        else { return nil }
        let range = cache.length..<cache.length + shape[1]
        guard range.upperBound <= cache.capacity else {
            throw ModelError("\(range.upperBound) tokens do not fit into a key/value cache of \(cache.capacity)")
        }
        guard let held = try connect(cache) else { return nil }
        let states = try embedding.rows(ids)
        try withExtendedLifetime(held) {
            try pass(states, range, length: context.length ?? range.upperBound, capacity: cache.capacity)
        }
        cache.advance(by: range.count)
        return states
    }

    /// Turns embeddings into hidden states; one token is timed, to learn how many threads it is best given to.
    private func pass(_ states: Tensor, _ range: Range<Int>, length: Int, capacity: Int) throws {
        let angles = configuration.rotary.pairs(positions: range, length: length)
        var decoder = cblocks_decoder(
            hidden: configuration.hiddenSize, inner: configuration.intermediateSize,
            heads: configuration.numAttentionHeads, key_heads: configuration.numKeyValueHeads,
            dimension: configuration.headDim, layer_count: layers.count, capacity: capacity,
            epsilon: Float(configuration.rmsNormEps), final_norm: finalNorm, layers: layers.baseAddress)
        let most = try Machine.threads()
        if team.most != most { team = TeamSize(most: most) }
        let level = Int32(PackedMatrix.bestLevel)
        let status = try states.withUnsafeMutableBytes { memory in
            let values = memory.bindMemory(to: Float.self).baseAddress
            guard range.count == 1 else {
                return cblocks_read(
                    level, Int32(clamping: most), &decoder, range.lowerBound, range.count, angles.cos, angles.sin,
                    values)
            }
            let begin = ContinuousClock.now
            defer { team.note(seconds: (.now - begin) / .seconds(1)) }
            return cblocks_decode(
                level, Int32(clamping: team.size), &decoder, range.lowerBound, angles.cos, angles.sin, values)
        }
        guard status == 0 else { throw ModelError("memory is short for \(range.count) more tokens") }
    }

    /// Whether a pass is over tokens in their order that see all before them, and nobody watches.
    private func isPlain(_ context: Context) -> Bool {
        context.positions == nil && context.mask == nil && context.segments == nil && context.dropout == nil
            && context.observer == nil
    }

    /// Whether nothing is attached that acts.
    private func isAlone(_ context: Context) -> Bool {
        let isAdapted = context.usesAdapters && linears.contains { $0.adapter != nil }
        return !isAdapted && !parameters.contains { $0.replacement != nil }
    }

    /// Points every layer at its part of the cache; nil when the cache is of another form.
    private func connect(_ cache: KeyValueCache) throws -> [Tensor]? {
        var held: [Tensor] = []
        let shape = [1, configuration.numKeyValueHeads, cache.capacity, configuration.headDim]
        for index in layers.indices {
            let memory = try cache.memory(layer: index, heads: shape[1], dimension: shape[3])
            guard memory.keys.shape == shape, let keys = Self.place(memory.keys), let values = Self.place(memory.values)
            else { return nil }
            layers[index].keys = UnsafeMutablePointer(mutating: keys)
            layers[index].values = UnsafeMutablePointer(mutating: values)
            held += [memory.keys, memory.values]
        }
        return held
    }

    private static func layer(_ block: Block, window: Int?) -> cblocks_layer? {
        let linears = block.linears.compactMap(Self.linear)
        guard linears.count == 7, block.linears.count == 7, let inputNorm = place(block.inputNorm),
            let attentionNorm = place(block.attentionNorm)
        else { return nil }
        let headNorms = (query: block.queryNorm.flatMap(place), key: block.keyNorm.flatMap(place))
        guard (headNorms.query == nil) == (block.queryNorm == nil), (headNorms.key == nil) == (block.keyNorm == nil)
        else { return nil }
        return cblocks_layer(
            query: linears[0], key: linears[1], value: linears[2], output: linears[3], gate: linears[4],
            up: linears[5], down: linears[6], input_norm: inputNorm, attention_norm: attentionNorm,
            query_norm: headNorms.query, key_norm: headNorms.key, window: window ?? 0, keys: nil, values: nil)
    }

    private static func linear(_ linear: Linear) -> cblocks_linear? {
        guard let packed = linear.weight.packed as? PackedMatrix else { return nil }
        let bias = linear.bias.flatMap(place)
        guard (bias == nil) == (linear.bias == nil) else { return nil }
        return cblocks_linear(weight: packed.view, bias: bias)
    }

    private static func place(_ parameter: Parameter) -> UnsafePointer<Float>? { place(parameter.frozen) }

    /// Where a tensor's values lie, which stays so while it lives; nil unless they are fp32 in main memory.
    private static func place(_ tensor: Tensor) -> UnsafePointer<Float>? {
        guard tensor.dtype == .float32, tensor.device == .cpu, tensor.isContiguous else { return nil }
        let memory = try? tensor.withUnsafeMutableBytes { $0.bindMemory(to: Float.self).baseAddress }
        return memory.map { UnsafePointer($0) }
    }
}
