import CBlocks
import Formats
import Torch

/// Passes single tokens through a model whose weights are packed, all blocks in one call.
///
/// It computes what the blocks compute one operator at a time, in fp32 with products of blocks, and is there for the
/// case that text is generated one token after the other with nothing attached to the model. In any other case
/// ``states(after:_:)`` returns nil.
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

    /// Makes the decoder; nil when a weight is not packed or a norm is not in fp32 in main memory.
    init?(_ configuration: LlamaConfiguration, embedding: Parameter, blocks: [Block], norm: Parameter) {
        guard embedding.packed != nil, !blocks.isEmpty, let finalNorm = Self.place(norm) else { return nil }
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

    /// The final hidden state of one token, `[1, 1, hidden]`; nil when this is not the case that the decoder is for.
    ///
    /// - Throws: `ModelError` when the cache is full; `FormatError` when there is no such token.
    func states(after ids: Tensor, _ context: Context) throws -> Tensor? {
        guard let cache = context.cache, ids.shape == [1, 1], context.positions == nil, context.mask == nil,
            context.segments == nil,
            context.dropout == nil, context.observer == nil, cache.countsPositions, isAlone(context)
        else { return nil }
        guard cache.length < cache.capacity else {
            throw ModelError("\(cache.length + 1) tokens do not fit into a key/value cache of \(cache.capacity)")
        }
        guard let held = try connect(cache) else { return nil }
        let states = try embedding.rows(ids)
        let length = context.length ?? cache.length + 1
        let angles = configuration.rotary.pairs(position: cache.length, length: length)
        var decoder = cblocks_decoder(
            hidden: configuration.hiddenSize, inner: configuration.intermediateSize,
            heads: configuration.numAttentionHeads, key_heads: configuration.numKeyValueHeads,
            dimension: configuration.headDim, layer_count: layers.count, capacity: cache.capacity,
            epsilon: Float(configuration.rmsNormEps), final_norm: finalNorm, layers: layers.baseAddress)
        let threads = Int32(clamping: try Machine.threads())
        let status = try states.withUnsafeMutableBytes { memory in
            withExtendedLifetime(held) {
                cblocks_decode(
                    Int32(PackedMatrix.bestLevel), threads, &decoder, cache.length, angles.cos, angles.sin,
                    memory.bindMemory(to: Float.self).baseAddress)
            }
        }
        guard status == 0 else { throw ModelError("memory is short for the next token") }
        cache.advance(by: 1)
        return states
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
        guard let packed = linear.weight.packed else { return nil }
        let bias = linear.bias.flatMap(place)
        guard (bias == nil) == (linear.bias == nil) else { return nil }
        return cblocks_linear(weight: packed.view, bias: bias)
    }

    private static func place(_ parameter: Parameter) -> UnsafePointer<Float>? { place(parameter.frozen) }

    /// Where a tensor's values lie, which stays so while it lives; nil unless they are fp32 in main memory.
    private static func place(_ tensor: Tensor) -> UnsafePointer<Float>? {
        guard tensor.dtype == .float32, tensor.device == .cpu, tensor.isContiguous else { return nil }
        let memory = try? tensor.withUnsafeMutableBytes { $0.bindMemory(to: Float.self).baseAddress }
        return memory.flatMap { $0.map { UnsafePointer($0) } }
    }
}
