/// The stage that turns the bytes of one piece into tokens.
///
/// A new kind of model is one file with a type that conforms, and a line in `ModelJSON.swift`.
protocol TokenizerModel: Sendable {
    /// The kind as tokenizer.json's `model.type` names it.
    var name: String { get }

    /// The model's own tokens as they are written, under their numbers and findable by content.
    ///
    /// Added tokens that are no part of the model are not in it.
    var vocabulary: ByteStringTable { get }

    /// Appends the tokens of a piece to `output`, with places in the piece.
    ///
    /// Must depend on the piece alone: the tokens of short pieces are remembered.
    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken])
}

/// A token of a piece with the bytes of the piece that it covers.
struct PieceToken: Sendable {
    var token: UInt32
    /// Offset of its first byte in the piece.
    var start: Int32
    /// Offset after its last byte.
    var end: Int32
}

extension PieceToken {
    /// Makes a token of a vocabulary at a place in the piece.
    @inline(__always)
    init(_ token: Int, _ place: Range<Int>) {
        self.init(
            token: UInt32(truncatingIfNeeded: token), start: Int32(truncatingIfNeeded: place.lowerBound),
            end: Int32(truncatingIfNeeded: place.upperBound))
    }
}

/// Memory that models use again from piece to piece; its contents never change a result.
struct ModelScratch: Sendable {
    var merger = PairMerger()
    var lattice = UnigramLattice()
    /// The tokens of words inside long pieces.
    var words = PieceCache()
    /// The tokens of the word at hand.
    var wordTokens: [PieceToken] = []

    /// The empty list of tokens with the memory that it had.
    mutating func takeWordTokens() -> [PieceToken] {
        var taken: [PieceToken] = []
        swap(&taken, &wordTokens)
        taken.removeAll(keepingCapacity: true)
        return taken
    }
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
    var scratch = ModelScratch()
    /// The tokens of the piece at hand.
    var tokens: [PieceToken] = []
}
