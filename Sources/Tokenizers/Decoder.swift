/// How tokens become text, as data: one stage of a tokenizer.json's decoder.
enum DecoderStep: Sendable {
    case byteLevel
    case wordPiece(prefix: [UInt8], cleansUp: Bool)
    case metaspace(replacement: [UInt8], dropsFirst: Bool)
    case byteFallback
    case fuse
    case replace(SearchPattern, content: [UInt8])
    case strip(content: [UInt8], start: Int, stop: Int)
    case bytePair(suffix: String)
    case ctc(padToken: String, wordDelimiter: String, cleansUp: Bool)
    /// Without a decoder tokens are joined with blanks.
    case join
}

/// Runs the stages of a decoder over tokens that arrive one by one.
///
/// A token travels in parts; what a stage cannot know yet it holds back.
struct DecoderChain: Sendable {
    private var stages: [DecoderStage]

    init(_ steps: [DecoderStep]) {
        stages = steps.map { DecoderStage(step: $0) }
    }

    /// Takes a whole token, which is `plain` when a byte-level stage must take it as it is, and appends the text that is
    /// certain now.
    mutating func append(_ token: UnsafeBufferPointer<UInt8>, isPlain: Bool, to output: inout [UInt8]) {
        feed(0, [DecodedPart(bytes: Array(token), endsToken: true, isPlain: isPlain)], &output)
    }

    /// Takes the end of the tokens and appends the rest of the text.
    mutating func finish(_ output: inout [UInt8]) {
        for index in stages.indices {
            var parts: [DecodedPart] = []
            stages[index].finish(&parts)
            feed(index + 1, parts, &output)
        }
    }

    private mutating func feed(_ first: Int, _ parts: [DecodedPart], _ output: inout [UInt8]) {
        var parts = parts
        for index in stages.indices.dropFirst(first) {
            var next: [DecodedPart] = []
            for part in parts { stages[index].feed(part, &next) }
            parts = next
        }
        for part in parts { output.append(contentsOf: part.bytes) }
    }
}

/// A token between two stages, or a part of it.
struct DecodedPart {
    var bytes: [UInt8]
    var endsToken: Bool
    /// Whether it is text and not written in the byte-level alphabet.
    var isPlain = false
}

/// One stage with what it holds back.
private struct DecoderStage: Sendable {
    let step: DecoderStep
    /// What the stage holds back.
    private var pending: [UInt8] = []
    /// The beginning of a token that arrives in parts.
    private var partial: [UInt8] = []
    /// How many tokens have ended.
    private var count = 0
    /// The token before this one, where it matters.
    private var previous: [UInt8]?
    /// Characters stripped off the beginning of the token at hand; nil when no more may go.
    private var stripped: Int? = 0

    init(step: DecoderStep) {
        self.step = step
    }

    mutating func feed(_ part: DecodedPart, _ output: inout [DecodedPart]) {
        switch step {
        case .byteLevel where part.isPlain: pending.append(contentsOf: part.bytes)
        case .fuse:
            if !part.bytes.isEmpty { output.append(DecodedPart(bytes: part.bytes, endsToken: false)) }
        case .strip(let content, let start, 0): stripStart(part, content, start, &output)
        default:
            guard part.endsToken else { return partial.append(contentsOf: part.bytes) }
            if partial.isEmpty {
                take(part.bytes, &output)
            } else {
                let token = partial + part.bytes
                partial.removeAll(keepingCapacity: true)
                take(token, &output)
            }
            count += 1
        }
    }

    private mutating func take(_ token: [UInt8], _ output: inout [DecodedPart]) {
        func emit(_ bytes: [UInt8], ends: Bool = true) { output.append(DecodedPart(bytes: bytes, endsToken: ends)) }
        switch step {
        case .byteLevel:
            token.withUnsafeBufferPointer { ByteLevelAlphabet.appendBytes(of: $0, to: &pending) }
            let complete = pending.count - incompleteSuffix(pending)
            guard complete > 0 else { return }
            emit(wellFormed(pending[..<complete]), ends: false)
            pending.removeFirst(complete)
        case .wordPiece(let prefix, let cleansUp):
            var text = token
            if count > 0 {
                if token.starts(with: prefix) { text.removeFirst(prefix.count) } else { text.insert(0x20, at: 0) }
            }
            emit(cleansUp ? WordPieceCleanup.cleaned(text) : text)
        case .metaspace(let replacement, let dropsFirst):
            emit(replacing(replacement, in: token, with: count == 0 && dropsFirst ? [] : [0x20]))
        case .byteFallback:
            if let byte = Self.byte(token) { return pending.append(byte) }
            flushBytes(&output)
            emit(token)
        case .replace(let pattern, let content):
            var text: [UInt8] = []
            token.withUnsafeBufferPointer { source in
                var place = 0
                pattern.forEachMatch(source) { match in
                    text.append(contentsOf: source[place..<match.lowerBound])
                    text.append(contentsOf: content)
                    place = match.upperBound
                }
                text.append(contentsOf: source[place...])
            }
            emit(text)
        case .strip(let content, let start, let stop): emit(Self.stripped(token, content, start, stop))
        case .bytePair(let suffix):
            if let previous { emit(replacing(Array(suffix.utf8), in: previous, with: [0x20])) }
            previous = token
        case .ctc(let padToken, let wordDelimiter, let cleansUp):
            guard previous != token else { return }
            previous = token
            var text = replacing(Array(padToken.utf8), in: token, with: [])
            if cleansUp {
                text = replacing(Array(wordDelimiter.utf8), in: WordPieceCleanup.cleaned(text), with: [0x20])
            }
            if !text.isEmpty { emit(text) }
        case .join: emit(count > 0 ? [0x20] + token : token)
        case .fuse: emit(token, ends: false)
        }
    }

