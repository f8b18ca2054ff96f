import Formats

/// Reads a byte-pair model.
struct BytePairReader {
    let component: JSONComponent
    /// Whether the pieces reach the model as raw bytes.
    let isByteLevel: Bool

    func model() throws -> BytePairModel {
        if let dropout = component.json["dropout"], !dropout.isNull, dropout.double != 0 {
            throw component.error("dropout", "random dropping of merges is not supported; expected null")
        }
        let vocabulary = try ModelJSON.vocabulary(component)
        let prefix = try component.optionalString("continuing_subword_prefix") ?? ""
        let suffix = try component.optionalString("end_of_word_suffix") ?? ""
        let hasFallback = try component.flag("byte_fallback", default: false)
        let builder = BytePairBuilder(
            vocabulary: vocabulary, origin: "\(component.path), \"\(component.key).merges\"", prefix: Array(prefix.utf8)
        )
        var unknown: Int?
        if let text = try component.optionalString("unk_token") {
            unknown = vocabulary.number(of: text)
            guard unknown != nil else {
                throw component.error("unk_token", "\(pythonRepr(text)) is no token of the vocabulary")
            }
        }
        return BytePairModel(
            vocabulary: vocabulary, merges: try builder.merges(try merges()),
            alphabet: isByteLevel && prefix.isEmpty && suffix.isEmpty && !hasFallback
                ? builder.byteAlphabet
                : .characters(
                    CharacterAlphabet(
                        prefix: Array(prefix.utf8), suffix: Array(suffix.utf8),
                        byteTokens: hasFallback ? builder.fallbackTokens : nil)),
            unknownToken: unknown.map { UInt32($0) },
            fusesUnknown: try component.flag("fuse_unk", default: false),
            ignoresMerges: try component.flag("ignore_merges", default: false))
    }

    /// Whether the model's tokens can stand for raw bytes.
    static func canTakeBytes(_ component: JSONComponent) throws -> Bool {
        let type = component.json["type"]?.string ?? (component.json["merges"] == nil ? "" : "BPE")
        let affixes = [component.json["continuing_subword_prefix"], component.json["end_of_word_suffix"]]
        return try type == "BPE" && affixes.allSatisfy { ($0?.string ?? "").utf8.isEmpty }
            && !component.flag("byte_fallback", default: false)
    }

    /// Merges are written `"a b"` or `["a", "b"]`.
    private func merges() throws -> [(String, String)] {
        guard let merges = component.json["merges"]?.array else { throw component.error("merges", "expected a list") }
        return try merges.enumerated().map { rank, merge in
            if let text = merge.string, let pair = BytePairBuilder.pair(text) { return pair }
            guard let parts = merge.array, parts.count == 2, let left = parts[0].string, let right = parts[1].string
            else {
                throw component.error("merges", "merge \(rank) must be \"a b\" or [\"a\", \"b\"]")
            }
            return (left, right)
        }
    }
}

/// Makes the tables of a byte-pair model.
struct BytePairBuilder {
    let vocabulary: ByteStringTable
    /// Where the merges come from, for messages.
    let origin: String
    /// What the right part of a merge has and the joined token lacks.
    var prefix: [UInt8] = []

    /// Cuts `"left right"` at its only blank.
    static func pair(_ text: String) -> (String, String)? {
        guard let cut = text.utf8.firstIndex(of: UInt8(ascii: " ")) else { return nil }
        let right = text[text.utf8.index(after: cut)...]
        guard !right.utf8.contains(UInt8(ascii: " ")) else { return nil }
        return (String(text[..<cut]), String(right))
    }

    /// The table of the merges, which are given from the first to the last.
    ///
    /// - Throws: ``TokenizerError`` when a merge is of or to something that is no token.
    func merges(_ pairs: [(String, String)]) throws -> MergeTable {
        var table = MergeTable(reserving: pairs.count)
        var joined: [UInt8] = []
        for (rank, (left, right)) in pairs.enumerated() {
            joined.removeAll(keepingCapacity: true)
            joined.append(contentsOf: left.utf8)
            joined.append(contentsOf: right.utf8.dropFirst(prefix.count))
            let id = joined.withUnsafeBufferPointer { $0.isEmpty ? nil : vocabulary.number(of: $0) }
            guard let leftID = vocabulary.number(of: left), let rightID = vocabulary.number(of: right), let id else {
                throw TokenizerError(
                    "\(origin): merge \(rank) \(pythonRepr(left + " " + right)) must be two tokens of the vocabulary "
                        + "which joined are a token too")
            }
            table.insert(UInt32(leftID), UInt32(rightID), rank: UInt32(truncatingIfNeeded: rank), token: UInt32(id))
        }
        return table
    }

    /// The alphabet of a vocabulary that writes bytes as characters.
    var byteAlphabet: BytePairAlphabet {
        var pieces = ByteStringTable(reserving: vocabulary.count)
        var piece: [UInt8] = []
        for id in 0..<vocabulary.count {
            piece.removeAll(keepingCapacity: true)
            vocabulary.withBytes(of: id) { _ = ByteLevelAlphabet.appendBytesIfWritten($0, to: &piece) }
            pieces.append(piece)
        }
        pieces.index()
        var tokens: [UInt32?] = []
        for byte in 0..<256 {
            let written = ByteLevelAlphabet.written([UInt8(truncatingIfNeeded: byte)])
            tokens.append(vocabulary.number(of: written).map { UInt32($0) })
        }
        return .bytes(tokens: tokens, pieces: pieces)
    }

    /// The tokens `<0x00>` to `<0xFF>`.
    var fallbackTokens: [UInt32?] {
        (0..<256).map { (byte: Int) -> UInt32? in
            let digits = String(byte, radix: 16, uppercase: true)
            let token = "<0x" + (byte < 16 ? "0" : "") + digits + ">"
            return vocabulary.number(of: token).map { UInt32($0) }
        }
    }
}
