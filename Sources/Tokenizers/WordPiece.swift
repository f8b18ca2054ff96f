/// Greedy matching as in BERT: a word becomes the longest token that it begins with, then the longest token for what
/// continues it, and so on; a word that cannot be written so is one unknown token.
struct WordPiece: TokenizerModel {
    let vocabulary: ByteStringTable
    private let trie: ByteTrie
    /// The node below which the tokens that continue a word lie; nil when there are none.
    private let continuation: Int?
    let unknownToken: Int
    /// The prefix that marks tokens that continue a word.
    let prefix: String
    /// A word of more characters is unknown.
    let longestWord: Int

    /// Makes the model.
    ///
    /// - Parameters:
    ///   - vocabulary: The tokens as written, by number.
    ///   - unknownToken: The number of the token for words that cannot be written.
    ///   - prefix: What marks tokens that continue a word, usually `##`.
    ///   - longestWord: The most characters of a word, usually 100.
    init(_ vocabulary: ByteStringTable, unknownToken: Int, prefix: String = "##", longestWord: Int = 100) {
        self.vocabulary = vocabulary
        let trie = ByteTrie(vocabulary)
        self.trie = trie
        continuation = trie.node(of: prefix.utf8)
        self.unknownToken = unknownToken
        self.prefix = prefix
        self.longestWord = longestWord
    }

    var name: String { "WordPiece" }

    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken]) {
        let before = output.count
        guard piece.count <= longestWord || piece.count(where: { $0 & 0xC0 != 0x80 }) <= longestWord else {
            return output.append(PieceToken(unknownToken, 0..<piece.count))
        }
        trie.nodes.withUnsafeBufferPointer { nodes in
            var start = 0
            while start < piece.count {
                guard let (token, end) = longestToken(piece, from: start, nodes) else {
                    output.removeSubrange(before...)
                    return output.append(PieceToken(unknownToken, 0..<piece.count))
                }
                output.append(PieceToken(token, start..<end))
                start = end
            }
        }
    }

    @inline(__always)
    private func longestToken(
        _ bytes: UnsafeBufferPointer<UInt8>, from start: Int, _ nodes: UnsafeBufferPointer<ByteTrie.Node>
    ) -> (token: Int, end: Int)? {
        guard var node = start == 0 ? ByteTrie.root : continuation else { return nil }
        var index = start
        var found: (token: Int, end: Int)?
        while index < bytes.count, let next = ByteTrie.child(of: node, bytes[index], in: nodes) {
            node = next
            index += 1
            if nodes[node].value >= 0 { found = (Int(nodes[node].value), index) }
        }
        return found
    }
}

extension WordPiece {
    /// Reads the object `model` of a tokenizer.json.
    init(_ component: JSONComponent) throws {
        let vocabulary = try ModelJSON.vocabulary(component)
        self.init(
            vocabulary, unknownToken: try ModelJSON.unknownToken(component, vocabulary, default: "[UNK]"),
            prefix: try component.optionalString("continuing_subword_prefix") ?? "##",
            longestWord: try component.count("max_input_chars_per_word", default: 100))
    }
}
