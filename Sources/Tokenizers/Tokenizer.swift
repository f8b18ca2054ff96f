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
    /// For each token the bytes of the text's UTF-8 that it stands for; empty for tokens that were added around it.
    ///
    /// A character of several bytes may be split between tokens. Byte ranges ascend and do not overlap.
    public var ranges: [Range<Int>]
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
    /// How text is cut before merging.
    public let preTokenizer: PreTokenizer

    let model: any TokenizerModel
    /// Tokens as the vocabulary writes them; a number without a token has the empty string.
    let written: ByteStringTable
    /// Tokens as bytes of text, under the same numbers.
    let bytes: ByteStringTable
    /// Whether each number is a special token.
    private let isSpecial: [Bool]
    private let splitter: PieceSplitter
    /// Finds the tokens that are looked for first, and then those that a normalised text is searched for.
    private let matchers: [AddedTokenMatcher]
    private let shared = SharedState()

    /// What a tokenizer is made of.
    struct Parts {
        var model: any TokenizerModel
        var written: ByteStringTable
        var bytes: ByteStringTable
        var preTokenizer: PreTokenizer
        var addedTokens: [AddedToken]
        var specialTokens = SpecialTokens()
        var stopTokenIDs: [Int] = []
        var addsBOS = false
        var addsEOS = false
        var chatTemplateSource: String?
    }

    init(_ parts: Parts) {
        model = parts.model
        written = parts.written
        bytes = parts.bytes
        preTokenizer = parts.preTokenizer
        addedTokens = parts.addedTokens.sorted { $0.id < $1.id }
        specialTokens = parts.specialTokens
        stopTokenIDs = Set(parts.stopTokenIDs).sorted()
        addsBOS = parts.addsBOS
        addsEOS = parts.addsEOS
        chatTemplateSource = parts.chatTemplateSource
        splitter = PieceSplitter(parts.preTokenizer)
        matchers = [false, true].map { normalized in
            AddedTokenMatcher(parts.addedTokens.filter { $0.normalized == normalized })
        }
        var isSpecial = [Bool](repeating: false, count: parts.bytes.count)
        for token in parts.addedTokens where token.isSpecial { isSpecial[token.id] = true }
        self.isSpecial = isSpecial
        if let end = (try? chatTemplate())?.endOfTurn(self) { stopTokenIDs = Set(stopTokenIDs + [end]).sorted() }
    }

    /// Number of token numbers, from 0 on.
    public var vocabularySize: Int { written.count }

    /// The kind of model, as tokenizer.json's `model.type` names it.
    public var modelName: String { model.name }

    /// Splits a text into tokens.
    ///
    /// As in the reference, a byte that the vocabulary cannot write gives the model's unknown token or, where the model has
    /// none, is left out: SmolLM2's vocabulary lacks six control characters and the planes from U+40000 to U+BFFFF.
    ///
    /// - Parameters:
    ///   - text: The text. Special tokens written in it are recognised.
    ///   - addSpecialTokens: Whether to add the `bos` and `eos` tokens where ``addsBOS`` and ``addsEOS`` say so. A
    ///     rendered chat template has its own; leave this false for it.
    public func encode(_ text: String, addSpecialTokens: Bool = false) -> [Int] {
        tokens(of: text, addSpecialTokens, wantsRanges: false).ids
    }

    /// Splits a text into tokens and tells which bytes of the text each stands for.
    ///
    /// - Parameters:
    ///   - text: The text.
    ///   - addSpecialTokens: As for ``encode(_:addSpecialTokens:)``.
    public func encodeWithRanges(_ text: String, addSpecialTokens: Bool = false) -> Encoding {
        let tokens = tokens(of: text, addSpecialTokens, wantsRanges: true)
        return Encoding(ids: tokens.ids, ranges: tokens.ranges)
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
        for id in ids { try appendBytes(of: id, skipSpecialTokens: skipSpecialTokens, to: &output) }
        return String(decoding: output, as: UTF8.self)
    }

    /// Makes a decoder for tokens that arrive one by one.
    public func makeStreamingDecoder(skipSpecialTokens: Bool = true) -> StreamingDecoder {
        StreamingDecoder(self, skipSpecialTokens: skipSpecialTokens)
    }

    /// The token as the vocabulary writes it, or nil when there is no such number.
    public func token(_ id: Int) -> String? {
        guard id >= 0, id < written.count, written.length(of: id) > 0 else { return nil }
        return written.withBytes(of: id) { String(decoding: $0, as: UTF8.self) }
    }

    /// The number of a token as the vocabulary writes it, or nil.
    public func id(of token: String) -> Int? {
        var token = token
        return token.withUTF8 { $0.isEmpty ? nil : written.number(of: $0) }
    }

    /// Whether a number is a special token.
    public func isSpecialToken(_ id: Int) -> Bool {
        id >= 0 && id < isSpecial.count && isSpecial[id]
    }

    func appendBytes(of id: Int, skipSpecialTokens: Bool, to output: inout [UInt8]) throws {
        guard id >= 0, id < bytes.count else {
            throw TokenizerError("token \(id) is not in the vocabulary, which has the numbers 0 to \(bytes.count - 1)")
        }
        if skipSpecialTokens, isSpecial[id] { return }
        bytes.withBytes(of: id) { output.append(contentsOf: $0) }
    }
}

extension Tokenizer {
    private func tokens(of text: String, _ addSpecialTokens: Bool, wantsRanges: Bool) -> TokenList {
        var output = TokenList(wantsRanges: wantsRanges)
        var text = text
        text.withUTF8 { bytes in
            if addSpecialTokens, addsBOS, let bos = specialTokens.bos { output.append(bos, 0..<0) }
            output.ids.reserveCapacity(bytes.count / 3)
            shared.withState { encode(bytes, &$0, &output) }
            if addSpecialTokens, addsEOS, let eos = specialTokens.eos { output.append(eos, bytes.count..<bytes.count) }
        }
        return output
    }

    private func encode(
        _ text: UnsafeBufferPointer<UInt8>, _ state: inout EncodingState, _ output: inout TokenList
    ) {
        matchers[0].split(text, 0..<text.count) { stretch in
            matchers[1].split(text, stretch) { plain in
                splitter.split(text, plain) { model.encode($0, state: &state, output: &output) }
            } added: {
                output.append($0.id, $1)
            }
        } added: {
            output.append($0.id, $1)
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
