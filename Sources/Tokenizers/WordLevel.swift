/// A vocabulary of whole pieces: each piece is a token, or unknown.
struct WordLevel: TokenizerModel {
    let vocabulary: ByteStringTable
    let unknownToken: Int

    var name: String { "WordLevel" }

    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken]) {
        output.append(PieceToken(vocabulary.number(of: piece) ?? unknownToken, 0..<piece.count))
    }
}

extension WordLevel {
    /// Reads the object `model` of a tokenizer.json.
    init(_ component: JSONComponent) throws {
        vocabulary = try ModelJSON.vocabulary(component)
        unknownToken = try ModelJSON.unknownToken(component, vocabulary, default: "<unk>")
    }
}
