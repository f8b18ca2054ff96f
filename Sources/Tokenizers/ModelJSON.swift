import Formats

/// Makes the model of a tokenizer.json: one line a kind.
enum ModelJSON {
    /// What makes a model from the object `model` of the file.
    typealias Maker = @Sendable (_ component: JSONComponent, _ context: Context) throws -> any TokenizerModel

    /// What a maker may need to know of the rest of the file.
    struct Context {
        /// Whether the pieces reach the model as raw bytes although its tokens are written in the byte-level alphabet.
        var isByteLevel: Bool
    }

    /// The kinds by the name that tokenizer.json gives them.
    static let makers: [String: Maker] = [
        "BPE": { WordwiseModel.wordwise(try BytePairReader(component: $0, isByteLevel: $1.isByteLevel).model()) },
        "Unigram": { component, _ in try Unigram(component) },
        "WordLevel": { component, _ in try WordLevel(component) },
        "WordPiece": { component, _ in try WordPiece(component) },
    ]

    /// Reads the model.
    static func model(_ component: JSONComponent, _ context: Context) throws -> any TokenizerModel {
        guard component.json.object != nil else { throw component.error("expected an object") }
        let type = try component.optionalString("type") ?? guessedType(component.json)
        guard let type else { throw component.error("expected an object with a \"type\"") }
        guard let maker = makers[type] else { throw component.unsupported(type, supported: Array(makers.keys)) }
        return try maker(component, context)
    }

    /// Old files do not name the kind of model; they are told apart by what they have, in the reference's order.
    private static func guessedType(_ json: JSON) -> String? {
        if json["merges"] != nil { return "BPE" }
        if json["continuing_subword_prefix"] != nil { return "WordPiece" }
        if json["vocab"]?.object != nil { return "WordLevel" }
        return json["vocab"]?.array != nil ? "Unigram" : nil
    }

    /// The number of the token that `unk_token` names, which models of whole words cannot do without.
    static func unknownToken(
        _ component: JSONComponent, _ vocabulary: ByteStringTable, default fallback: String
    ) throws -> Int {
        var text = try component.optionalString("unk_token") ?? fallback
        guard let token = text.withUTF8({ vocabulary.number(of: $0) }) else {
            throw component.error("unk_token", "expected a token of the vocabulary, found \(pythonRepr(text))")
        }
        return token
    }

    /// Reads a vocabulary `{token: number}` into a table under the tokens' numbers, indexed by content.
    ///
    /// Numbers may have gaps, but a file of a few tokens cannot ask for a table of millions.
    static func vocabulary(_ component: JSONComponent) throws -> ByteStringTable {
        guard let pairs = component.json["vocab"]?.object else { throw component.error("vocab", "expected an object") }
        let limit = 4 * pairs.count + 65_536
        var tokens: [String?] = []
        tokens.reserveCapacity(pairs.count)
        for pair in pairs {
            guard let id = pair.value.int, (0..<limit).contains(id) else {
                throw component.error(
                    "vocab", "the token \(pythonRepr(pair.key)) has no number from 0 to \(limit - 1)")
            }
            while tokens.count <= id { tokens.append(nil) }
            if let other = tokens[id] {
                throw component.error(
                    "vocab", "\(pythonRepr(other)) and \(pythonRepr(pair.key)) both have the number \(id)")
            }
            tokens[id] = pair.key
        }
        var table = ByteStringTable(reserving: tokens.count)
        for token in tokens { table.append((token ?? "").utf8) }
        table.index()
        return table
    }
}
