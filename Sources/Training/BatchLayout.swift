/// How rows share forward passes: so many side by side, or so many tokens, filled up or packed.
///
/// It changes what a run learns by rounding only.
public struct BatchLayout: Sendable, Hashable {
    /// The rows of one forward pass, where ``tokens`` is nil.
    public var rows: Int
    /// The most tokens of one forward pass; what fills rows up to the longest of them counts too.
    public var tokens: Int?
    /// Whether the rows of a forward pass lie one behind the other in one sequence.
    public var isPacked: Bool

    /// Makes a layout.
    public init(rows: Int, tokens: Int? = nil, isPacked: Bool = false) {
        self.rows = max(1, rows)
        self.tokens = tokens
        self.isPacked = isPacked
    }

    /// Divides rows among forward passes; a row with more than ``tokens`` has one of its own.
    ///
    /// - Parameter lengths: The tokens of each row.
    /// - Returns: For each pass the places of its rows in `lengths`, ascending; every place is in one of them.
    func passes(of lengths: [Int]) -> [[Int]] {
        guard let tokens else {
            return stride(from: 0, to: lengths.count, by: rows).map {
                Array($0..<min($0 + rows, lengths.count))
            }
        }
        // Long rows first: those of like length lie side by side, and short ones find the gaps in packed sequences.
        let order = lengths.indices.sorted { (-lengths[$0], $0) < (-lengths[$1], $1) }
        let passes = isPacked ? packed(order, lengths, tokens) : filledUp(order, lengths, tokens)
        return passes.map { $0.sorted() }.sorted { $0.lexicographicallyPrecedes($1) }
    }

    /// Each row goes into the first sequence that has room for it.
    private func packed(_ order: [Int], _ lengths: [Int], _ tokens: Int) -> [[Int]] {
        var passes: [(rows: [Int], room: Int)] = []
        for row in order {
            if let index = passes.firstIndex(where: { $0.room >= lengths[row] }) {
                passes[index].rows.append(row)
                passes[index].room -= lengths[row]
            } else {
                passes.append(([row], tokens - lengths[row]))
            }
        }
        return passes.map(\.rows)
    }

    /// Rows in descending length share a pass as long as all, filled up to the first, fit.
    private func filledUp(_ order: [Int], _ lengths: [Int], _ tokens: Int) -> [[Int]] {
        var passes: [[Int]] = []
        for row in order {
            if let last = passes.last, let first = last.first, (last.count + 1) * lengths[first] <= tokens {
                passes[passes.count - 1].append(row)
            } else {
                passes.append([row])
            }
        }
        return passes
    }

    /// The tokens that rows of these lengths cost in one pass, what fills them up included.
    func cost(of lengths: [Int]) -> Int {
        isPacked ? lengths.reduce(0, +) : lengths.count * (lengths.max() ?? 0)
    }
}

extension BatchLayout {
    /// Refuses rows that do not fit into a forward pass.
    ///
    /// - Throws: ``TrainingError`` naming the first one's line.
    func requireRoom(for data: Dataset) throws {
        guard let tokens, let row = (0..<data.count).first(where: { data.length(at: $0) > tokens }) else { return }
        throw TrainingError(
            "\(data.name(of: data[row])): the row has \(data.length(at: row)) tokens, more than batch_tokens "
                + "\(tokens); raise batch_tokens, or lower max_length to cut rows off")
    }
}

extension Recipe {
    /// How the rows of training share forward passes.
    package var layout: BatchLayout { BatchLayout(rows: batchSize, tokens: batchTokens, isPacked: packing) }

    /// How the rows of evaluations share forward passes.
    package var evalLayout: BatchLayout {
        BatchLayout(rows: evalBatchSize ?? batchSize, tokens: batchTokens, isPacked: packing)
    }
}
