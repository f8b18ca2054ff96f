import Formats

/// What rows teach, which is what an objective asks for: how to write, what to prefer, or how to tell texts apart.
public enum RowKind: String, Sendable, CaseIterable {
    /// Texts, completions and conversations: their tokens are learnt.
    case text
    /// A prompt with an answer that is chosen and one that is rejected.
    case preference
    /// A text, or a pair of them, with its label.
    case labelled

    /// How many sequences of tokens the table keeps of a row: a label is one of its own.
    var sequencesPerRow: Int { self == .text ? 1 : 2 }

    /// How many sequences of a row go through the model.
    package var computedSequences: Int { self == .preference ? 2 : 1 }

    /// The rows, for messages.
    var form: String {
        switch self {
        case .text: "{\"text\"}, {\"prompt\", \"completion\"} or {\"messages\"}"
        case .preference: "{\"prompt\", \"chosen\", \"rejected\"}"
        case .labelled: "{\"text\", \"label\"} or {\"text\", \"text_pair\", \"label\"}"
        }
    }

    /// The name of the objective that learns from such rows.
    var objective: String {
        switch self {
        case .text: "sft"
        case .preference: "dpo"
        case .labelled: "classification"
        }
    }

    /// The kind of a file's rows, as its first readable row says.
    ///
    /// - Parameters:
    ///   - path: A file of rows; see ``Dataset``.
    ///   - columns: For keys of a row the column that each is read from; empty: rows are read as they are.
    /// - Returns: ``text`` where no row can be read, so that reading the file says why.
    /// - Throws: `FormatError` when the file cannot be read; ``TrainingError`` when the columns make no row.
    public init(of path: String, columns: KeyedList<String> = [:]) throws {
        struct Found: Error { let kind: RowKind }
        let file = try RowFile(path: path)
        let reader = try RowColumns(columns)
        do {
            try file.forEach { row in
                let isTable = file.format == .csv || file.format == .tsv
                guard let data = try? reader.row(row.value.get(), isTable: isTable) else { return }
                throw Found(kind: data.kind)
            }
            self = .text
        } catch let found as Found {
            self = found.kind
        }
    }

    /// Refuses a row of another kind.
    ///
    /// - Throws: ``TrainingError`` naming the objective that would learn from it.
    func require(_ row: DataRow) throws {
        guard row.kind != self else { return }
        throw TrainingError(
            "objective \(objective) learns from \(form), and this row is for objective \(row.kind.objective), which "
                + "learns from \(row.kind.form)")
    }
}
