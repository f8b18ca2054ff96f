import Formats
import Foundation

/// The vocabulary of a GGUF file: its model, and the stages that belong to it.
struct GGUFVocabulary {
    /// The tokens as tokenizer.json writes them.
    let tokens: [String]
    let kinds: [GGUFTokenKind]
    let model: any TokenizerModel
    let pipeline: GGUFPipeline
    /// Whether pieces reach the model as raw bytes.
    let isByteLevel: Bool
    /// What begins and ends a text where the file names no tokens for it.
    private(set) var beginning: Int?
    private(set) var end: Int?
    private let path: String

    /// Makes a vocabulary from a file's keys; `tokens` are its tokens with their kinds.
    private typealias Maker =
        @Sendable (_ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]) throws -> Self

    /// The kinds by the name in `tokenizer.ggml.model`.
    private static let makers: [String: Maker] = [
        "bert": wordPiece, "gpt2": bytePairs, "llama": sentencePieceBPE, "t5": unigram,
    ]

    /// Longer tokens than this have no use, and would make rebuilding merges slow.
    private static let longestMergedToken = 1024

    /// Reads the vocabulary of a file.
    init(_ keys: GGUFTokenizerKeys) throws {
        let name = try keys.string("tokenizer.ggml.model")
        guard let maker = Self.makers[name] else {
            throw keys.error(
                "tokenizer.ggml.model",
                "the tokenizer model \(pythonRepr(name)) is not supported; supported are "
                    + Self.list(Self.makers.keys))
        }
        if name == "gpt2" { _ = try Self.byteLevelPipeline(keys) }
        let tokens = try keys.strings("tokenizer.ggml.tokens")
        guard !tokens.isEmpty, tokens.count <= Int(Int32.max) else {
            throw keys.error("tokenizer.ggml.tokens", "expected at least one token, found \(tokens.count)")
        }
        let kinds = try keys.kinds(tokens.count) ?? [GGUFTokenKind](repeating: .normal, count: tokens.count)
        self = try maker(keys, tokens, kinds)
    }

    private init(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind], model: any TokenizerModel,
        pipeline: GGUFPipeline, isByteLevel: Bool = false
    ) {
        self.tokens = tokens
        self.kinds = kinds
        self.model = model
        self.pipeline = pipeline
        self.isByteLevel = isByteLevel
        path = keys.file.file.path
    }

    /// The stages around the model, read like those of a tokenizer.json.
    var stages: JSONComponent { JSONComponent(path: path, key: "", json: pipeline.json) }

    private static func list(_ names: some Sequence<String>) -> String {
        names.sorted().map { "\"\($0)\"" }.joined(separator: ", ")
    }

    private static func table(_ tokens: some Sequence<String>) -> ByteStringTable {
        var table = ByteStringTable()
        for token in tokens { table.append(token.utf8) }
        table.index()
        return table
    }

    @Sendable
    private static func bytePairs(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]
    ) throws -> Self {
        let pipeline = try byteLevelPipeline(keys)
        let builder = BytePairBuilder(
            vocabulary: table(tokens), origin: keys.file.file.path + ", \"tokenizer.ggml.merges\"")
        let merges = try keys.strings("tokenizer.ggml.merges").enumerated().map { rank, merge in
            guard let pair = BytePairBuilder.pair(merge) else {
                throw keys.error(
                    "tokenizer.ggml.merges",
                    "merge \(rank) \(pythonRepr(merge)) must be two tokens with a blank between them")
            }
            return pair
        }
        let model = BytePairModel(
            vocabulary: builder.vocabulary, merges: try builder.merges(merges), alphabet: builder.byteAlphabet,
            unknownToken: nil, fusesUnknown: false, ignoresMerges: pipeline.ignoresMerges)
        return Self(keys, tokens, kinds, model: model, pipeline: pipeline, isByteLevel: true)
    }

    private static func byteLevelPipeline(_ keys: GGUFTokenizerKeys) throws -> GGUFPipeline {
        let key = "tokenizer.ggml.pre"
        let name = try keys.string(key)
        if let pipeline = GGUFPipeline.byteLevel[name] { return pipeline }
        let names = list(GGUFPipeline.byteLevel.keys)
        throw keys.error(key, "the pre-tokenizer \(pythonRepr(name)) is not supported; supported are \(names)")
    }

    @Sendable
    private static func sentencePieceBPE(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]
    ) throws -> Self {
        let mergeable = tokens.indices.filter { [.normal, .userDefined, .unused].contains(kinds[$0]) }
        if let long = mergeable.first(where: { tokens[$0].utf8.count > longestMergedToken }) {
            throw keys.error(
                "tokenizer.ggml.tokens",
                "token \(long) has \(tokens[long].utf8.count) bytes; expected at most \(longestMergedToken)")
        }
        let vocabulary = table(tokens)
        let scores = try keys.scores(tokens.count)
        let byteTokens = BytePairBuilder(vocabulary: vocabulary, origin: "").fallbackTokens
        let model = BytePairModel(
            vocabulary: vocabulary, merges: ScoredMerges.table(vocabulary, scores: scores, mergeable: mergeable),
            alphabet: .characters(CharacterAlphabet(prefix: [], suffix: [], byteTokens: byteTokens)),
            unknownToken: try unknown(keys, tokens, kinds).map { UInt32($0) }, fusesUnknown: true, ignoresMerges: false)
        let addsSpace = try keys.flag("tokenizer.ggml.add_space_prefix") ?? true
        return Self(
            keys, tokens, kinds, model: WordwiseModel.wordwise(model), pipeline: .sentencePieceBPE(addsSpace: addsSpace)
        )
    }

    /// The format writes BERT's vocabulary the other way round: `▁` begins a word, and what continues one has no mark.
    @Sendable
    private static func wordPiece(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]
    ) throws -> Self {
        let mark = "\u{2581}"
        let written = tokens.indices.map { id in
            let token = tokens[id]
            if token.utf8.isEmpty || kinds[id] == .control || kinds[id] == .unknown { return token }
            guard token.utf8.starts(with: mark.utf8) else { return "##" + token }
            return String(decoding: token.utf8.dropFirst(mark.utf8.count), as: UTF8.self)
        }
        let vocabulary = table(written)
        guard let unknown = try unknown(keys, tokens, kinds) ?? vocabulary.number(of: "[UNK]") else {
            throw keys.error("tokenizer.ggml.unknown_token_id", "expected the number of the token for unknown words")
        }
        let keepsCase = vocabulary.number(of: "A") != nil
        var result = Self(
            keys, written, kinds, model: WordPiece(vocabulary, unknownToken: unknown),
            pipeline: .wordPiece(lowercases: !keepsCase))
        result.beginning = vocabulary.number(of: "[CLS]")
        result.end = try keys.id("seperator", below: tokens.count) ?? vocabulary.number(of: "[SEP]")
        return result
    }

    @Sendable
    private static func unigram(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]
    ) throws -> Self {
        guard let unknown = try unknown(keys, tokens, kinds) else {
            throw keys.error(
                "tokenizer.ggml.unknown_token_id", "expected the number of the token for what has no other")
        }
        let model = Unigram(
            table(tokens), scores: try keys.scores(tokens.count), unknownToken: unknown,
            fallsBackToBytes: kinds.contains(.byte))
        let charsmap = try keys.bytes("tokenizer.ggml.precompiled_charsmap").flatMap { $0.isEmpty ? nil : $0 }
        return Self(
            keys, tokens, kinds, model: model,
            pipeline: .unigram(
                charsmap: charsmap.map { Data($0).base64EncodedString() },
                removesExtraBlanks: try keys.flag("tokenizer.ggml.remove_extra_whitespaces") ?? true,
                addsSpace: try keys.flag("tokenizer.ggml.add_space_prefix") ?? true))
    }

    private static func unknown(
        _ keys: GGUFTokenizerKeys, _ tokens: [String], _ kinds: [GGUFTokenKind]
    ) throws -> Int? {
        try keys.id("unknown", below: tokens.count) ?? kinds.firstIndex(of: .unknown)
    }
}
