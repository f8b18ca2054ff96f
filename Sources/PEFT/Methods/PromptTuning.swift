import Backbones
import Formats
import Torch

/// Prompt tuning: `n` trained vectors in front of the tokens' embeddings. arXiv 2104.08691
///
/// The model sees `[P; E(x)]`; the positions of tokens begin at `n`, and no loss is taken at the virtual ones. The start
/// is not the pretrained model's answer, but that to `n` more tokens.
public struct PromptTuning: PromptMethod {
    /// The value of `peft_type`.
    public static let peftType = "PROMPT_TUNING"
    /// The hyper-parameters.
    public static let fields = promptFields

    /// What the vectors are set by.
    public var prompt = PromptSettings(virtualTokens: 20)

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws { try prompt.validate() }

    /// The values of the table.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        Double(prompt.virtualTokens) * Double(points.configuration.hiddenSize)
    }

    /// Makes the table.
    ///
    /// - Throws: `PEFTError` when the text to start from has no tokens; what reading a tokenizer throws.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        let table = try attachment.train(
            "prompt_embeddings", from: prompt.vectors(for: points.embedding, seed: seed), on: points.device)
        let slot = PromptSlot(virtualTokens: prompt.virtualTokens, dtype: points.backbone.dtype) { _ in table }
        attachment.others = [Attached(points.embedding, slot)]
        return attachment
    }
}
