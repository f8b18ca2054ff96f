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
    /// What peft 0.21.2 writes for `PROMPT_TUNING`.
    public static let folderFields = promptFolder()

    /// The trained vectors.
    public var virtualTokens = 20
    /// How they start.
    public var start = PromptStart.sampleVocabulary
    /// The text that they start from.
    public var startText: String?
    /// The model whose tokenizer reads it.
    public var tokenizer: String?

    /// Makes the method with its defaults.
    public init() {}

    /// A trained table is read without the text that it started from.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON { readableStart(field, value) }

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws { try validatePrompt() }

    /// The values of the table.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        Double(virtualTokens) * Double(points.configuration.hiddenSize)
    }

    /// Makes the table.
    ///
    /// - Throws: `PEFTError` when the text to start from has no tokens; what reading a tokenizer throws.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let table = try Trainable(
            "prompt_embeddings", startingPrompt(for: points.embedding, seed: seed), device: points.device)
        var attachment = Attachment(trainables: [table], updates: [])
        let slot = PromptSlot(virtualTokens: virtualTokens, dtype: points.backbone.dtype) { _ in table.tensor }
        attachment.others = [Attached(points.embedding, slot)]
        return attachment
    }
}
