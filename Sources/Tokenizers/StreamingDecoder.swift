/// Decodes tokens as they arrive, never giving out what a later token may change.
///
/// All that ``append(_:)`` and ``finish()`` return, joined, is what ``Tokenizer/decode(_:skipSpecialTokens:)`` returns
/// for all the tokens at once. Some decoders hold text back: byte tokens until their run ends, because a run that is no
/// UTF-8 is replaced as a whole.
public struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    private let skipsSpecialTokens: Bool
    private var chain: DecoderChain

    init(_ tokenizer: Tokenizer, skipSpecialTokens: Bool) {
        self.tokenizer = tokenizer
        self.skipsSpecialTokens = skipSpecialTokens
        chain = DecoderChain(tokenizer.decoder)
    }

    /// Takes a token and returns the text that is certain with it, maybe none.
    ///
    /// - Throws: ``TokenizerError`` when the vocabulary has no such token.
    public mutating func append(_ id: Int) throws -> String {
        var output: [UInt8] = []
        try append(id, to: &output)
        return String(decoding: output, as: UTF8.self)
    }

    /// Returns what is left when no more tokens come.
    public mutating func finish() -> String {
        var output: [UInt8] = []
        finish(&output)
        return String(decoding: output, as: UTF8.self)
    }

    mutating func append(_ id: Int, to output: inout [UInt8]) throws {
        let isPlain = tokenizer.isPlainToken(id)
        try tokenizer.withDecodedToken(id, skipSpecialTokens: skipsSpecialTokens) {
            chain.append($0, isPlain: isPlain, to: &output)
        }
    }

    mutating func finish(_ output: inout [UInt8]) {
        chain.finish(&output)
        chain = DecoderChain(tokenizer.decoder)
    }
}

/// Number of bytes at the end that begin a well-formed UTF-8 character but do not complete it.
func incompleteSuffix(_ bytes: [UInt8]) -> Int {
    for length in 1...3 where length <= bytes.count {
        let byte = bytes[bytes.count - length]
        if byte & 0xC0 == 0x80 { continue }
        let needed =
            byte >= 0xF0 && byte <= 0xF4 ? 4 : byte >= 0xE0 && byte < 0xF0 ? 3 : byte >= 0xC2 && byte < 0xE0 ? 2 : 1
        guard length < needed else { return 0 }
        return length == 1 || secondByteRange(after: byte).contains(bytes[bytes.count - length + 1]) ? length : 0
    }
    return 0
}

/// Which second bytes a first byte allows: no overlong forms, no surrogates, nothing above U+10FFFF.
private func secondByteRange(after first: UInt8) -> ClosedRange<UInt8> {
    switch first {
    case 0xE0: 0xA0...0xBF
    case 0xED: 0x80...0x9F
    case 0xF0: 0x90...0xBF
    case 0xF4: 0x80...0x8F
    default: 0x80...0xBF
    }
}
