import Backbones
import Formats
import Torch

/// CapaBoost-LoRA: parallel copies of LoRA that share one pair of factors, each copy seeing them through its own fixed
/// random masks; the rank of the update grows with the number of copies, the number of trained values does not.
/// arXiv 2407.01320
///
/// With the factors `A [r, in]` and `B [out, r]` of a layer, `d = num_layer` branches and 0/1 masks of their shapes,
///
///     dW = s * sum over i of (B * maskB_i) (A * maskA_i),    s = lora_alpha / r    (use_rslora: lora_alpha / sqrt(r))
///
/// Saved are `base_model.model.<path>.lora_A.weight` and `lora_B.weight` as LoRA's; the masks follow from `mask_seed`,
/// `num_layer`, `density` and `mask_type` in `adapter_config.json`, by the rule of ``BranchMask``.
///
/// At the start `A` is uniform within `1 / sqrt(in)`, or `1 / sqrt(r)` with `init_bound` `r`, and `B` is zero.
public struct CapaBoost: RankedMethod {
    /// The value of `peft_type`.
    public static let peftType = "CAPABOOST_LORA"
    /// The hyper-parameters.
    public static let fields: [Field<CapaBoost>] =
        rankFields + MaskSettings.fields.map { $0.within(\.masks) }
        + [Field("init_bound", \.initBound, "A starts uniform within 1 / sqrt(in) or 1 / sqrt(r)")] + patternFields

    /// The size whose root bounds the start of A.
    public enum InitBound: String, FieldValue, CaseIterable {
        /// The layer's inputs, as in LoRA.
        case inputs = "in"
        /// The rank, as in the authors' code.
        case rank = "r"
    }

    /// The rank.
    public var r = 8
    /// The scale times the rank.
    public var loraAlpha = 8.0
    /// The probability of zeroing an element of the adapter's input.
    public var loraDropout = 0.0
    /// Whether the scale is `lora_alpha / sqrt(r)`.
    public var useRSLoRA = false
    /// What the branches' masks are set by.
    public var masks = MaskSettings()
    /// What bounds the start of A.
    public var initBound = InitBound.inputs
    /// Ranks of single layers.
    public var rankPattern = Pattern<Int>()
    /// `lora_alpha` of single layers.
    public var alphaPattern = Pattern<Double>()

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try validateRanks()
        try masks.validate()
    }

    /// The method with the seed of its masks written down.
    public func resolved(seed: Seed) -> CapaBoost { writing(seed, in: \.masks.seed) }

    /// The values of A and B.
    ///
    /// - Throws: `PEFTError` when a pattern is not valid.
    public func trainedCount(in points: AttachPoints) throws -> Double { try factorCount(in: points) }

    /// Makes A, B and their masks for every layer.
    ///
    /// - Throws: `PEFTError` when a layer does not fit; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let (rank, scale) = try rankAndScale(of: layer.path)
            let bound = 1 / Double(initBound == .inputs ? layer.inFeatures : rank).squareRoot()
            func factor(_ name: String, _ shape: [Int], within bound: Double) throws -> (Tensor, masks: Tensor) {
                let path = "\(layer.path).\(name)"
                let masks = try self.masks.drawn(shape, of: path, from: seed, on: points.device)
                let factor = try attachment.train(
                    adapterKey(path, "weight"), from: seed.uniform(path, shape, within: bound), on: points.device,
                    decay: .seen(by: masks))
                return (factor, masks)
            }
            let (a, masksA) = try factor("lora_A", [rank, layer.inFeatures], within: bound)
            let (b, masksB) = try factor("lora_B", [layer.outFeatures, rank], within: 0)
            let update = CapaBoostUpdate(
                a: a, b: b, masksA: masksA, masksB: try masksB.transposed(0, 1).contiguous(),
                scale: scale, dropout: loraDropout)
            attachment.updates.append((layer, update))
        }
        return attachment
    }
}

/// `dW = s * sum over i of (B * maskB_i) (A * maskA_i)`: one product of stacked factors of rank `d r`.
struct CapaBoostUpdate: LowRankUpdate {
    /// `[r, in]`.
    let a: Tensor
    /// `[out, r]`.
    let b: Tensor
    /// bool `[d, r, in]`.
    let masksA: Tensor
    /// bool `[out, d, r]`.
    let masksB: Tensor
    let scale: Double
    let dropout: Double

    func factors() throws -> (down: Tensor, up: Tensor) {
        let rank = masksA.size(0) * a.size(0)
        return (
            try (a * masksA).reshaped([rank, a.size(1)]), try (b.unsqueezed(1) * masksB).reshaped([b.size(0), rank])
        )
    }

    /// With dropout, branches are terms of their own.
    func term(for input: Tensor, of layer: Linear, in context: Context) throws -> LowRankTerm? {
        guard masksA.size(0) == 1 || context.dropout == nil || dropout == 0 else { return nil }
        let (down, up) = try factors()
        let mask = try context.dropout?.mask(for: input, probability: dropout, name: layer.path)
        return LowRankTerm(down: down, up: up, scale: scale, mask: mask)
    }

    /// In training every branch drops elements of its own.
    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        let frozen = try layer.base(input)
        guard let source = context.dropout, dropout > 0 else { return try frozen + self(input) }
        let (rank, branches) = (a.size(0), masksA.size(0))
        let (down, up) = try factors()
        return try (0..<branches).reduce(frozen) { output, branch in
            let name = branches == 1 ? layer.path : "\(layer.path).\(branch)"
            let kept = try source.apply(input, probability: dropout, name: name)
            let part = (
                try down.narrowed(0, start: branch * rank, length: rank),
                try up.narrowed(1, start: branch * rank, length: rank)
            )
            return try output + product(kept, part)
        }
    }
}
