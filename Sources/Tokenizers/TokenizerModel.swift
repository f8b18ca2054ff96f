/// The stage that turns the bytes of one piece into tokens.
///
/// A new kind of model is one file with a type that conforms, and a case where ``Tokenizer`` is loaded.
protocol TokenizerModel: Sendable {
    /// The kind as tokenizer.json's `model.type` names it.
    var name: String { get }

    /// Appends the tokens of a piece to `output`; `state` holds the cache and the scratch space of the running encoding.
    func encode(_ piece: TextPiece, state: inout EncodingState, output: inout TokenList)
}

/// The tokens of a text, and where they lie in it when that is wanted.
struct TokenList {
    var ids: [Int] = []
    /// Byte ranges in the text, beside `ids`; empty when `wantsRanges` is false.
    var ranges: [Range<Int>] = []
    let wantsRanges: Bool

    init(wantsRanges: Bool) {
        self.wantsRanges = wantsRanges
    }

    @inline(__always)
    mutating func append(_ id: Int, _ range: @autoclosure () -> Range<Int>) {
        ids.append(id)
        if wantsRanges { ranges.append(range()) }
    }
}

/// What encodings of one tokenizer share to be fast; it never changes their result.
struct EncodingState: Sendable {
    /// Empty in an encoding that runs beside another one and therefore cannot share its cache.
    var cache = PieceCache()
    var merger = PairMerger()
}
