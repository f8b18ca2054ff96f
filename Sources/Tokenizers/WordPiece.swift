/// Greedy matching as in BERT: a word becomes the longest token that it begins with, then the longest token for what
/// continues it, and so on; a word that cannot be written so is one unknown token.
struct WordPiece: TokenizerModel {
    let trie: ByteTrie
    /// The node below which the tokens that continue a word lie; nil when there are none.
    let continuation: Int?
    let unknownToken: Int
    /// The prefix that marks tokens that continue a word.
    let prefix: String
    /// A word of more characters is unknown.
    let longestWord: Int

    /// Makes the model.
    ///
    /// - Parameters:
    ///   - tokens: The tokens as written, by number.
    ///   - unknownToken: The number of the token for words that cannot be written.
    ///   - prefix: What marks tokens that continue a word, usually `##`.
    ///   - longestWord: The most characters of a word, usually 100.
    init(_ tokens: ByteStringTable, unknownToken: Int, prefix: String = "##", longestWord: Int = 100) {
        trie = ByteTrie(tokens)
        continuation = trie.node(of: prefix.utf8)
        self.unknownToken = unknownToken
        self.prefix = prefix
        self.longestWord = longestWord
    }

    var name: String { "WordPiece" }

    func encode(_ piece: TextPiece, state: inout EncodingState, output: inout TokenList) {
        let (bytes, count) = (piece.bytes, output.count)
        guard bytes.count <= longestWord || bytes.count(where: { $0 & 0xC0 != 0x80 }) <= longestWord else {
            return output.append(unknownToken, piece.place(0..<bytes.count))
        }
        trie.nodes.withUnsafeBufferPointer { nodes in
            var start = 0
            while start < bytes.count {
                guard let (token, end) = longestToken(bytes, from: start, nodes) else {
                    output.removeLast(output.count - count)
                    return output.append(unknownToken, piece.place(0..<bytes.count))
                }
                output.append(token, piece.place(start..<end))
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
