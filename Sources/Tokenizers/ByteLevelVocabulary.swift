/// A byte-level vocabulary while it is being loaded, from whichever file.
struct ByteLevelVocabulary {
    /// The tokens as written, findable by content.
    private(set) var written: ByteStringTable
    /// The tokens as bytes of text.
    private(set) var bytes: ByteStringTable
    /// Where the vocabulary comes from, for messages.
    let origin: String

    /// Takes the tokens in the order of their numbers; an empty string is a number without a token.
    ///
    /// - Parameters:
    ///   - tokens: The tokens as the vocabulary writes them.
    ///   - plain: Numbers of added tokens, which are written as they are and not in the byte-level alphabet.
    ///   - origin: Where the vocabulary comes from, for messages.
    init(tokens: [String], plain: Set<Int>, origin: String) {
        self.origin = origin
        written = ByteStringTable(reserving: tokens.count)
        bytes = ByteStringTable(reserving: tokens.count)
        for (id, var token) in tokens.enumerated() {
            token.withUTF8 { utf8 in
                written.append { $0.append(contentsOf: utf8) }
                bytes.append { output in
                    if plain.contains(id) {
                        output.append(contentsOf: utf8)
                    } else {
                        ByteLevelAlphabet.appendBytes(of: utf8, to: &output)
                    }
                }
            }
        }
        written.index()
    }

    /// The number of a token as written, or nil.
    func id(of token: String) -> Int? {
        var token = token
        return token.withUTF8 { $0.isEmpty ? nil : written.number(of: $0) }
    }

    /// The options of tokenizer.json's byte-pair model.
    struct Options {
        var unknownToken: Int?
        var fusesUnknown = false
        var ignoresMerges = false
    }

    /// Makes the model.
    ///
    /// - Parameters:
    ///   - merges: The merges from the first to the last, each as `"left right"`.
    ///   - options: What tokenizer.json can say beside.
    /// - Throws: ``TokenizerError`` when a merge is of or to something that is no token.
    func model(merges: [String], options: Options = Options()) throws -> ByteLevelBPE {
        var table = MergeTable(reserving: merges.count)
        var joined: [UInt8] = []
        for (rank, var merge) in merges.enumerated() {
            let added: Bool = merge.withUTF8 { text in
                guard let cut = text.firstIndex(of: UInt8(ascii: " ")) else { return false }
                let (left, right) = (text[..<cut], text[(cut + 1)...])
                joined.removeAll(keepingCapacity: true)
                joined.append(contentsOf: left)
                joined.append(contentsOf: right)
                guard let leftID = written.number(of: UnsafeBufferPointer(rebasing: left)),
                    let rightID = written.number(of: UnsafeBufferPointer(rebasing: right)),
                    let joinedID = joined.withUnsafeBufferPointer({ written.number(of: $0) })
                else { return false }
                table.insert(
                    UInt32(leftID), UInt32(rightID), rank: UInt32(truncatingIfNeeded: rank), token: UInt32(joinedID))
                return true
            }
            guard added else {
                throw TokenizerError(
                    "\(origin): merge \(rank) \(pythonRepr(merge)) must be two tokens of the vocabulary with a blank "
                        + "between them, which joined are a token too")
            }
        }
        var pieces = bytes
        if options.ignoresMerges { pieces.index() }
        return ByteLevelBPE(
            tokens: pieces, merges: table, byteTokens: byteTokens, unknownToken: options.unknownToken.map(UInt32.init),
            fusesUnknown: options.fusesUnknown, ignoresMerges: options.ignoresMerges)
    }

    private var byteTokens: [UInt32?] {
        (0...255).map { (byte: UInt8) in id(of: ByteLevelAlphabet.written([byte])).map(UInt32.init) }
    }
}
