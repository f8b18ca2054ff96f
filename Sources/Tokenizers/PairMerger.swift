/// Merges the neighbouring tokens of one piece, lowest rank first and leftmost among equals, until none merges.
struct PairMerger: Sendable {
    /// The tokens; fill it, call `merge`, read it.
    var symbols: [PieceToken] = []

    /// The empty list of tokens with the memory that it had.
    mutating func takeSymbols() -> [PieceToken] {
        var taken: [PieceToken] = []
        swap(&taken, &symbols)
        taken.removeAll(keepingCapacity: true)
        return taken
    }

    /// `rank << 32 | token` of the merge of symbol i and the symbol after it; `UInt64.max` when they do not merge.
    private var merges: [UInt64] = []
    private var heap: [Candidate] = []
    /// Neighbours of each symbol, -1 at the ends, while the symbols form a list.
    private var next: [Int32] = []
    private var previous: [Int32] = []

    /// Up to this many symbols a scan for the best pair is faster than a heap.
    private static let scanLimit = 48

    /// Merges until no pair is in the table, in n log n time for n symbols.
    mutating func merge(_ table: MergeTable) {
        guard symbols.count > 1 else { return }
        merges.removeAll(keepingCapacity: true)
        for index in 0..<symbols.count - 1 {
            merges.append(table.merge(symbols[index].token, symbols[index + 1].token))
        }
        if symbols.count <= Self.scanLimit { mergeByScan(table) } else { mergeByHeap(table) }
    }

    private mutating func mergeByScan(_ table: MergeTable) {
        while true {
            var best = UInt64.max
            var index = 0
            for (candidate, merge) in merges.enumerated() where merge < best {
                best = merge
                index = candidate
            }
            guard best != .max else { return }
            symbols[index].token = UInt32(truncatingIfNeeded: best)
            symbols[index].end = symbols[index + 1].end
            symbols.remove(at: index + 1)
            merges.remove(at: index)
            if index < merges.count {
                merges[index] = table.merge(symbols[index].token, symbols[index + 1].token)
            }
            if index > 0 {
                merges[index - 1] = table.merge(symbols[index - 1].token, symbols[index].token)
            }
        }
    }

    /// A pair that merges: compared by rank, then by position.
    private struct Candidate {
        let merge: UInt64
        let position: Int32

        func precedes(_ other: Candidate) -> Bool {
            merge != other.merge ? merge < other.merge : position < other.position
        }
    }

    private mutating func mergeByHeap(_ table: MergeTable) {
        let count = Int32(symbols.count)
        next = (1...count).map { $0 < count ? $0 : -1 }
        previous = Array(-1..<count - 1)
        merges.append(.max)
        heap.removeAll(keepingCapacity: true)
        for index in 0..<count where merges[Int(index)] != .max {
            push(Candidate(merge: merges[Int(index)], position: index))
        }
        while let best = pop() {
            // A candidate whose pair has changed since it was found is out of date.
            let left = Int(best.position)
            guard merges[left] == best.merge else { continue }
            absorbNext(left, token: UInt32(truncatingIfNeeded: best.merge))
            refresh(left, table)
            if previous[left] >= 0 { refresh(Int(previous[left]), table) }
        }
        var kept = 0
        var index = Int32(0)
        while index >= 0 {
            symbols[kept] = symbols[Int(index)]
            kept += 1
            index = next[Int(index)]
        }
        symbols.removeSubrange(kept...)
    }

    private mutating func absorbNext(_ left: Int, token: UInt32) {
        let right = Int(next[left])
        symbols[left].token = token
        symbols[left].end = symbols[right].end
        merges[right] = .max
        next[left] = next[right]
        if next[right] >= 0 { previous[Int(next[right])] = Int32(left) }
    }

    private mutating func refresh(_ left: Int, _ table: MergeTable) {
        let right = next[left]
        merges[left] = right < 0 ? .max : table.merge(symbols[left].token, symbols[Int(right)].token)
        if merges[left] != .max { push(Candidate(merge: merges[left], position: Int32(left))) }
    }

    private mutating func push(_ candidate: Candidate) {
        heap.append(candidate)
        var child = heap.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard candidate.precedes(heap[parent]) else { break }
            heap[child] = heap[parent]
            child = parent
        }
        heap[child] = candidate
    }

    private mutating func pop() -> Candidate? {
        guard let best = heap.first, let last = heap.popLast() else { return nil }
        guard !heap.isEmpty else { return best }
        var parent = 0
        while true {
            var child = 2 * parent + 1
            guard child < heap.count else { break }
            if child + 1 < heap.count, heap[child + 1].precedes(heap[child]) { child += 1 }
            guard heap[child].precedes(last) else { break }
            heap[parent] = heap[child]
            parent = child
        }
        heap[parent] = last
        return best
    }
}
