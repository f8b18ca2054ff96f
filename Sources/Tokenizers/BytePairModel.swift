/// Byte-pair encoding: every piece begins as single bytes or characters, and ranked merges join them.
struct BytePairModel: TokenizerModel {
    let vocabulary: ByteStringTable
    let merges: MergeTable
    let alphabet: BytePairAlphabet
    /// What stands for what the vocabulary lacks; without it that is dropped, as the reference does.
    let unknownToken: UInt32?
    /// Whether a run of unknown characters gives one token.
    let fusesUnknown: Bool
    /// A piece that is a token as a whole is not merged (`ignore_merges`).
    let ignoresMerges: Bool

    var name: String { "BPE" }

    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken]) {
        if ignoresMerges, let whole = alphabet.whole(piece, vocabulary) {
            let end = Int32(truncatingIfNeeded: piece.count)
            output.append(PieceToken(token: UInt32(whole), start: 0, end: end))
            return
        }
        var symbols = BytePairSymbols(
            unknownToken: unknownToken, fusesUnknown: fusesUnknown, symbols: scratch.merger.takeSymbols())
        alphabet.forEachSymbol(piece, vocabulary, &symbols)
        scratch.merger.symbols = symbols.finished()
        scratch.merger.merge(merges)
        output.append(contentsOf: scratch.merger.symbols)
    }
}

/// Collects the first symbols of a piece.
struct BytePairSymbols {
    fileprivate let unknownToken: UInt32?
    fileprivate let fusesUnknown: Bool
    fileprivate var symbols: [PieceToken]
    /// An unknown token that the next one may join; as in the reference it waits for the next known character.
    private var unknown: PieceToken?

    fileprivate init(unknownToken: UInt32?, fusesUnknown: Bool, symbols: [PieceToken]) {
        self.unknownToken = unknownToken
        self.fusesUnknown = fusesUnknown
        self.symbols = symbols
    }

    /// Adds a token of the vocabulary.
    @inline(__always)
    mutating func append(_ token: UInt32, _ start: Int, _ end: Int) {
        flush()
        appendByte(token, start, end)
    }

    /// Adds a token for one byte of a character that the vocabulary lacks.
    @inline(__always)
    mutating func appendByte(_ token: UInt32, _ start: Int, _ end: Int) {
        symbols.append(
            PieceToken(token: token, start: Int32(truncatingIfNeeded: start), end: Int32(truncatingIfNeeded: end)))
    }

    /// Adds something that the vocabulary cannot write.
    mutating func appendUnknown(_ start: Int, _ end: Int) {
        guard let unknownToken else { return }
        let end = Int32(truncatingIfNeeded: end)
        if fusesUnknown, unknown != nil {
            unknown?.end = end
        } else {
            flush()
            unknown = PieceToken(token: unknownToken, start: Int32(truncatingIfNeeded: start), end: end)
        }
    }

    private mutating func flush() {
        guard let waiting = unknown else { return }
        symbols.append(waiting)
        unknown = nil
    }

    fileprivate mutating func finished() -> [PieceToken] {
        flush()
        return symbols
    }
}

/// What the pieces of a byte-pair model begin as.
enum BytePairAlphabet: Sendable {
    /// Single bytes: the token of each, and the tokens that whole pieces may be.
    case bytes(tokens: [UInt32?], pieces: ByteStringTable)
    /// Single characters.
    case characters(CharacterAlphabet)

    fileprivate func whole(_ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: ByteStringTable) -> Int? {
        switch self {
        case .bytes(_, let pieces): pieces.number(of: piece)
        case .characters: vocabulary.number(of: piece)
        }
    }

    fileprivate func forEachSymbol(
        _ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: ByteStringTable, _ symbols: inout BytePairSymbols
    ) {
        switch self {
        case .bytes(let tokens, _):
            for (index, byte) in piece.enumerated() {
                if let token = tokens[Int(byte)] {
                    symbols.append(token, index, index + 1)
                } else {
                    symbols.appendUnknown(index, index + 1)
                }
            }
        case .characters(let alphabet): alphabet.forEachSymbol(piece, vocabulary, &symbols)
        }
    }
}

/// The alphabet of a byte-pair model whose pieces begin as characters.
struct CharacterAlphabet: Sendable {
    /// Stands before every character but the first of a piece.
    let prefix: [UInt8]
    /// Stands after the last character of a piece.
    let suffix: [UInt8]
    /// The tokens `<0x00>` to `<0xFF>` for the bytes of characters that the vocabulary lacks; nil without byte fallback.
    let byteTokens: [UInt32?]?

    fileprivate func forEachSymbol(
        _ piece: UnsafeBufferPointer<UInt8>, _ vocabulary: ByteStringTable, _ symbols: inout BytePairSymbols
    ) {
        var written: [UInt8] = []
        var index = 0
        while index < piece.count {
            let end = index + DecodedScalar(piece, at: index, end: piece.count).length
            let isPlain = (prefix.isEmpty || index == 0) && (suffix.isEmpty || end < piece.count)
            if isPlain {
                let character = UnsafeBufferPointer(rebasing: piece[index..<end])
                add(character, vocabulary.number(of: character), index, end, &symbols)
            } else {
                written.removeAll(keepingCapacity: true)
                if index > 0 { written.append(contentsOf: prefix) }
                written.append(contentsOf: piece[index..<end])
                if end == piece.count { written.append(contentsOf: suffix) }
                written.withUnsafeBufferPointer { add($0, vocabulary.number(of: $0), index, end, &symbols) }
            }
            index = end
        }
    }

    @inline(__always)
    private func add(
        _ written: UnsafeBufferPointer<UInt8>, _ token: Int?, _ start: Int, _ end: Int, _ symbols: inout BytePairSymbols
    ) {
        if let token { return symbols.append(UInt32(token), start, end) }
        guard let byteTokens, written.allSatisfy({ byteTokens[Int($0)] != nil }) else {
            return symbols.appendUnknown(start, end)
        }
        // Prefix and suffix count as bytes of the character here, and its last byte has the rest of it.
        for (offset, byte) in written.enumerated() {
            let place = min(start + offset, end - 1)
            if let token = byteTokens[Int(byte)] { symbols.appendByte(token, place, min(start + offset + 1, end)) }
        }
    }
}
