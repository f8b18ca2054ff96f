import Formats

extension Tokenizer {
    /// Loads the tokenizer of a GGUF file.
    ///
    /// - Throws: ``TokenizerError`` or `FormatError` when the file has none, a broken one, or one of a kind that is not
    ///   supported; the message names what is.
    public init(gguf file: GGUFFile) throws {
        let reader = GGUFTokenizerReader(file: file)
        self.init(try reader.parts())
    }
}

/// Reads the keys `tokenizer.*` of a GGUF file.
private struct GGUFTokenizerReader {
    let file: GGUFFile

    /// The splitting rules by the name in `tokenizer.ggml.pre`.
    static let preTokenizers: [String: PreTokenizer] = [
        "gpt-2": .byteLevel(addPrefixSpace: false, useRegex: true),
        "smollm": .sequence([.digits(individual: true), .byteLevel(addPrefixSpace: false, useRegex: true)]),
    ]

    /// Control tokens that end a turn in the common templates, for files that do not name theirs.
    static let endOfTurnTokens = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]

    func parts() throws -> Tokenizer.Parts {
        let preTokenizer = try preTokenizer()
        let tokens = try strings("tokenizer.ggml.tokens")
        guard !tokens.isEmpty, tokens.count <= Int(Int32.max) else {
            throw error("tokenizer.ggml.tokens", "expected at least one token, found \(tokens.count)")
        }
        let added = try addedTokens(tokens)
        let special = SpecialTokens(
            bos: try id("bos", tokens.count), eos: try id("eos", tokens.count),
            pad: try id("padding", tokens.count), unk: try id("unknown", tokens.count))
        let named = [special.eos, try id("eot", tokens.count), try id("eom", tokens.count)].compactMap(\.self)
        let known = added.filter { $0.isSpecial && Self.endOfTurnTokens.contains($0.content) }.map(\.id)
        let splitter = try PieceSplitter(preTokenizer, allowsRawBytes: true)
        var parts = Tokenizer.Parts(model: try model(tokens), preTokenizer: preTokenizer, splitter: splitter)
        parts.addedTokens = added
        parts.addedTokensArePlain = true
        parts.specialTokens = special
        parts.stopTokenIDs = named + known
        parts.postProcessor = PostProcessor(
            bos: file.metadata["tokenizer.ggml.add_bos_token"]?.bool ?? false ? special.bos : nil,
            eos: file.metadata["tokenizer.ggml.add_eos_token"]?.bool ?? false ? special.eos : nil)
        parts.chatTemplateSource = file.metadata["tokenizer.chat_template"]?.string
        return parts
    }

    private func model(_ tokens: [String]) throws -> BytePairModel {
        var vocabulary = ByteStringTable(reserving: tokens.count)
        for token in tokens { vocabulary.append(token.utf8) }
        vocabulary.index()
        let builder = BytePairBuilder(vocabulary: vocabulary, origin: file.file.path + ", tokenizer.ggml.merges")
        let merges = try strings("tokenizer.ggml.merges").enumerated().map { rank, merge in
            guard let pair = BytePairBuilder.pair(merge) else {
                throw error("tokenizer.ggml.merges", "merge \(rank) \(pythonRepr(merge)) must be two tokens with a blank")
            }
            return pair
        }
        return BytePairModel(
            vocabulary: vocabulary, merges: try builder.merges(merges), alphabet: builder.byteAlphabet,
            unknownToken: nil, fusesUnknown: false, ignoresMerges: false)
    }

    private func preTokenizer() throws -> PreTokenizer {
        let model = try string("tokenizer.ggml.model")
        guard model == "gpt2" else {
            throw error(
                "tokenizer.ggml.model",
                "the tokenizer model \(pythonRepr(model)) is not supported; supported is "
                    + "\"gpt2\" (byte-level BPE)")
        }
        let name = try string("tokenizer.ggml.pre")
        guard let preTokenizer = Self.preTokenizers[name] else {
            let names = Self.preTokenizers.keys.sorted().map { "\"\($0)\"" }.joined(separator: ", ")
            throw error(
                "tokenizer.ggml.pre", "the pre-tokenizer \(pythonRepr(name)) is not supported; supported are \(names)")
        }
        return preTokenizer
    }

    /// The tokens whose type says that they are recognised in text: unknown (2), control (3) and user defined (4).
    private func addedTokens(_ tokens: [String]) throws -> [AddedToken] {
        let key = "tokenizer.ggml.token_type"
        guard let value = file.metadata[key] else { return [] }
        guard let array = value.array else { throw error(key, "expected an array of integers") }
        let types = try array.ints()
        guard types.count == tokens.count else {
            throw error(key, "expected one type for each of the \(tokens.count) tokens, found \(types.count)")
        }
        return types.indices.filter { (2...4).contains(types[$0]) && !tokens[$0].utf8.isEmpty }.map {
            AddedToken(id: $0, content: tokens[$0], isSpecial: types[$0] != 4)
        }
    }

    private func id(_ role: String, _ count: Int) throws -> Int? {
        let key = "tokenizer.ggml.\(role)_token_id"
        guard let value = file.metadata[key] else { return nil }
        guard let id = value.int, (0..<count).contains(id) else {
            throw error(key, "expected the number of one of the \(count) tokens")
        }
        return id
    }

    private func string(_ key: String) throws -> String {
        guard let string = try file.value(key).string else { throw error(key, "expected a string") }
        return string
    }

    private func strings(_ key: String) throws -> [String] {
        guard let array = try file.value(key).array else { throw error(key, "expected an array of strings") }
        return try array.strings()
    }

    private func error(_ key: String, _ message: String) -> TokenizerError {
        TokenizerError("\(file.file.path), \"\(key)\": \(message)")
    }
}
