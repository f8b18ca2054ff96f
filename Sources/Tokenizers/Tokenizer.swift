import Formats
import Synchronization

/// The numbers of the tokens with a role; nil where the tokenizer has none.
public struct SpecialTokens: Sendable, Equatable {
    /// Begins a sequence.
    public var bos: Int?
    /// Ends a sequence.
    public var eos: Int?
    /// Fills batches.
    public var pad: Int?
    /// Stands for what the vocabulary cannot write.
    public var unk: Int?

    /// Names the tokens.
    public init(bos: Int? = nil, eos: Int? = nil, pad: Int? = nil, unk: Int? = nil) {
        self.bos = bos
        self.eos = eos
        self.pad = pad
        self.unk = unk
    }
}

/// The tokens of a text and where each lies in it.
public struct Encoding: Sendable, Equatable {
    /// The token numbers.
    public var ids: [Int]
    /// For each token the bytes of the text's UTF-8 that it stands for; `0..<0` for tokens that were added around it.
    ///
    /// A character of several bytes may be split between tokens: each has its own bytes where the tokenizer leaves text as it
    /// is, and all of the character where it normalises. Ranges ascend.
    public var ranges: [Range<Int>]
    /// For each token the text it belongs to, as the post-processor counts: 0 for a single text.
    public var typeIDs: [Int]
}

/// Turns text into token numbers and back, exactly as the tokenizer that a model was trained with.
///
/// A value: copies are independent and cheap, and one may be used from many tasks at once.
public struct Tokenizer: Sendable {
    /// The tokens with a role.
    public let specialTokens: SpecialTokens
    /// Tokens at which generation ends, in ascending order: end of sequence, those of the generation configuration, and
    /// the special token that the chat template writes after what the assistant says.
    public private(set) var stopTokenIDs: [Int]
    /// Whether text that is not a rendered chat template begins with the `bos` token.
    public let addsBOS: Bool
    /// Whether text that is not a rendered chat template ends with the `eos` token.
    public let addsEOS: Bool
    /// The Jinja source of the chat template, when there is one.
    public let chatTemplateSource: String?
    /// The tokens recognised in text before merging, in ascending order of their numbers.
    public let addedTokens: [AddedToken]
    /// How text is cut before the model; nil where each stretch is one piece.
    public let preTokenizer: PreTokenizer?
    /// How the tokenizer's file asks for long texts to be cut; encoding does not.
    public let truncation: Truncation?
    /// How the tokenizer's file asks for short texts to be filled up; encoding does not.
    public let padding: Padding?

    let model: any TokenizerModel
    /// How tokens become text.
    let decoder: [DecoderStep]
    /// The files that the tokenizer came from, which are written again as they were.
    let files: TokenizerFiles?
    private let addedTokensArePlain: Bool
    /// The stages around the model as a tokenizer.json says them, where there is no file that does.
    let stages: JSON?
    private let normalizer: (any TextNormalizer)?
    private let splitter: PieceSplitter
    private let postProcessor: PostProcessor
    /// The added tokens by number, with what they decode to.
    private let added: [Int: (content: String, decoded: [UInt8], isSpecial: Bool)]
    private let addedIDs: [[UInt8]: Int]
    /// Finds the tokens that are looked for in raw text, and then those that normalised text is searched for.
    private let matchers: [AddedTokenMatcher]
    private let shared = SharedState()

    /// What a tokenizer is made of.
    struct Parts {
        var model: any TokenizerModel
        var preTokenizer: PreTokenizer?
        var splitter: PieceSplitter
        var normalizer: (any TextNormalizer)?
        var postProcessor = PostProcessor()
        var decoder: [DecoderStep] = [.byteLevel]
        var addedTokens: [AddedToken] = []
        var specialTokens = SpecialTokens()
        var stopTokenIDs: [Int] = []
        var chatTemplateSource: String?
        var truncation: Truncation?
        var padding: Padding?
        var files: TokenizerFiles?
        /// Whether added tokens decode to themselves even if they could be read as byte-level writing.
        var addedTokensArePlain = false
        var stages: JSON?

        /// The number of a token by its content, added tokens first.
        func id(of content: String) -> Int? {
            addedTokens.last { $0.content.hasSameScalars(as: content) }?.id ?? model.vocabulary.number(of: content)
        }
    }

