import Backbones
import Formats
import Torch

/// MEFT: adapters that make a pretrained model reversible, so that training keeps no activations. arXiv 2306.00477
///
/// Two streams begin as the embedded tokens; a layer computes `y1 = lambda x1 + F(x2)`, `y2 = beta x2 + G(y1)`, and
/// their mean leaves the blocks. With small adapters and a small factor one stream is nearly the pretrained model's.
///
/// | variant | F | G | lambda, beta | leaves |
/// |---|---|---|---|---|
/// | 1 | the block, an adapter beside its MLP | an adapter | 0.1, 1 | (y2, y1) |
/// | 2 | an adapter | the block, an adapter beside its MLP | 1, 0.1 | (y2, y1) |
/// | 3 | attention, an adapter behind it | the MLP, an adapter beside it | 0.1, 0.1 | (y1, y2) |
public struct MEFT: Method {
    /// The value of `peft_type`.
    public static let peftType = "MEFT"
    /// The hyper-parameters.
    public static let fields: [Field<MEFT>] = [
        Field("variant", \.variant, "what the streams are coupled by: MEFT1, MEFT2 or MEFT3"),
        Field("r", \.r, "width of the adapters"),
        Field("lambda", \.lambda, "factor of the first stream; null: 1 for variant 2, else 0.1"),
        Field("beta", \.beta, "factor of the second stream; null: 1 for variant 1, else 0.1"),
        Field("adapter_dropout", \.dropout, "probability of zeroing an element inside an adapter"),
        Field("adapter_norm", \.hasNorm, "whether adapters that stand alone normalise their input"),
        Field("init_std", \.deviation, "deviation of the adapters' weights at the start"),
        Field("reversible_layers", \.reversibleLayers, "the lower layers that keep no activations; null: all"),
        Field("stream_interval", \.streamInterval, "layers between kept streams; null: as rounding errors allow"),
    ]
    /// The blocks are adapted, not their layers.
    public static let usesLinears = false
    /// Why no merged weight does the same.
    public static let mergeRefusal: String? =
        "the blocks run as two coupled streams, which a model of ordinary blocks cannot do"

