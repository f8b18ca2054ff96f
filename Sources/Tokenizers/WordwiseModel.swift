/// A byte-pair model of characters whose merges never cross into a word: the words of a long piece are merged one by one.
///
/// SentencePiece's models take a whole text as one piece, in which each word begins with `▁`. Where no merge has `▁` on
/// its right and another character before it, words cannot influence each other. Short ones are then remembered, and the
/// time grows with the text's length alone.
struct WordwiseModel: TokenizerModel {
    private let model: BytePairModel

    /// `▁` in UTF-8.
    private static let mark: (UInt8, UInt8, UInt8) = (0xE2, 0x96, 0x81)
    /// Words are remembered when a piece of this many bytes comes.
    private static let longPiece = 64

    /// The model itself, or one that merges word by word where that gives the same tokens.
    static func wordwise(_ model: BytePairModel) -> any TokenizerModel {
        guard case .characters(let alphabet) = model.alphabet, alphabet.prefix.isEmpty, alphabet.suffix.isEmpty,
            !model.ignoresMerges, model.vocabulary.number(of: "\u{2581}") != nil
        else { return model }
        let crosses = model.merges.ordered.contains { merge in
            model.vocabulary.withBytes(of: Int(merge.left)) { left in
                model.vocabulary.withBytes(of: Int(merge.right)) { right in
                    isMark(right, 0) && !isMark(left, left.count - 3)
                }
            }
        }
        return crosses ? model : WordwiseModel(model: model)
    }

    private init(model: BytePairModel) { self.model = model }

    var name: String { model.name }
    var vocabulary: ByteStringTable { model.vocabulary }

    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken]) {
        if piece.count >= Self.longPiece { scratch.words.enable() }
        var start = 0
        while start < piece.count {
            var end = start + 1
            while end < piece.count, !Self.isMark(piece, end) || Self.isMark(piece, end - 3) { end += 1 }
            encodeWord(UnsafeBufferPointer(rebasing: piece[start..<end]), start, &scratch, &output)
            start = end
        }
    }

    private func encodeWord(
        _ word: UnsafeBufferPointer<UInt8>, _ start: Int, _ scratch: inout ModelScratch, _ output: inout [PieceToken]
    ) {
        let isShort = word.count <= PieceCache.longestPiece && scratch.words.isEnabled
        if isShort {
            let isKnown = scratch.words.forEachToken(of: PieceCache.Key(word)) { token, first, end in
                output.append(PieceToken(Int(token), start + first..<start + end))
            }
            if isKnown { return }
        }
        var tokens = scratch.takeWordTokens()
        model.encode(word, scratch: &scratch, output: &tokens)
        if isShort { scratch.words.remember(PieceCache.Key(word), tokens) }
        for token in tokens {
            output.append(PieceToken(Int(token.token), start + Int(token.start)..<start + Int(token.end)))
        }
        scratch.wordTokens = tokens
    }

    @inline(__always)
    private static func isMark(_ bytes: UnsafeBufferPointer<UInt8>, _ index: Int) -> Bool {
        index >= 0 && index + 3 <= bytes.count && bytes[index] == mark.0 && bytes[index + 1] == mark.1
            && bytes[index + 2] == mark.2
    }
}
