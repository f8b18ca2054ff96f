import Formats
import Tokenizers

/// Which columns of a file are read as which keys of a row.
///
/// Without a mapping a row has exactly the keys of one form. With one, the named columns are read and all others are
/// left alone.
struct RowColumns {
    /// The forms of rows: keys that belong together, those that may be missing last.
    static let forms: [(required: [String], optional: [String])] = [
        (["text"], []), (["prompt", "completion"], []), (["messages"], ["tools", "chat_template_kwargs"]),
        (["instruction", "output"], ["input"]), (["conversations"], []), (["prompt", "chosen", "rejected"], []),
        (["chosen", "rejected"], []), (["text", "label"], ["text_pair"]),
    ]
    /// The keys of a conversation with what its template needs beside the messages.
    static let conversationKeys: Set = ["messages", "tools", "chat_template_kwargs"]
    /// All keys that a row can have.
    static let keys = forms.flatMap { $0.required + $0.optional }.reduce(into: [String]()) { keys, key in
        if !keys.contains(key) { keys.append(key) }
    }
    /// Pairs of columns that are often a question and its answer, for advice.
    private static let pairs = [
        ("question", "answer"), ("input", "output"), ("query", "response"), ("question", "response"),
        ("instruction", "response"), ("prompt", "response"), ("problem", "solution"), ("source", "target"),
        ("input", "target"),
    ]

    private let mapping: KeyedList<String>

    /// - Parameter mapping: For keys of a row the column that each is read from; empty: rows are read as they are.
    /// - Throws: ``TrainingError`` when the keys do not make a row.
    init(_ mapping: KeyedList<String> = [:]) throws {
        self.mapping = mapping
        guard !mapping.isEmpty else { return }
        for key in mapping.keys where !Self.keys.contains(key) {
            throw TrainingError(
                "columns: a row has no key \"\(key)\".\(suggestion(for: key, in: Self.keys)) Expected "
                    + Self.keys.joined(separator: ", "))
        }
        let found = Set(mapping.keys)
        let isForm = Self.forms.contains { form in
            found.isSuperset(of: form.required) && found.isSubset(of: form.required + form.optional)
        }
        guard isForm else {
            throw TrainingError(
                "columns: \(mapping.keys.joined(separator: ", ")) do not make a row; name all keys of one form: text; prompt "
                    + "and completion; messages; instruction, output and perhaps input; conversations; prompt, chosen and "
                    + "rejected; text, label and perhaps text_pair")
        }
    }

    /// Reads a row.
    ///
    /// - Parameter isTable: Whether it comes from a table in text, whose cells are strings: conversations are then JSON.
    /// - Throws: ``TrainingError`` saying what was expected.
    func row(_ json: JSON, isTable: Bool) throws -> DataRow {
        var row = json
        if !mapping.isEmpty, let object = json.object {
            var chosen = KeyedList<JSON>()
            for (key, column) in mapping {
                if let value = object[column] {
                    chosen.appendIfNew(key: key, value: value)
                } else if !Self.forms.contains(where: { $0.optional.contains(key) }) {
                    throw TrainingError(
                        "the row has no column \"\(column)\", which columns reads as \"\(key)\"."
                            + suggestion(for: column, in: object.keys) + " It has " + quoted(object.keys))
                }
            }
            row = .object(chosen)
        }
        for key in ["messages", "conversations"] {
            guard isTable, let text = row[key]?.string else { continue }
            do {
                row[key] = try JSON.parse(text)
            } catch {
                throw TrainingError("\"\(key)\" is not JSON: \(error)")
            }
        }
        do {
            return try DataRow(row)
        } catch let error as TrainingError {
            throw TrainingError(error.description + advice(row))
        }
    }

    private func quoted(_ keys: [String]) -> String { keys.prefix(12).map { JSON($0).compact }.joined(separator: ", ") }

    /// How to name columns, where a row has some that are likely to be meant.
    private func advice(_ row: JSON) -> String {
        guard mapping.isEmpty, let keys = row.object?.keys, keys.contains(where: { !Self.keys.contains($0) }) else {
            return ""
        }
        let whole = Self.forms.filter { keys.count > $0.required.count && Set(keys).isSuperset(of: $0.required) }
        // A row with a text and a label is more likely meant as both than as the text alone.
        if let whole = whole.max(by: { $0.required.count < $1.required.count }) {
            return "; to leave the other columns alone, name those to read: "
                + Self.options(whole.required.map { ($0, $0) })
        }
        guard let pair = Self.pairs.first(where: { keys.contains($0.0) && keys.contains($0.1) }) else { return "" }
        return "; if its \"\(pair.0)\" is the prompt, say "
            + Self.options([("prompt", pair.0), ("completion", pair.1)])
    }

    /// The same mapping for the command line and for a recipe.
    private static func options(_ columns: [(key: String, column: String)]) -> String {
        columns.map { "--column \($0.key)=\($0.column)" }.joined(separator: " ") + ", or in a recipe columns: {"
            + columns.map { "\($0.key): \($0.column)" }.joined(separator: ", ") + "}"
    }
}

extension DataRow {
    /// The name of the format that the row was read from, where it is not one of Graft's own.
    var lookAlike: String? {
        switch self {
        case .instruction: "instruction"
        case .conversation: "conversations"
        default: nil
        }
    }

    /// The conversation, also that of a request with its answer; without messages for other rows.
    var conversation: ChatConversation {
        switch self {
        case .messages(let conversation): conversation
        case .conversation(let messages): ChatConversation(messages)
        case .instruction(let request, let output):
            ChatConversation([
                ChatMessage(role: "user", content: request), ChatMessage(role: "assistant", content: output),
            ])
        case .text, .completion, .preference, .labelled: ChatConversation([])
        }
    }
}