    /// 1, 2 or 3.
    public var variant = 1
    /// The width of the adapters.
    public var r = 8
    /// The factor of the first stream.
    public var lambda: Double?
    /// The factor of the second stream.
    public var beta: Double?
    /// The probability of zeroing an element inside an adapter.
    public var dropout = 0.0
    /// Whether adapters that stand alone normalise their input.
    public var hasNorm = false
    /// The deviation of the adapters' weights at the start.
    public var deviation = 0.02
    /// The lower layers that keep no activations.
    public var reversibleLayers: Int?
    /// The layers between kept streams.
    public var streamInterval: Int?

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense, and factors that streams cannot be divided by.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        guard (1...3).contains(variant) else { throw PEFTError("variant: expected 1, 2 or 3, found \(variant)") }
        try requirePositive(r, "r")
        try requireProbability(dropout, "adapter_dropout")
        try requirePositive(deviation, "init_std")
        if let streamInterval { try requirePositive(streamInterval, "stream_interval") }
        if let reversibleLayers, reversibleLayers < 0 {
            throw PEFTError("reversible_layers: expected a whole number of at least 0, found \(reversibleLayers)")
        }
        for (name, factor) in [("lambda", factors.lambda), ("beta", factors.beta)] where reversibleLayers != 0 {
            guard factor > 0 else {
                throw PEFTError(
                    "\(name): expected a positive number, found \(factor); running backwards divides by it, so 0 goes "
                        + "with reversible_layers 0 only")
            }
        }
        guard !hasNorm || variant < 3 else {
            throw PEFTError("adapter_norm: variant 3 has no adapter that stands alone; leave it out")
        }
    }

    /// Two adapters a layer, and their norms.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let (width, hidden) = (Double(r), Double(points.configuration.hiddenSize))
        let layer = 2 * (2 * hidden * width + width + hidden) + (hasNorm ? 2 * hidden : 0)
        return layer * Double(points.configuration.numHiddenLayers)
    }

    /// Makes the adapters of every layer, and the execution that couples the streams.
    ///
    /// - Throws: `PEFTError` when only some layers are selected; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let blocks = points.blockStack.blocks
        guard points.sublayers.count == 2 * blocks.count else {
            throw PEFTError("layers_to_transform: MEFT couples the streams in all \(blocks.count) layers; leave it out")
        }
        var attachment = Attachment(trainables: [])
        var alone: [String: StreamAdapter] = [:]
        var trained: [String: [Tensor]] = [:]
        for block in blocks {
            let before = attachment.trainables.count
            if variant < 3 { alone[block.path] = try StreamAdapter(self, at: block.path, points, seed, &attachment) }
            for sublayer in points.sublayers where sublayer.layer == block.layer {
                guard sublayer.role == .mlp || variant == 3 else { continue }
                let input: BottleneckInput = sublayer.role == .mlp ? .input : .output
                let adapter = try network(at: sublayer.path, reading: input, points, seed, &attachment)
                attachment.others.append(Attached(sublayer, adapter))
            }
            trained[block.path] = attachment.trainables[before...].map(\.tensor)
        }
        let backbone = points.backbone
        let execution = ReversibleBlocks(
            reversible: min(reversibleLayers ?? blocks.count, blocks.count), interval: interval(for: backbone.dtype)
        ) { [self, alone, trained] block in
            // Parameters of the block that are trained as copies, too.
            let copies = backbone.parameters.filter { $0.path.hasPrefix(block.path + ".") }.compactMap(\.replacement)
            return layer(
                of: block, alone: alone[block.path], dtype: backbone.dtype,
                trained: (trained[block.path] ?? []) + copies.filter(\.requiresGrad))
        }
        attachment.others.append(Attached(points.blockStack, execution))
        return attachment
    }

    /// A network `U silu(D x + c) + e`.
    fileprivate func network(
        at path: String, reading input: BottleneckInput, _ points: AttachPoints, _ seed: Seed,
        _ attachment: inout Attachment
    ) throws -> Bottleneck {
        var settings = BottleneckSettings()
        (settings.r, settings.nonLinearity, settings.dropout) = (r, .silu, dropout)
        return try Bottleneck(
            settings, at: path, of: points.configuration.hiddenSize, reading: input, in: &attachment,
            on: points.device, start: { try seed.normal("\(path).\($0).weight", $1, deviation: deviation) })
    }

    /// The factors of both streams.
    var factors: (lambda: Double, beta: Double) {
        (lambda ?? (variant == 2 ? 1 : 0.1), beta ?? (variant == 1 ? 1 : 0.1))
    }

    /// The coupling of a block.
    private func layer(
        of block: any TransformerBlock, alone: StreamAdapter?, dtype: DType, trained: [Tensor]
    ) -> ReversibleLayer {
        /// The model computes in its own dtype, the streams are wider.
        func inModel(_ part: @escaping ReversibleLayer.Part) -> ReversibleLayer.Part {
            { stream, pass in try part(stream.to(dtype: dtype), pass).to(dtype: stream.dtype) }
        }
        let whole = inModel { try block($0, $1) }
        let adapter = inModel { try alone?($0, $1.context) ?? $0 }
        let attention = inModel { try $0 + block.attention($0, $1) }
        let mlp = inModel { try $0 + block.mlp($0, $1) }
        let parts = [(whole, adapter), (adapter, whole), (attention, mlp)][variant - 1]
        return ReversibleLayer(
            f: parts.0, g: parts.1, lambda: factors.lambda, beta: factors.beta, isSwapped: variant < 3,
            trained: trained)
    }

    /// The layers over which errors, multiplied by one over the factors in each, stay about a hundredth.
    func interval(for dtype: DType) -> Int {
        if let streamInterval { return streamInterval }
        let growth = 1 / (factors.lambda * factors.beta)
        guard growth > 1 else { return .max }
        let error = dtype == .float64 ? 0x1p-52 : dtype == .float32 ? 0x1p-23 : 0x1p-8
        var (layers, grown) = (1, error * growth * growth)
        while grown < 1e-2 { (layers, grown) = (layers + 1, grown * growth) }
        return layers
    }
}

/// A network on a stream, behind a norm where there is one.
private struct StreamAdapter {
    let network: Bottleneck
    let norm: (weight: Tensor, bias: Tensor)?

    init(
        _ method: MEFT, at path: String, _ points: AttachPoints, _ seed: Seed, _ attachment: inout Attachment
    ) throws {
        network = try method.network(at: path, reading: .stream, points, seed, &attachment)
        let (key, width) = (adapterKey(path, "adapter_norm"), points.configuration.hiddenSize)
        norm =
            try method.hasNorm
            ? (
                attachment.train(key + ".weight", from: Tensor.ones([width]), on: points.device),
                attachment.train(key + ".bias", from: Tensor.zeros([width]), on: points.device)
            ) : nil
    }

    func callAsFunction(_ stream: Tensor, _ context: Context) throws -> Tensor {
        let input = try norm.map { norm in
            let (weight, bias) = (try norm.weight.to(dtype: stream.dtype), try norm.bias.to(dtype: stream.dtype))
            return try callTensor("aten::layer_norm", stream, [stream.size(-1)], weight, bias)
        }
        return try network(input ?? stream, context)
    }
}
