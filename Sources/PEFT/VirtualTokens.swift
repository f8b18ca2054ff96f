import Backbones
import Formats
import Tokenizers
import Torch

/// How trained vectors in front of the tokens start.
public enum PromptStart: String, FieldValue, CaseIterable {
    /// Normal with deviation 1, far larger than most models' embeddings.
    case random = "RANDOM"
    /// Uniform within 0.5.
    case uniform = "UNIFORM"
    /// The embeddings of tokens drawn from the vocabulary.
    case sampleVocabulary = "SAMPLE_VOCAB"
    /// The embeddings of a text's tokens, cut off or repeated.
    case text = "TEXT"
}

/// What trained vectors in front of the tokens are set by.
public struct PromptSettings: Sendable {
    static let fields: [Field<PromptSettings>] = [
        Field("num_virtual_tokens", \.virtualTokens, "trained vectors in front of every row"),
        Field("prompt_tuning_init", \.start, "how the vectors start"),
        Field("prompt_tuning_init_text", \.startText, "the text whose embeddings they start as, for TEXT"),
        Field("tokenizer_name_or_path", \.tokenizer, "the model whose tokenizer reads that text"),
    ]

    /// The trained vectors.
    public var virtualTokens: Int
    /// How they start.
    public var start = PromptStart.sampleVocabulary
    /// The text that they start from.
    public var startText: String?
    /// The model whose tokenizer reads it.
    public var tokenizer: String?

    /// Makes settings of so many vectors, which start as the embeddings of drawn tokens.
    public init(virtualTokens: Int) { self.virtualTokens = virtualTokens }

    /// Refuses settings that do not go together.
    func validate() throws {
        try requirePositive(virtualTokens, "num_virtual_tokens")
        guard start == .text else { return }
        guard let startText, !startText.isEmpty else {
            throw PEFTError("prompt_tuning_init_text: expected the text that prompt_tuning_init TEXT starts from")
        }
        guard tokenizer != nil else {
            throw PEFTError(
                "tokenizer_name_or_path: expected the model whose tokenizer reads prompt_tuning_init_text")
        }
    }

    /// The vectors at the start, `[n, hidden]`.
    func vectors(for embedding: TokenEmbedding, seed: Seed) throws -> Tensor {
        let shape = [virtualTokens, embedding.table.frozen.size(1)]
        let name = "prompt.embedding"
        switch start {
        case .random: return try seed.normal(name, shape)
        case .uniform: return try seed.uniform(name, shape, within: 0.5)
        case .sampleVocabulary:
            var stream = seed.stream(name)
            let vocabulary = embedding.table.frozen.size(0)
            return try embedding.table.rows(Tensor((0..<virtualTokens).map { _ in stream.below(vocabulary) }))
        case .text:
            let ids = try textTokens()
            return try embedding.table.rows(Tensor((0..<virtualTokens).map { ids[$0 % ids.count] }))
        }
    }

    private func textTokens() throws -> [Int] {
        let reader: Tokenizer
        switch try ModelCatalog.locate(tokenizer ?? "") {
        case .folder(let path): reader = try Tokenizer(folder: path)
        case .gguf(let path): reader = try Tokenizer(gguf: GGUFFile(path: path))
        }
        let ids = reader.encode(startText ?? "", addSpecialTokens: true)
        guard !ids.isEmpty else { throw PEFTError("prompt_tuning_init_text: the text has no tokens") }
        return ids
    }
}

/// A method that trains vectors in front of the tokens.
protocol PromptMethod: Method {
    var prompt: PromptSettings { get set }
}

extension PromptMethod {
    /// The settings of the vectors.
    static var promptFields: [Field<Self>] { PromptSettings.fields.map { $0.within(\.prompt) } }
    /// The token table is adapted, not layers.
    public static var usesLinears: Bool { false }
    /// Why no merged weight does the same.
    public static var mergeRefusal: String? {
        "virtual tokens are an input of the model, which no weight of it can take over"
    }
    /// What peft 0.21.2 writes for types of this kind: the model that a folder belongs to.
    public static var folderFields: FolderFields {
        .virtualTokens(
            neutral: ["tokenizer_kwargs": nil], inert: ["tokenizer_kwargs"], width: \.hiddenSize,
            heads: \.numAttentionHeads)
    }

    /// A trained table is read without the text that it started from.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON {
        field == "prompt_tuning_init" && value == "TEXT" ? "RANDOM" : value
    }
}

/// Trained vectors in front of every row.
class PromptSlot: EmbeddingAdapter {
    let virtualTokens: Int
    private let table: (Context) throws -> Tensor
    private let dtype: DType

    init(virtualTokens: Int, dtype: DType, table: @escaping (Context) throws -> Tensor) {
        (self.virtualTokens, self.dtype, self.table) = (virtualTokens, dtype, table)
    }

    func prompt(for embedding: TokenEmbedding, in context: Context) throws -> Tensor? {
        try table(context).to(dtype: dtype)
    }

    func embeddings(_ embedded: Tensor, at positions: Tensor, in context: Context) throws -> Tensor { embedded }
}
