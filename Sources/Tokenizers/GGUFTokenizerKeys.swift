import Formats

/// The keys `tokenizer.*` of a GGUF file.
struct GGUFTokenizerKeys {
    let file: GGUFFile

    /// The text under a key, which must be there.
    func string(_ key: String) throws -> String {
        guard let string = try file.value(key).string else { throw error(key, "expected a string") }
        return string
    }

    /// The list of texts under a key, which must be there.
    func strings(_ key: String) throws -> [String] {
        guard let array = try file.value(key).array else { throw error(key, "expected an array of strings") }
        return try array.strings()
    }

    /// A truth value, or nil when there is none.
    func flag(_ key: String) throws -> Bool? {
        guard let value = file.metadata[key] else { return nil }
        guard let flag = value.bool else { throw error(key, "expected true or false") }
        return flag
    }

    /// The number of the token with a role, or nil when there is none.
    func id(_ role: String, below count: Int) throws -> Int? {
        let key = "tokenizer.ggml.\(role)_token_id"
        guard let value = file.metadata[key] else { return nil }
        guard let id = value.int, (0..<count).contains(id) else {
            throw error(key, "expected the number of one of the \(count) tokens")
        }
        return id
    }

    /// The kind of each token, where the file says.
    func kinds(_ count: Int) throws -> [GGUFTokenKind]? {
        let key = "tokenizer.ggml.token_type"
        guard let value = file.metadata[key] else { return nil }
        guard let array = value.array else { throw error(key, "expected an array of integers") }
        let kinds = try array.ints()
        guard kinds.count == count else {
            throw error(key, "expected one type for each of the \(count) tokens, found \(kinds.count)")
        }
        return kinds.map { GGUFTokenKind(rawValue: $0) ?? .normal }
    }

    /// The score of each token.
    func scores(_ count: Int) throws -> [Double] {
        let key = "tokenizer.ggml.scores"
        guard let array = try file.value(key).array else { throw error(key, "expected an array of numbers") }
        let scores = try array.doubles()
        guard scores.count == count, scores.allSatisfy(\.isFinite) else {
            throw error(key, "expected one finite number for each of the \(count) tokens")
        }
        return scores
    }

    /// The bytes under a key, or nil when there are none.
    func bytes(_ key: String) throws -> [UInt8]? {
        guard let value = file.metadata[key] else { return nil }
        guard let array = value.array, [.uint8, .int8].contains(array.elementType) else {
            throw error(key, "expected an array of bytes")
        }
        return try array.ints().map { UInt8(truncatingIfNeeded: $0) }
    }

    /// A complaint about a key.
    func error(_ key: String, _ message: String) -> TokenizerError {
        TokenizerError("\(file.file.path), \"\(key)\": \(message)")
    }
}

/// What a token of a GGUF vocabulary is, by the number in `tokenizer.ggml.token_type`.
enum GGUFTokenKind: Int {
    case normal = 1
    case unknown, control, userDefined, unused, byte
}