    init(_ parts: Parts) {
        model = parts.model
        preTokenizer = parts.preTokenizer
        splitter = parts.splitter
        normalizer = parts.normalizer
        postProcessor = parts.postProcessor
        decoder = parts.decoder
        truncation = parts.truncation
        padding = parts.padding
        files = parts.files
        addedTokensArePlain = parts.addedTokensArePlain
        stages = parts.stages
        addedTokens = parts.addedTokens.sorted { $0.id < $1.id }
        specialTokens = parts.specialTokens
        stopTokenIDs = Set(parts.stopTokenIDs).sorted()
        chatTemplateSource = parts.chatTemplateSource
        let around = parts.postProcessor.template?.around
        addsBOS = specialTokens.bos != nil && around?.before.first == specialTokens.bos
        addsEOS = specialTokens.eos != nil && around?.after.last == specialTokens.eos

        var added: [Int: (content: String, decoded: [UInt8], isSpecial: Bool)] = [:]
        var ids: [[UInt8]: Int] = [:]
        var patterns: [[(pattern: [UInt8], token: AddedToken)]] = [[], []]
        for token in parts.addedTokens {
            let content = Array(token.content.utf8)
            let pattern = token.normalized ? Self.normalized(content, parts.normalizer) : content
            patterns[token.normalized ? 1 : 0].append((pattern, token))
            ids[content] = token.id
            // As in the reference, a token that is found in normalised text decodes to its normalised content, and
            // then counts as special only where that is the content of a special token.
            added[token.id] = (token.content, pattern, token.isSpecial && pattern == content)
        }
        self.added = added
        addedIDs = ids
        matchers = patterns.map { AddedTokenMatcher($0) }
        vocabularySize = max(parts.model.vocabulary.count, (added.keys.max() ?? -1) + 1)
        if let end = (try? chatTemplate())?.endOfTurn(self) { stopTokenIDs = Set(stopTokenIDs + [end]).sorted() }
    }

    private static func normalized(_ content: [UInt8], _ normalizer: (any TextNormalizer)?) -> [UInt8] {
        guard let normalizer else { return content }
        return content.withUnsafeBufferPointer { bytes in
            var text = NormalizedText(bytes, start: 0, tracksSpans: false)
            normalizer.normalize(&text)
            return text.bytes
        }
    }

    /// Number of token numbers, from 0 on.
    public let vocabularySize: Int

    /// The kind of model, as tokenizer.json's `model.type` names it.
    public var modelName: String { model.name }

    /// Splits a text into tokens.
    ///
    /// As in the reference, a character that the vocabulary cannot write gives the model's unknown token or, where the model
    /// has none, is left out: SmolLM2's vocabulary lacks six control characters and the planes from U+40000 to U+BFFFF.
    ///
    /// - Parameters:
    ///   - text: The text. Special tokens written in it are recognised.
    ///   - addSpecialTokens: Whether to add the tokens that the tokenizer puts around a text, such as `bos`. A rendered
    ///     chat template has its own; leave this false for it.
    public func encode(_ text: String, addSpecialTokens: Bool = false) -> [Int] {
        let ids = tokens(of: text, wantsRanges: false).ids
        guard let template = postProcessor.template, addSpecialTokens || !template.isAroundText else { return ids }
        guard template.isAroundText else { return processed([text], addSpecialTokens, false).ids }
        let (before, after) = template.around
        return before + ids + after
    }

    /// Splits a text into tokens and tells which bytes of the text each stands for.
    ///
    /// - Parameters:
    ///   - text: The text.
    ///   - addSpecialTokens: As for ``encode(_:addSpecialTokens:)``.
    ///   - trimmingBlanks: Whether blanks at the ends of tokens are left out of their ranges where the tokenizer's
    ///     post-processor asks for that (`trim_offsets`). Otherwise the ranges cover the text.
    public func encodeWithRanges(
        _ text: String, addSpecialTokens: Bool = false, trimmingBlanks: Bool = false
    ) -> Encoding {
        processed([text], addSpecialTokens, trimmingBlanks)
    }

    /// Splits a pair of texts into one list of tokens, as for a model that compares two texts.
    ///
    /// - Parameters:
    ///   - text: The first text.
    ///   - pair: The second one; the ranges of its tokens count from its own beginning.
    ///   - addSpecialTokens: Whether to add the tokens that the tokenizer puts around and between the texts.
    ///   - trimmingBlanks: As for ``encodeWithRanges(_:addSpecialTokens:trimmingBlanks:)``.
    public func encodeWithRanges(
        _ text: String, pair: String, addSpecialTokens: Bool = true, trimmingBlanks: Bool = false
    ) -> Encoding {
        processed([text, pair], addSpecialTokens, trimmingBlanks)
    }

