import Formats

/// Reads a tokenizer.json: one method a component, so that a new kind of component has its one place.
struct TokenizerJSONReader {
    let path: String
    let json: JSON

    func parts() throws -> Tokenizer.Parts {
        try expectNothing("normalizer", supported: "none")
        try expectPostProcessor()
        guard try component("decoder")?.type == "ByteLevel" else {
            throw unsupported("decoder", try component("decoder")?.type, supported: "ByteLevel")
        }
        let preTokenizer = try preTokenizer(try component("pre_tokenizer"))
        guard case .byteLevel = preTokenizer.stages.last,
            preTokenizer.stages.filter(\.isByteLevel).count == 1
        else {
            throw unsupported("pre_tokenizer", nil, supported: "ByteLevel, or a Sequence of Digits that ends with it")
        }
        let added = try addedTokens()
        let (model, vocabulary) = try bytePairModel(added)
        return Tokenizer.Parts(
            model: model, written: vocabulary.written, bytes: vocabulary.bytes, preTokenizer: preTokenizer,
            addedTokens: added)
    }

    // MARK: Pipeline

    private func component(_ key: String) throws -> (type: String, json: JSON)? {
        guard let value = json[key], !value.isNull else { return nil }
        guard let type = value["type"]?.string else { throw error(key, "expected an object with a \"type\"") }
        return (type, value)
    }

    private func expectNothing(_ key: String, supported: String) throws {
        if let found = try component(key) { throw unsupported(key, found.type, supported: supported) }
    }

    /// The only post-processor that changes no tokens trims blanks off their places.
    private func expectPostProcessor() throws {
        guard let found = try component("post_processor"), found.type != "ByteLevel" else { return }
        throw unsupported("post_processor", found.type, supported: "none and ByteLevel")
    }

    private func preTokenizer(_ found: (type: String, json: JSON)?) throws -> PreTokenizer {
        let supported = "ByteLevel, Digits and Sequence"
        guard let found else { throw unsupported("pre_tokenizer", nil, supported: supported) }
        switch found.type {
        case "ByteLevel":
            return .byteLevel(
                addPrefixSpace: try flag(found.json, "add_prefix_space", default: true),
                useRegex: try flag(found.json, "use_regex", default: true))
        case "Digits":
            return .digits(individual: try flag(found.json, "individual_digits", default: false))
        case "Sequence":
            guard let steps = found.json["pretokenizers"]?.array else {
                throw error("pre_tokenizer", "a Sequence needs a list \"pretokenizers\"")
            }
            return .sequence(
                try steps.map { step in
                    guard let type = step["type"]?.string else {
                        throw error("pre_tokenizer", "each step needs a \"type\"")
                    }
                    guard type != "Sequence" else {
                        throw unsupported("pre_tokenizer", "Sequence inside a Sequence", supported: supported)
                    }
                    return try preTokenizer((type, step))
                })
        default: throw unsupported("pre_tokenizer", found.type, supported: supported)
        }
    }

    private func addedTokens() throws -> [AddedToken] {
        guard let list = json["added_tokens"], !list.isNull else { return [] }
        guard let list = list.array else { throw error("added_tokens", "expected a list, found \(list.kind)") }
        return try list.map { token in
            guard let id = token["id"]?.int, id >= 0, let content = token["content"]?.string, !content.utf8.isEmpty
            else {
                throw error("added_tokens", "each token needs an \"id\" from 0 on and a \"content\"")
            }
            let isSpecial = try flag(token, "special", default: false)
            return AddedToken(
                id: id, content: content, isSpecial: isSpecial,
                singleWord: try flag(token, "single_word", default: false),
                lstrip: try flag(token, "lstrip", default: false), rstrip: try flag(token, "rstrip", default: false),
                normalized: try flag(token, "normalized", default: !isSpecial))
        }
    }

    private func flag(_ json: JSON, _ key: String, default fallback: Bool) throws -> Bool {
        guard let value = json[key], !value.isNull else { return fallback }
        guard let flag = value.bool else { throw error(key, "expected true or false, found \(value.kind)") }
        return flag
    }

    // MARK: Model

