import Backbones
import Formats
import Torch

/// Low-rank adaptation: `dW = s B A` with two thin trainable factors a layer, nothing shared. arXiv 2106.09685
///
/// Variants by hyper-parameter: rsLoRA (2312.03732) scales by `lora_alpha / sqrt(r)`; DoRA (2402.09353) trains the
/// norms of the weight's rows beside their direction; PiSSA (2404.02948) and OLoRA (2406.01775) start from factors of
/// the weight itself, which are taken off the base; LoRA+ (2402.12354) gives B a larger learning rate.
public struct LoRA: RankedMethod {
    /// The value of `peft_type`.
    public static let peftType = "LORA"
    /// The hyper-parameters.
    public static let fields: [Field<LoRA>] =
        rankFields + [
            Field("use_dora", \.useDoRA, "train the norms of the weight's rows beside their direction"),
            Field("init_lora_weights", \.initialization, "how the factors start"),
        ] + patternFields + [
            Field("loraplus_lr_ratio", \.learningRateRatio, "learning rate of B over that of A (LoRA+)")
        ]

    /// The rank.
    public var r = 8
    /// The scale times the rank.
    public var loraAlpha = 8.0
    /// The probability of zeroing an element of the adapter's input.
    public var loraDropout = 0.0
    /// Whether the scale is `lora_alpha / sqrt(r)`.
    public var useRSLoRA = false
    /// Whether the norms of the weight's rows are trained, too.
    public var useDoRA = false
    /// How the factors start.
    public var initialization = LoRAInitialization.standard
    /// Ranks of single layers.
    public var rankPattern = Pattern<Int>()
    /// `lora_alpha` of single layers.
    public var alphaPattern = Pattern<Double>()
    /// The learning rate of B over that of A.
    public var learningRateRatio = 1.0

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try validateRanks()
        try requirePositive(learningRateRatio, "loraplus_lr_ratio")
        if useDoRA && initialization.takesFactorsOffTheBase {
            throw PEFTError("use_dora does not go with init_lora_weights \(initialization.json.compact)")
        }
    }

    /// The values of A, B and, for DoRA, the magnitudes.
    ///
    /// - Throws: `PEFTError` when a pattern is not valid.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let magnitudes = points.linears.reduce(0) { $0 + $1.outFeatures }
        return try factorCount(in: points) + (useDoRA ? Double(magnitudes) : 0)
    }

    /// Makes A and B, and for DoRA the magnitudes, of every layer.
    ///
    /// - Throws: `PEFTError` when a layer does not fit; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let (rank, scale) = try rankAndScale(of: layer.path)
            let start = try initialization.factors(of: layer, rank: rank, scale: scale, seed: seed)
            let a = try attachment.train(adapterKey(layer.path, "lora_A.weight"), from: start.a, on: points.device)
            let b = try attachment.train(
                adapterKey(layer.path, "lora_B.weight"), from: start.b, on: points.device,
                learningRateFactor: learningRateRatio)
            var update = LoRAUpdate(a: a, b: b, scale: scale, dropout: loraDropout)
            if initialization.takesFactorsOffTheBase {
                update.initial = (try a.detached().cloned(), try b.detached().cloned())
            }
            guard useDoRA else {
                attachment.updates.append((layer, update))
                continue
            }
            let weight = try layer.weight.values(dtype: .float32)
            let norms = try withoutGrad { try (weight + update.dense()).norm([1]) }
            let magnitude = try attachment.train(
                adapterKey(layer.path, "lora_magnitude_vector"), from: norms, on: points.device)
            attachment.updates.append((layer, DoRAUpdate(direction: update, magnitude: magnitude)))
        }
        if initialization.takesFactorsOffTheBase { try addExport(to: &attachment) }
        return attachment
    }

    /// PiSSA and OLoRA are saved relative to the original weight, as LoRA of twice the rank: `B' = [B, -B0]`,
    /// `A' = [A; A0]`, so that the folder needs no changed base.
    private func addExport(to attachment: inout Attachment) throws {
        let updates = attachment.updates
        for (layer, update) in updates {
            guard let initial = (update as? LoRAUpdate)?.initial else { continue }
            attachment.buffers[adapterKey(layer.path, "initial_A")] = initial.down
            attachment.buffers[adapterKey(layer.path, "initial_B")] = initial.up
        }
        var plain = self
        plain.initialization = .standard
        plain.r *= 2
        plain.rankPattern.entries = doubled(rankPattern.entries) { $0 * 2 }
        // The scale stays: alpha / r for twice the rank, alpha / sqrt(r) for the root of it.
        let factor = useRSLoRA ? 2.0.squareRoot() : 2.0
        plain.loraAlpha *= factor
        plain.alphaPattern.entries = doubled(alphaPattern.entries) { $0 * factor }
        attachment.export = { [plain] in
            var tensors = KeyedList<Tensor>()
            for (layer, update) in updates {
                guard let update = update as? any LowRankUpdate else { continue }
                let (a, b) = try withoutGrad { try update.factors() }
                tensors[adapterKey(layer.path, "lora_A.weight")] = a
                tensors[adapterKey(layer.path, "lora_B.weight")] = b
            }
            return (plain, tensors)
        }
    }

    private func doubled<Value>(_ entries: KeyedList<Value>, _ change: (Value) -> Value) -> KeyedList<Value> {
        var result = KeyedList<Value>()
        for (key, value) in entries { result.appendIfNew(key: key, value: change(value)) }
        return result
    }
}
