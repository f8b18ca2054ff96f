import Backbones
import Torch

/// Mini-ensemble LoRA: one small LoRA between each chunk of the inputs and the same chunk of the outputs, so that the
/// update is block diagonal and its rank `n r` costs no more than one LoRA of rank `r`. arXiv 2402.17263
///
/// With `n = l_num` chunks, `A_i [r, in / n]`, `B_i [out / n, r]` and `s = lora_alpha / r` (use_rslora:
/// `lora_alpha / sqrt(r)`),
///
///     dW = blockdiag(s B_1 A_1, ..., s B_n A_n)
///
/// Saved are `base_model.model.<path>.lora_A.weight [n r, in / n]` and `lora_B.weight [out, r]`, the minis from top to
/// bottom; with one mini they are LoRA's.
///
/// At the start `A_i` is uniform within `sqrt(n / in)`, and `B_i` is zero.
public struct MELoRA: RankedMethod {
    /// The value of `peft_type`.
    public static let peftType = "MELORA"
    /// The hyper-parameters.
    public static let fields: [Field<MELoRA>] =
        rankFields + [Field("l_num", \.minis, "mini LoRAs, each between one chunk of the inputs and of the outputs")]
        + patternFields

    /// The rank of each mini.
    public var r = 8
    /// The scale times the rank.
    public var loraAlpha = 16.0
    /// The probability of zeroing an element of the adapter's input.
    public var loraDropout = 0.0
    /// Whether the scale is `lora_alpha / sqrt(r)`.
    public var useRSLoRA = false
    /// The number of minis.
    public var minis = 2
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
        try requirePositive(minis, "l_num")
    }

    /// The values of all A and B, as many as LoRA's.
    ///
    /// - Throws: `PEFTError` when a pattern is not valid.
    public func trainedCount(in points: AttachPoints) throws -> Double { try factorCount(in: points) }

    /// Makes the minis of every layer.
    ///
    /// - Throws: `PEFTError` when a layer cannot be cut into equal chunks; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try points.requireDivisor(minis, "l_num") { [$0.inFeatures, $0.outFeatures] }
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let (rank, scale) = try rankAndScale(of: layer.path)
            let inputs = layer.inFeatures / minis
            let start = try seed.uniform(
                "\(layer.path).lora_A", [minis * rank, inputs], within: 1 / Double(inputs).squareRoot())
            let a = try attachment.train(adapterKey(layer.path, "lora_A.weight"), from: start, on: points.device)
            let b = try attachment.train(
                adapterKey(layer.path, "lora_B.weight"), from: Tensor.zeros([layer.outFeatures, rank]),
                on: points.device)
            let update = MELoRAUpdate(a: a, b: b, minis: minis, scale: scale, dropout: loraDropout)
            attachment.updates.append((layer, update))
        }
        return attachment
    }
}

/// `dW = blockdiag(s B_i A_i)`, as a product of block-diagonal factors of rank `n r`.
///
/// One mask of dropout over all inputs is one of its own for each chunk.
struct MELoRAUpdate: LowRankUpdate {
    /// `[n r, in / n]`.
    let a: Tensor
    /// `[out, r]`.
    let b: Tensor
    let minis: Int
    let scale: Double
    let dropout: Double

    func factors() throws -> (down: Tensor, up: Tensor) { (try blockDiagonal(a), try blockDiagonal(b)) }

    /// Blocks on top of each other, `[n p, q]`, to `[n p, n q]`.
    private func blockDiagonal(_ blocks: Tensor) throws -> Tensor {
        let (rows, columns) = (blocks.size(0), blocks.size(1))
        let places = try Tensor.eye(minis, device: blocks.device).reshaped([minis, 1, minis, 1])
        return try (blocks.reshaped([minis, -1, 1, columns]) * places).reshaped([rows, minis * columns])
    }
}