    /// The text that bytes stand for, with U+FFFD for what is no UTF-8, as Python's `bytes.decode(errors="replace")`.
    ///
    /// Encode bytes that may not be UTF-8 through it: `encode(Tokenizer.text(of: bytes))`. Ranges then count in the UTF-8
    /// of the text that is returned.
    public static func text(of bytes: some Collection<UInt8>) -> String {
        String(decoding: bytes, as: UTF8.self)
    }

    /// Joins tokens to text.
    ///
    /// Bytes that are no UTF-8 become U+FFFD.
    ///
    /// - Parameters:
    ///   - ids: The token numbers.
    ///   - skipSpecialTokens: Whether to leave out control tokens.
    /// - Throws: ``TokenizerError`` when a number is not in the vocabulary.
    public func decode(_ ids: some Sequence<Int>, skipSpecialTokens: Bool = false) throws -> String {
        var output: [UInt8] = []
        var stream = makeStreamingDecoder(skipSpecialTokens: skipSpecialTokens)
        for id in ids { try stream.append(id, to: &output) }
        stream.finish(&output)
        return String(decoding: output, as: UTF8.self)
    }

    /// The text as the normalizer leaves it, as a whole and without looking for added tokens.
    package func normalizedText(_ text: String) -> String {
        String(decoding: Self.normalized(Array(text.utf8), normalizer), as: UTF8.self)
    }

    /// Where the pre-tokenizer cuts a text, without normalizing it and without looking for added tokens.
    package func pieces(of text: String) -> [Range<Int>] {
        var text = text
        var ranges: [Range<Int>] = []
        text.withUTF8 { bytes in
            let piece = TextPiece(bytes: bytes, origin: 0, spans: nil)
            splitter.split(piece, tracksSpans: true) { ranges.append($0.range(0, $0.bytes.count)) }
        }
        return ranges
    }

    /// Makes a decoder for tokens that arrive one by one.
    public func makeStreamingDecoder(skipSpecialTokens: Bool = true) -> StreamingDecoder {
        StreamingDecoder(self, skipSpecialTokens: skipSpecialTokens)
    }

    /// The token as the vocabulary writes it, or nil when there is no such number.
    public func token(_ id: Int) -> String? {
        if let token = added[id] { return token.content }
        let vocabulary = model.vocabulary
        guard id >= 0, id < vocabulary.count, vocabulary.length(of: id) > 0 else { return nil }
        return vocabulary.withBytes(of: id) { String(decoding: $0, as: UTF8.self) }
    }

    /// The number of a token as the vocabulary writes it, or nil.
    public func id(of token: String) -> Int? {
        addedIDs[Array(token.utf8)] ?? model.vocabulary.number(of: token)
    }

    /// Whether a number is a special token.
    public func isSpecialToken(_ id: Int) -> Bool { added[id]?.isSpecial ?? false }

    /// Whether a token decodes to itself even if it could be read as byte-level writing.
    func isPlainToken(_ id: Int) -> Bool { addedTokensArePlain && added[id] != nil }

    /// Calls `body` with what the decoder gets for a token, unless it is left out.
    func withDecodedToken(_ id: Int, skipSpecialTokens: Bool, _ body: (UnsafeBufferPointer<UInt8>) -> Void) throws {
        guard id >= 0, id < vocabularySize else {
            throw TokenizerError(
                "token \(id) is not in the vocabulary, which has the numbers 0 to \(vocabularySize - 1)")
        }
        if let token = added[id] {
            guard !(skipSpecialTokens && token.isSpecial) else { return }
            return token.decoded.withUnsafeBufferPointer(body)
        }
        let vocabulary = model.vocabulary
        // A number without a token decodes to nothing.
        guard id < vocabulary.count, vocabulary.length(of: id) > 0 else { return }
        vocabulary.withBytes(of: id, body)
    }

    /// How many characters at the beginning and at the end of a token are blanks, as byte-level vocabularies write them.
    func blanks(around id: Int) -> (leading: Int, trailing: Int) { Self.blanks(around: token(id) ?? "") }

