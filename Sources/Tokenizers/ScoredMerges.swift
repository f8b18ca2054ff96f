/// The merges of a SentencePiece BPE vocabulary, whose file has scores instead of them: two neighbouring tokens merge when
/// joined they are a token, and the token with the best score is made first.
enum ScoredMerges {
    /// Works the merges out.
    ///
    /// - Parameters:
    ///   - vocabulary: The tokens, findable by content.
    ///   - scores: Their scores; as many as tokens, and no NaN.
    ///   - mergeable: The numbers of the tokens that merges may make, and be made of.
    /// - Returns: The merges; those that make one token have one rank, so that the leftmost comes first.
    static func table(_ vocabulary: ByteStringTable, scores: [Double], mergeable: [Int]) -> MergeTable {
        var isMergeable = [Bool](repeating: false, count: vocabulary.count)
        for token in mergeable { isMergeable[token] = true }
        var merges: [(rank: UInt32, left: UInt32, right: UInt32, token: UInt32)] = []
        let ordered = mergeable.sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
        for (rank, token) in ordered.enumerated() {
            vocabulary.withBytes(of: token) { bytes in
                for cut in bytes.indices.dropFirst() where bytes[cut] & 0xC0 != 0x80 {
                    guard let left = vocabulary.number(of: UnsafeBufferPointer(rebasing: bytes[..<cut])),
                        let right = vocabulary.number(of: UnsafeBufferPointer(rebasing: bytes[cut...])),
                        isMergeable[left], isMergeable[right]
                    else { continue }
                    merges.append((UInt32(truncatingIfNeeded: rank), UInt32(left), UInt32(right), UInt32(token)))
                }
            }
        }
        var table = MergeTable(reserving: merges.count)
        for merge in merges { table.insert(merge.left, merge.right, rank: merge.rank, token: merge.token) }
        return table
    }
}
