import Backbones
import Formats
import Torch

/// Decomposed prompt tuning: a short trained prompt, and a low-rank term added to the embeddings position by position.
/// arXiv 2309.05173
///
///     [P; E(x) + c A B],    P [m, d],  A [s, r],  B [r, d],  c = alpha / sqrt(r)
///
/// Row `i` of `A B` belongs to the `i`-th token of a row, whatever the token and the padding; a row of fewer than `s`
/// tokens takes the first ones, a longer one is refused. Tokens that are generated one by one take theirs as well, as
/// in training, and those beyond `s` none.
///
/// At the start `B` is zero: the model is that of prompt tuning with `P`.
public struct DePT: PromptMethod {
    /// The value of `peft_type`.
    public static let peftType = "DEPT"
    /// The hyper-parameters.
    public static let fields: [Field<DePT>] =
        promptFields + [
            Field("r", \.r, "rank of what is added to the embeddings"),
            Field("max_length", \.maxLength, "tokens of the longest row"),
            Field("alpha", \.alpha, "what is added is scaled by alpha / sqrt(r)"),
            Field("offset_lr_ratio", \.learningRateRatio, "learning rate of A and B over that of the prompt"),
        ]

    /// What the vectors in front are set by.
    public var prompt = PromptSettings(virtualTokens: 40)
    /// The rank.
    public var r = 45
    /// The tokens of the longest row.
    public var maxLength = 256
    /// The scale times the root of the rank.
    public var alpha = 8.0
    /// The learning rate of A and B over that of the prompt.
    public var learningRateRatio = 1.0 / 60

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try prompt.validate()
        try requirePositive(r, "r")
        try requirePositive(maxLength, "max_length")
        guard learningRateRatio >= 0 else {
            throw PEFTError("offset_lr_ratio: expected a number of 0 or more, found \(learningRateRatio)")
        }
    }

    /// `m d + r (s + d)`.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let hidden = Double(points.configuration.hiddenSize)
        return Double(prompt.virtualTokens) * hidden + Double(r) * (Double(maxLength) + hidden)
    }

    /// Makes the prompt and the two factors.
    ///
    /// - Throws: `PEFTError` when the text to start from has no tokens; what reading a tokenizer throws.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        let vectors = try attachment.train(
            "prompt_embeddings", from: prompt.vectors(for: points.embedding, seed: seed), on: points.device)
        let root = Double(r).squareRoot()
        func factor(_ name: String, _ shape: [Int], within bound: Double) throws -> Tensor {
            try attachment.train(
                "base_model.\(name)", from: seed.uniform(name, shape, within: bound), on: points.device,
                learningRateFactor: learningRateRatio, decay: .none)
        }
        let a = try factor("dept_A", [maxLength, r], within: 1 / root)
        let b = try factor("dept_B", [r, points.configuration.hiddenSize], within: 0)
        let slot = DePTSlot(prompt: vectors, a: a, b: b, scale: alpha / root, dtype: points.backbone.dtype)
        attachment.others = [Attached(points.embedding, slot)]
        return attachment
    }
}

/// `[P; E + scale A B]`.
private final class DePTSlot: PromptSlot {
    /// `[s, r]`.
    private let a: Tensor
    /// `[r, d]`.
    private let b: Tensor
    private let scale: Double

    init(prompt: Tensor, a: Tensor, b: Tensor, scale: Double, dtype: DType) {
        (self.a, self.b, self.scale) = (a, b, scale)
        super.init(virtualTokens: prompt.size(0), dtype: dtype) { _ in prompt }
    }

    override func embeddings(_ embedded: Tensor, at positions: Tensor, in context: Context) throws -> Tensor {
        let length = try context.length ?? positions.maximum().item(as: Int.self) + 1
        // A single token behind others is one that was generated.
        let isGenerated = embedded.size(1) == 1 && context.cache.map { $0.length > 0 } ?? false
        guard length <= a.size(0) || isGenerated else {
            throw PEFTError(
                "a row of \(length) tokens is longer than max_length \(a.size(0)); cut the rows, or train with a larger "
                    + "max_length")
        }
        // Row s stands for all places beyond: generated tokens, and what fills rows up.
        let rows = try Tensor.concatenate([a, Tensor.zeros([1, a.size(1)], device: a.device)])
        let places = try callTensor("aten::clamp", positions, Argument.none, a.size(0))
        return try embedded + (embedding(places, rows).matmul(b) * scale).to(dtype: embedded.dtype)
    }
}
