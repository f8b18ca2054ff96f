/// A vocabulary of whole pieces: each piece is a token, or unknown.
struct WordLevel: TokenizerModel {
    /// The tokens as written, findable by content.
    let tokens: ByteStringTable
    let unknownToken: Int

    var name: String { "WordLevel" }

    func encode(_ piece: TextPiece, state: inout EncodingState, output: inout TokenList) {
        output.append(tokens.number(of: piece.bytes) ?? unknownToken, piece.place(0..<piece.bytes.count))
    }
}
