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

/// A method that trains vectors in front of the tokens.
protocol PromptMethod: Method {
    var virtualTokens: Int { get set }
    var start: PromptStart { get set }
    var startText: String? { get set }
    var tokenizer: String? { get set }
}

extension PromptMethod {
    /// The settings of the vectors.
    static var promptFields: [Field<Self>] {
        [
            Field("num_virtual_tokens", \.virtualTokens, "trained vectors in front of every row"),
            Field("prompt_tuning_init", \.start, "how the vectors start"),
            Field("prompt_tuning_init_text", \.startText, "the text whose embeddings they start as, for TEXT"),
            Field("tokenizer_name_or_path", \.tokenizer, "the model whose tokenizer reads that text"),
        ]
    }

    /// The token table is adapted, not layers.
    public static var usesLinears: Bool { false }
    /// Why no merged weight does the same.
    public static var mergeRefusal: String? {
        "virtual tokens are an input of the model, which no weight of it can take over"
    }

    /// What peft 0.21.2 writes for types of this kind.
    static func promptFolder(own: Set<String> = []) -> FolderFields {
        .virtualTokens(
            neutral: ["tokenizer_kwargs": nil], inert: ["tokenizer_kwargs"], own: own, width: \.hiddenSize,
            heads: \.numAttentionHeads)
    }

    /// A trained table is read without the text that it started from.
    static func readableStart(_ field: String, _ value: JSON) -> JSON {
        field == "prompt_tuning_init" && value == "TEXT" ? "RANDOM" : value
    }

    /// Refuses settings of the vectors that do not go together.
    func validatePrompt() throws {
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
    func startingPrompt(for embedding: TokenEmbedding, seed: Seed) throws -> Tensor {
        var stream = seed.stream("prompt.embedding")
        let shape = [virtualTokens, embedding.table.frozen.size(1)]
        switch start {
        case .random: return try Tensor.normal(shape, from: &stream)
        case .uniform: return try Tensor.uniform(shape, in: -0.5..<0.5, from: &stream)
        case .sampleVocabulary:
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