    mutating func finish(_ output: inout [DecodedPart]) {
        switch step {
        case .byteLevel:
            output.append(DecodedPart(bytes: wellFormed(pending[...]), endsToken: true))
            pending.removeAll()
        case .fuse: output.append(DecodedPart(bytes: [], endsToken: true))
        case .byteFallback: flushBytes(&output)
        case .bytePair(let suffix):
            guard let last = previous else { return }
            output.append(DecodedPart(bytes: replacing(Array(suffix.utf8), in: last, with: []), endsToken: true))
        default: break
        }
    }

    // MARK: Parts of stages

    /// `<0x0A>` stands for a byte.
    private static func byte(_ token: [UInt8]) -> UInt8? {
        guard token.count == 6, token.starts(with: "<0x".utf8), token[5] == UInt8(ascii: ">") else { return nil }
        // The reference's number reader takes a plus sign for a part of the number.
        let digits = String(decoding: token[3..<5], as: UTF8.self)
        return digits.utf8.first == UInt8(ascii: "-") ? nil : UInt8(digits, radix: 16)
    }

    /// A run of bytes is text where it is UTF-8, and U+FFFD for every byte where it is not.
    private mutating func flushBytes(_ output: inout [DecodedPart]) {
        guard !pending.isEmpty else { return }
        if String(validating: pending, as: UTF8.self) != nil {
            output.append(DecodedPart(bytes: pending, endsToken: true))
        } else {
            for _ in pending { output.append(DecodedPart(bytes: Array("\u{FFFD}".utf8), endsToken: true)) }
        }
        pending.removeAll(keepingCapacity: true)
    }

    private mutating func stripStart(
        _ part: DecodedPart, _ content: [UInt8], _ start: Int, _ output: inout [DecodedPart]
    ) {
        var bytes = part.bytes[...]
        while let done = stripped, done < start, bytes.starts(with: content) {
            bytes = bytes.dropFirst(content.count)
            stripped = done + 1
        }
        if !bytes.isEmpty { stripped = nil }
        output.append(DecodedPart(bytes: Array(bytes), endsToken: part.endsToken))
        if part.endsToken { stripped = 0 }
    }

    private static func stripped(_ token: [UInt8], _ content: [UInt8], _ start: Int, _ stop: Int) -> [UInt8] {
        var bytes = token[...]
        var count = 0
        while count < start, bytes.starts(with: content) {
            bytes = bytes.dropFirst(content.count)
            count += 1
        }
        count = 0
        while count < stop, bytes.count >= content.count, bytes.suffix(content.count).elementsEqual(content) {
            bytes = bytes.dropLast(content.count)
            count += 1
        }
        return Array(bytes)
    }
}

/// Bytes with U+FFFD for what is no UTF-8.
private func wellFormed(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
    if bytes.allSatisfy({ $0 < 0x80 }) { return Array(bytes) }
    return Array(String(decoding: bytes, as: UTF8.self).utf8)
}

/// All occurrences of a text replaced, from left to right; an empty text occurs before every character and at the end.
func replacing(_ wanted: [UInt8], in text: [UInt8], with content: [UInt8]) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(text.count)
    var index = 0
    while index < text.count {
        if wanted.isEmpty {
            if text[index] & 0xC0 != 0x80 { result.append(contentsOf: content) }
        } else if text[index] == wanted[0], text[index...].starts(with: wanted) {
            result.append(contentsOf: content)
            index += wanted.count
            continue
        }
        result.append(text[index])
        index += 1
    }
    if wanted.isEmpty { result.append(contentsOf: content) }
    return result
}

/// The blanks that English text loses before punctuation and in contractions.
private enum WordPieceCleanup {
    private static let rules: [([UInt8], [UInt8])] = [
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
        (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ].map { (Array($0.0.utf8), Array($0.1.utf8)) }

    static func cleaned(_ text: [UInt8]) -> [UInt8] {
        guard text.contains(0x20) else { return text }
        return rules.reduce(text) { replacing($1.0, in: $0, with: $1.1) }
    }
}