    /// Whether a number is that of an added token.
    func isAddedToken(_ id: Int) -> Bool { added[id] != nil }

    static func blanks(around text: String) -> (leading: Int, trailing: Int) {
        let scalars = Array(text.unicodeScalars)
        func isBlank(_ scalar: Unicode.Scalar) -> Bool {
            scalar == "\u{120}" || ScalarClass.of(scalar.value).contains(.whitespace)
        }
        return (scalars.prefix(while: isBlank).count, scalars.reversed().prefix(while: isBlank).count)
    }
}

extension Tokenizer {
    private func processed(_ texts: [String], _ addSpecialTokens: Bool, _ trimmingBlanks: Bool) -> Encoding {
        let parts = texts.enumerated().map { index, text in
            let tokens = tokens(of: text, wantsRanges: true)
            return EncodedText(
                ids: tokens.ids, ranges: tokens.ranges, typeIDs: [Int](repeating: index, count: tokens.ids.count),
                text: trimmingBlanks ? Array(text.utf8) : [])
        }
        return postProcessor.process(
            parts, addSpecialTokens: addSpecialTokens, trimmingBlanks: trimmingBlanks, tokenizer: self)
    }

    private func tokens(of text: String, wantsRanges: Bool) -> TokenList {
        var output = TokenList(wantsRanges: wantsRanges)
        var text = text
        text.withUTF8 { bytes in
            output.ids.reserveCapacity(bytes.count / 3)
            shared.withState { encode(bytes, &$0, &output) }
        }
        return output
    }

    private func encode(
        _ text: UnsafeBufferPointer<UInt8>, _ state: inout EncodingState, _ output: inout TokenList
    ) {
        let tracksSpans = output.wantsRanges || splitter.needsPlaces
        matchers[0].split(text, 0..<text.count) { range in
            let stretch = UnsafeBufferPointer(rebasing: text[range])
            let piece = TextPiece(bytes: stretch, origin: range.lowerBound, spans: nil)
            guard let normalizer else { return encode(piece, tracksSpans, &state, &output) }
            var normalized = NormalizedText(stretch, start: range.lowerBound, tracksSpans: tracksSpans)
            normalizer.normalize(&normalized)
            normalized.withPiece { encode($0, tracksSpans, &state, &output) }
        } added: {
            output.append($0.id, $1)
        }
    }

    /// Encodes a stretch of normalised text, in which added tokens may stand.
    private func encode(
        _ stretch: TextPiece, _ tracksSpans: Bool, _ state: inout EncodingState, _ output: inout TokenList
    ) {
        matchers[1].split(stretch.bytes, 0..<stretch.bytes.count) { range in
            splitter.split(stretch.part(range), tracksSpans: tracksSpans) { encode($0, &state, &output) }
        } added: {
            output.append($0.id, stretch.range($1.lowerBound, $1.upperBound))
        }
    }

    /// Encodes a piece, from memory where it is short and known.
    @inline(__always)
    private func encode(_ piece: TextPiece, _ state: inout EncodingState, _ output: inout TokenList) {
        guard state.cache.isEnabled, piece.bytes.count <= PieceCache.longestPiece else {
            return encodeUnknown(piece, &state, &output)
        }
        let key = PieceCache.Key(piece.bytes)
        let isKnown = state.cache.forEachToken(of: key) { output.append(Int($0), piece.range($1, $2)) }
        if isKnown { return }
        encodeUnknown(piece, &state, &output)
        state.cache.remember(key, state.tokens)
    }

    private func encodeUnknown(_ piece: TextPiece, _ state: inout EncodingState, _ output: inout TokenList) {
        state.tokens.removeAll(keepingCapacity: true)
        model.encode(piece.bytes, scratch: &state.scratch, output: &state.tokens)
        for token in state.tokens {
            output.append(Int(token.token), piece.range(Int(token.start), Int(token.end)))
        }
    }
}

/// The encoding state that all copies of a tokenizer share.
private final class SharedState: Sendable {
    private let state = Mutex(EncodingState())

    /// Runs `body` with the shared state, or with a fresh one while another task uses it.
    func withState(_ body: (inout EncodingState) -> Void) {
        let ran: Void? = state.withLockIfAvailable { state in
            state.cache.enable()
            body(&state)
        }
        guard ran == nil else { return }
        var own = EncodingState()
        body(&own)
    }
}
