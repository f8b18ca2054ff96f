import Formats
import Tokenizers

/// What became of one file's rows.
public struct DataSummary: Sendable {
    /// The file and its weight.
    public let source: DataSource
    /// How the file is written.
    public let format: RowFile.Format
    /// The rows of the file, those that were dropped included.
    public let rows: Int
    /// The rows that can be learnt from.
    public let kept: Int
    /// The rows that were cut at the maximum length, those that were then dropped included.
    public let truncated: Int
    /// The lines of rows that were dropped, because cutting them left no token that is part of the loss.
    public let droppedLines: [Int]
    /// How many rows were left out because they cannot be used.
    public let badCount: Int
    /// The first thousand of them: line and reason.
    public let badRows: [(line: Int, reason: String)]
    /// The tokens of the rows that can be learnt from, after cutting.
    public let tokens: Int
    /// The tokens of the longest of them.
    public let longest: Int
    /// The rows in which the model learns to end its turn or the text.
    public let stopRows: Int
    /// SHA-256 over tokens and marks of the file's rows before cutting, in hexadecimal.
    public let digest: String
    /// What there is to say about how the file was read, a sentence each.
    public let notes: [String]
}

/// The rows of one file that can be learnt from, cut at the maximum length.
final class DatasetPart: Sendable {
    let summary: DataSummary
    private let table: TokenTable
    private let maxLength: Int
    /// The place in the table of every row that is kept; nil where all are.
    private let kept: [UInt32]?

    var count: Int { kept?.count ?? table.count }

    /// - Parameter notes: What there is to say about how the file was read.
    init(_ table: TokenTable, source: DataSource, format: RowFile.Format, maxLength: Int, notes: [String]) {
        self.table = table
        self.maxLength = maxLength
        var dropped: [Int] = []
        var droppedPlaces: Set<Int> = []
        var (truncated, tokens, longest, stopRows) = (0, 0, 0, 0)
        for row in 0..<table.count {
            let entry = table.entry(row)
            if entry.count > maxLength { truncated += 1 }
            guard entry.firstSupervised < maxLength else {
                dropped.append(entry.line)
                droppedPlaces.insert(row)
                continue
            }
            tokens += min(entry.count, maxLength)
            longest = max(longest, min(entry.count, maxLength))
            if let stop = entry.firstStop, stop < maxLength { stopRows += 1 }
        }
        kept =
            droppedPlaces.isEmpty
            ? nil : (0..<table.count).compactMap { droppedPlaces.contains($0) ? nil : UInt32(exactly: $0) }
        let facts = table.facts
        summary = DataSummary(
            source: source, format: format, rows: facts.rows, kept: table.count - dropped.count, truncated: truncated,
            droppedLines: dropped, badCount: facts.badCount, badRows: facts.badRows.map { ($0.line, $0.reason) },
            tokens: tokens, longest: longest, stopRows: stopRows, digest: facts.digest,
            notes: Self.notes(facts, source.path) + notes)
    }

    private static func notes(_ facts: TokenTableFacts, _ path: String) -> [String] {
        facts.lookAlikes.map { form, count in
            form == "instruction"
                ? "\(path): rows with \"instruction\" and \"output\" (\(count)) are read as a user's message, the \"input\" "
                    + "after an empty line, and its answer"
                : "\(path): rows with \"conversations\" (\(count)) are read as \"messages\": human is the user, gpt the "
                    + "assistant"
        }
    }

    private func entry(_ index: Int) -> TokenTable.Entry { table.entry(kept.map { Int($0[index]) } ?? index) }

    func example(at index: Int, source: Int) -> Example {
        let entry = entry(index)
        let words = table.words(of: entry, prefix: maxLength)
        return Example(
            ids: words.map { Int($0 & 0x7FFF_FFFF) }, supervised: words.map { $0 >> 31 == 1 }, line: entry.line,
            source: source)
    }

    func length(at index: Int) -> Int { min(entry(index).count, maxLength) }

    func wholeLength(at index: Int) -> Int { entry(index).count }

    /// Rows that are whole say how many of their tokens are part of the loss, the others are looked through.
    func supervisedCount(at index: Int) -> Int {
        let entry = entry(index)
        guard entry.count > maxLength else { return entry.supervised }
        return table.words(of: entry, prefix: maxLength).count { $0 >> 31 == 1 }
    }
}
