/// A vocabulary in which every token has a score: a piece becomes the tokens whose scores add up to the most.
struct Unigram: TokenizerModel {
    let vocabulary: ByteStringTable
    /// The logarithm of each token's probability, by number.
    let scores: [Double]
    let unknownToken: Int
    /// The token of each byte for what the vocabulary lacks; empty where that becomes the unknown token.
    let byteTokens: [UInt32?]
    fileprivate let trie: ByteTrie
    /// The score of a character that the vocabulary lacks.
    fileprivate let unknownScore: Double

    /// How much less than the worst token an unknown character scores.
    private static let unknownPenalty = 10.0

    /// Makes the model.
    ///
    /// - Parameters:
    ///   - vocabulary: The tokens as written, by number.
    ///   - scores: The score of each; as many as tokens, and finite.
    ///   - unknownToken: The number of the token for what cannot be written.
    ///   - fallsBackToBytes: Whether what cannot be written becomes tokens such as `<0x0A>`, one a byte.
    init(_ vocabulary: ByteStringTable, scores: [Double], unknownToken: Int, fallsBackToBytes: Bool) {
        self.vocabulary = vocabulary
        self.scores = scores
        self.unknownToken = unknownToken
        trie = ByteTrie(vocabulary)
        unknownScore = (scores.min() ?? 0) - Self.unknownPenalty
        byteTokens = fallsBackToBytes ? BytePairBuilder(vocabulary: vocabulary, origin: "").fallbackTokens : []
    }

    var name: String { "Unigram" }

    func encode(_ piece: UnsafeBufferPointer<UInt8>, scratch: inout ModelScratch, output: inout [PieceToken]) {
        scratch.lattice.findPath(piece, self)
        for step in scratch.lattice.path.reversed() {
            if step.token != unknownToken {
                output.append(PieceToken(step.token, step.start..<step.end))
            } else {
                appendUnknown(piece, step.start..<step.end, &output)
            }
        }
    }

    /// Appends what stands for a run of characters of which none is a token.
    private func appendUnknown(
        _ piece: UnsafeBufferPointer<UInt8>, _ range: Range<Int>, _ output: inout [PieceToken]
    ) {
        let run = UnsafeBufferPointer(rebasing: piece[range])
        // The run as a whole can be one: the unknown token's own text, or a token that scores less than its parts.
        if let token = trie.number(of: run) { return output.append(PieceToken(token, range)) }
        guard !byteTokens.isEmpty, run.allSatisfy({ byteTokens[Int($0)] != nil }) else {
            return output.append(PieceToken(unknownToken, range))
        }
        for case let token? in run.lazy.map({ byteTokens[Int($0)] }) { output.append(PieceToken(Int(token), range)) }
    }
}

extension Unigram {
    /// Reads the object `model` of a tokenizer.json.
    init(_ component: JSONComponent) throws {
        guard let list = component.json["vocab"]?.array else { throw component.error("vocab", "expected a list") }
        var vocabulary = ByteStringTable(reserving: list.count)
        var scores: [Double] = []
        for (index, entry) in list.enumerated() {
            guard let pair = entry.array, pair.count == 2, let token = pair[0].string, let score = pair[1].double,
                score.isFinite
            else {
                throw component.error(
                    "vocab[\(index)]", "expected a token and its score, found \(entry.compact.prefix(80))")
            }
            vocabulary.append(token.utf8)
            scores.append(ReferenceNumber.read(score))
        }
        vocabulary.index()
        guard let unknown = component.json["unk_id"]?.int, list.indices.contains(unknown) else {
            throw component.error(
                "unk_id", "expected the number of the token, below \(list.count), for what the vocabulary cannot write")
        }
        self.init(
            vocabulary, scores: scores, unknownToken: unknown,
            fallsBackToBytes: try component.flag("byte_fallback", default: false))
    }
}

/// The search for the best path through a piece, with the memory that it needs.
struct UnigramLattice: Sendable {
    /// A part of the piece that is one token, or a run of unknown characters.
    struct Step {
        var start: Int
        var end: Int
        var token: Int
    }

    /// The best way to a place in the piece.
    private struct Arrival {
        var score = 0.0
        /// Bytes of the last token; 0 where nothing has arrived yet.
        var length: Int32 = 0
        var token: Int32 = 0
    }

    /// Memory for longer pieces than this is given back.
    private static let keptArrivals = 1 << 16

    private var arrivals: [Arrival] = []
    /// The best path that was found last, from its end to its beginning.
    private(set) var path: [Step] = []

    /// Finds the path; of equal ones that which was found first, where shorter tokens of a place come first.
    mutating func findPath(_ bytes: UnsafeBufferPointer<UInt8>, _ model: Unigram) {
        arrivals.removeAll(keepingCapacity: arrivals.count <= Self.keptArrivals)
        arrivals.append(contentsOf: repeatElement(Arrival(), count: bytes.count + 1))
        arrivals.withUnsafeMutableBufferPointer { arrivals in
            model.trie.nodes.withUnsafeBufferPointer { nodes in
                model.scores.withUnsafeBufferPointer { scores in
                    var start = 0
                    while start < bytes.count {
                        start += Self.extend(start, bytes, arrivals, nodes, scores, model)
                    }
                }
            }
        }
        readPath(bytes.count, unknown: model.unknownToken)
    }

    /// Goes on from a place with every token that begins there; returns the length of the character there.
    @inline(__always)
    private static func extend(
        _ start: Int, _ bytes: UnsafeBufferPointer<UInt8>, _ arrivals: UnsafeMutableBufferPointer<Arrival>,
        _ nodes: UnsafeBufferPointer<ByteTrie.Node>, _ scores: UnsafeBufferPointer<Double>, _ model: Unigram
    ) -> Int {
        let length = min(utf8Length(bytes[start]), bytes.count - start)
        let score = arrivals[start].score
        func arrive(_ end: Int, _ token: Int32, _ score: Double) {
            guard arrivals[end].length == 0 || score > arrivals[end].score else { return }
            arrivals[end] = Arrival(score: score, length: Int32(truncatingIfNeeded: end - start), token: token)
        }
        var characterIsToken = false
        var node = ByteTrie.root
        var end = start
        while end < bytes.count, let next = ByteTrie.child(of: node, bytes[end], in: nodes) {
            node = next
            end += 1
            let token = nodes[node].value
            guard token >= 0 else { continue }
            arrive(end, token, score + scores[Int(token)])
            if end - start == length { characterIsToken = true }
        }
        if !characterIsToken {
            arrive(start + length, Int32(truncatingIfNeeded: model.unknownToken), score + model.unknownScore)
        }
        return length
    }

    private mutating func readPath(_ count: Int, unknown: Int) {
        path.removeAll(keepingCapacity: true)
        var end = count
        while end > 0 {
            let (length, token) = (Int(arrivals[end].length), Int(arrivals[end].token))
            if token == unknown, let last = path.last, last.token == unknown {
                path[path.count - 1].start = end - length
            } else {
                path.append(Step(start: end - length, end: end, token: token))
            }
            end -= length
        }
    }
}
