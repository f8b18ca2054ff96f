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
    private let kind: RowKind
    private let maxLength: Int
    /// The number of every row that is kept; nil where all are.
    private let kept: [UInt32]?

    var count: Int { kept?.count ?? table.count / kind.sequencesPerRow }

    /// The names of the labels, by the numbers that they have in this file.
    var labels: [String] { table.facts.labels }

    /// - Parameter notes: What there is to say about how the file was read.
    init(
        _ table: TokenTable, source: DataSource, format: RowFile.Format, kind: RowKind, maxLength: Int, notes: [String]
    ) {
        self.table = table
        self.kind = kind
        self.maxLength = maxLength
        var dropped: [Int] = []
        var droppedPlaces: Set<Int> = []
        var (truncated, tokens, longest, stopRows) = (0, 0, 0, 0)
        let rows = table.count / kind.sequencesPerRow
        for row in 0..<rows {
            let entries = Self.entries(of: row, in: table, kind)
            if entries.contains(where: { $0.count > maxLength }) { truncated += 1 }
            // A text that was cut still has its label.
            guard kind == .labelled || entries.allSatisfy({ $0.firstSupervised < maxLength }) else {
                dropped.append(entries.first?.line ?? 0)
                droppedPlaces.insert(row)
                continue
            }
            for entry in entries {
                tokens += min(entry.count, maxLength)
                longest = max(longest, min(entry.count, maxLength))
            }
            if let stop = entries.first?.firstStop, stop < maxLength { stopRows += 1 }
        }
        kept =
            droppedPlaces.isEmpty
            ? nil : (0..<rows).compactMap { droppedPlaces.contains($0) ? nil : UInt32(exactly: $0) }
        let facts = table.facts
        summary = DataSummary(
            source: source, format: format, rows: facts.rows, kept: rows - dropped.count, truncated: truncated,
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

    /// What is known of a row's sequences that go through the model.
    private static func entries(of row: Int, in table: TokenTable, _ kind: RowKind) -> [TokenTable.Entry] {
        let first = row * kind.sequencesPerRow
        return (first..<(first + kind.computedSequences)).map { table.entry($0) }
    }

    /// The number of a row in the table.
    private func number(_ index: Int) -> Int { kept.map { Int($0[index]) } ?? index }

    private func entries(_ index: Int) -> [TokenTable.Entry] { Self.entries(of: number(index), in: table, kind) }

    /// A row; its label has the number of this file.
    func example(at index: Int, source: Int) -> Example {
        let entries = entries(index)
        let sequences = entries.map { entry in
            let words = table.words(of: entry, prefix: maxLength)
            return (ids: words.map { Int($0 & 0x7FFF_FFFF) }, supervised: words.map { $0 >> 31 == 1 })
        }
        return Example(
            ids: sequences[0].ids, supervised: sequences[0].supervised, line: entries[0].line, source: source,
            rejected: kind == .preference ? sequences[1] : nil, label: kind == .labelled ? label(at: index) : nil)
    }

    private func label(at index: Int) -> Int? {
        let entry = table.entry(number(index) * kind.sequencesPerRow + 1)
        return table.words(of: entry, prefix: 2).last.map { Int($0 & 0x7FFF_FFFF) }
    }

    /// The tokens that a row takes in a forward pass, in which its sequences may be filled up to the longer one.
    func length(at index: Int) -> Int {
        let entries = entries(index)
        return entries.count * (entries.map { min($0.count, maxLength) }.max() ?? 0)
    }

    /// The tokens of a row's longest sequence before it was cut.
    func wholeLength(at index: Int) -> Int { entries(index).map(\.count).max() ?? 0 }

    /// For each sequence of a row that goes through the model how many of its tokens are part of the loss.
    ///
    /// Sequences that are whole say so, the others are looked through.
    func supervisedCounts(at index: Int) -> [Int] {
        entries(index).map { entry in
            guard entry.count > maxLength else { return entry.supervised }
            return table.words(of: entry, prefix: maxLength).count { $0 >> 31 == 1 }
        }
    }
}
