import Formats
import Tokenizers

/// Brings the rows of files to tokens, from the token cache where they are in it.
struct DatasetLoader {
    private let text: TextModel
    private let options: Dataset.Options
    private let columns: RowColumns
    private let encoder: RowEncoder
    private let stops: Set<Int>

    init(text: TextModel, options: Dataset.Options) throws {
        self.text = text
        self.options = options
        columns = try RowColumns(options.columns)
        encoder = RowEncoder(tokenizer: text.tokenizer, template: text.template)
        stops = Set(text.tokenizer.stopTokenIDs + [text.tokenizer.specialTokens.eos].compactMap(\.self))
    }

    /// The rows of a file.
    func part(_ source: DataSource) throws -> DatasetPart {
        let file = try RowFile(path: source.path)
        var notes: [String] = []
        let table = try table(of: file, &notes)
        try requireRows(table.facts, file)
        let part = DatasetPart(
            table, source: source, format: file.format, kind: options.rows, maxLength: options.maxLength, notes: notes)
        guard part.count > 0 else {
            throw TrainingError(
                table.count == 0
                    ? "\(file.path): none of the \(table.facts.rows) rows can be used"
                        + (table.facts.badRows.first.map { "; the first at line \($0.line): \($0.reason)" } ?? "")
                    : "\(file.path): none of the \(table.facts.rows) rows has a token left to learn from once cut to "
                        + "max_length \(options.maxLength); raise max_length")
        }
        return part
    }

    private func table(of file: RowFile, _ notes: inout [String]) throws -> TokenTable {
        if let cache = options.cache, let digest = text.digest, cache.isWorthwhile(file) {
            do {
                return try cache.table(
                    of: file, text: digest, columns: options.columns, kind: options.rows
                ) { try fill(&$0, from: file) }
            } catch let error as FormatError where error.isWriteFailure {
                notes.append("\(error); the tokens of \(file.path) are kept in memory for this run")
            }
        }
        let held = HeldBytes(limit: HeldBytes.roomNow())
        let key = [UInt8](repeating: 0, count: 32)
        do {
            var writer = try TokenTableWriter(key: key) { try held.append($0) }
            try fill(&writer, from: file)
            try writer.finish()
        } catch let error as TrainingError {
            throw FormatError(file: file.path, ([error.description] + notes).joined(separator: "; "))
        }
        return try TokenTable(.held(held), key: key, isVerified: true)
    }

    private func fill(_ writer: inout TokenTableWriter, from file: RowFile) throws {
        let isTable = file.format == .csv || file.format == .tsv
        writer.facts.sequencesPerRow = options.rows.sequencesPerRow
        try file.forEach { row in
            do {
                let data = try columns.row(row.value.get(), isTable: isTable)
                try options.rows.require(data)
                let example: Example
                do {
                    example = try encoder.example(data, line: row.line)
                } catch let error as TemplateError {
                    throw TrainingError("\(error)")
                }
                if let form = data.lookAlike {
                    writer.facts.lookAlikes[form] = (writer.facts.lookAlikes[form] ?? 0) + 1
                }
                try writer.append(example, label: data.label, stops: stops)
            } catch let error as TrainingError {
                guard options.maxBadRows > 0 else { throw file.error(error.description, line: row.line) }
                writer.appendBad(line: row.line, reason: error.description)
            } catch let error as FormatError where row.isBroken {
                guard options.maxBadRows > 0 else { throw error }
                writer.appendBad(line: row.line, reason: error.message)
            }
        }
    }

    /// Refuses a file without rows, or with more bad ones than are allowed.
    private func requireRows(_ facts: TokenTableFacts, _ file: RowFile) throws {
        guard facts.rows > 0 else {
            throw TrainingError("\(file.path): the file has no rows; expected one JSON object a line, or a table")
        }
        guard let first = facts.badRows.first else { return }
        // A table may have been made for a run that allowed more.
        if options.maxBadRows == 0 { throw file.error(first.reason, line: first.line) }
        guard Double(facts.badCount) > options.maxBadRows * Double(facts.rows) else { return }
        throw TrainingError(
            "\(file.path): \(facts.badCount) of \(facts.rows) rows cannot be used, more than max_bad_rows "
                + "\(JSON(options.maxBadRows).compact) allows; the first at line \(first.line): \(first.reason)")
    }
}

extension RowFile.Row {
    /// Whether the row itself cannot be read.
    fileprivate var isBroken: Bool {
        if case .failure = value { true } else { false }
    }
}