    private func bytePairModel(_ added: [AddedToken]) throws -> (ByteLevelBPE, ByteLevelVocabulary) {
        guard let model = json["model"], model.object != nil else { throw error("model", "expected an object") }
        let type = model["type"]?.string ?? (model["merges"] == nil ? nil : "BPE")
        guard type == "BPE" else { throw unsupported("model", type, supported: "BPE") }
        try expectPlain(model)
        let vocabulary = ByteLevelVocabulary(
            tokens: try tokens(model, added), plain: Set(added.map(\.id)), origin: path)
        var options = ByteLevelVocabulary.Options(
            fusesUnknown: try flag(model, "fuse_unk", default: false),
            ignoresMerges: try flag(model, "ignore_merges", default: false))
        if let unknown = model["unk_token"], !unknown.isNull {
            guard let text = unknown.string, let id = vocabulary.id(of: text) else {
                throw error("model.unk_token", "expected a token of the vocabulary")
            }
            options.unknownToken = id
        }
        return (try vocabulary.model(merges: try merges(model), options: options), vocabulary)
    }

    /// Refuses the options that byte-level models do not use.
    private func expectPlain(_ model: JSON) throws {
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            guard let value = model[key], !value.isNull, value.string != "" else { continue }
            throw error("model.\(key)", "a byte-level BPE model with this option is not supported; expected null")
        }
        guard try !flag(model, "byte_fallback", default: false) else {
            throw error("model.byte_fallback", "a BPE model with byte fallback is not supported; expected false")
        }
        guard let dropout = model["dropout"], !dropout.isNull, dropout.double != 0 else { return }
        throw error("model.dropout", "random dropping of merges is not supported; expected null")
    }

    /// The tokens by number; a number that nothing has is the empty string.
    private func tokens(_ model: JSON, _ added: [AddedToken]) throws -> [String] {
        guard let pairs = model["vocab"]?.object else { throw error("model.vocab", "expected an object") }
        let entries = pairs.count + added.count
        // Numbers may have gaps, but a file of a few tokens cannot ask for a table of millions.
        let limit = 4 * entries + 4096
        var tokens: [String] = []
        tokens.reserveCapacity(entries)
        func place(_ token: String, _ id: Int?) throws {
            guard let id, (0..<limit).contains(id) else {
                throw error("model.vocab", "the token \(pythonRepr(token)) has no number from 0 to \(limit - 1)")
            }
            while tokens.count <= id { tokens.append("") }
            guard tokens[id].utf8.isEmpty || tokens[id].hasSameScalars(as: token) else {
                throw error(
                    "model.vocab", "\(pythonRepr(tokens[id])) and \(pythonRepr(token)) both have the number \(id)")
            }
            tokens[id] = token
        }
        for pair in pairs { try place(pair.key, pair.value.int) }
        for token in added { try place(token.content, token.id) }
        return tokens
    }

    /// Merges are written `"a b"` or `["a", "b"]`.
    private func merges(_ model: JSON) throws -> [String] {
        guard let merges = model["merges"]?.array else { throw error("model.merges", "expected a list") }
        return try merges.enumerated().map { rank, merge in
            if let text = merge.string { return text }
            guard let parts = merge.array, parts.count == 2, let left = parts[0].string, let right = parts[1].string
            else {
                throw error("model.merges", "merge \(rank) must be \"a b\" or [\"a\", \"b\"]")
            }
            guard !left.utf8.contains(UInt8(ascii: " ")) else {
                throw error("model.merges", "merge \(rank) has a blank, which byte-level tokens never have")
            }
            return left + " " + right
        }
    }

    // MARK: Errors

    private func error(_ key: String, _ message: String) -> TokenizerError {
        TokenizerError("\(path), \"\(key)\": \(message)")
    }

    private func unsupported(_ key: String, _ type: String?, supported: String) -> TokenizerError {
        let found = type.map { pythonRepr($0) } ?? "what is there"
        return error(key, "\(found) is not supported; supported is \(supported)")
    }
}

extension PreTokenizer {
    fileprivate var isByteLevel: Bool {
        if case .byteLevel = self { true } else { false }
    }
}
