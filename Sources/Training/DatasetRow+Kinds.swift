import Formats
import Tokenizers

extension DataRow {
    /// A prompt with one answer to it.
    enum Answer: Equatable {
        /// Joined as they are.
        case text(prompt: String, completion: String)
        /// A conversation, of which the first so many messages are the prompt.
        case messages([ChatMessage], promptCount: Int)
    }

    /// What the row teaches.
    var kind: RowKind {
        switch self {
        case .preference: .preference
        case .labelled: .labelled
        default: .text
        }
    }

    /// The name of the row's label, where it has one.
    var label: String? {
        if case .labelled(_, _, let label) = self { label } else { nil }
    }

    /// A preference of strings or of messages.
    ///
    /// Where one of the three is a list of messages, a prompt that is a string is the user's and an answer that is a string
    /// the assistant's. Without a prompt it is the messages that both answers begin with.
    static func preference(_ row: KeyedList<JSON>) throws -> DataRow {
        let parts = ["prompt", "chosen", "rejected"]
        guard parts.contains(where: { row[$0]?.array != nil }) else {
            guard row["prompt"] != nil else {
                throw TrainingError(
                    "the row has no \"prompt\"; only where \"chosen\" and \"rejected\" are lists of messages it is what "
                        + "both begin with")
            }
            let texts = try parts.map { try string(row, $0) }
            return .preference(
                .text(prompt: texts[0], completion: texts[1]), over: .text(prompt: texts[0], completion: texts[2]))
        }
        var prompt = try row["prompt"].map { _ in try messages(row, "prompt", role: "user") } ?? []
        var (chosen, rejected) = (
            try messages(row, "chosen", role: "assistant"), try messages(row, "rejected", role: "assistant")
        )
        if row["prompt"] == nil {
            let common = zip(chosen, rejected).prefix { $0 == $1 }.count
            prompt = Array(chosen.prefix(common))
            (chosen, rejected) = (Array(chosen.dropFirst(common)), Array(rejected.dropFirst(common)))
        }
        for (key, answer) in [("chosen", chosen), ("rejected", rejected)]
        where !answer.contains(where: { $0.role == "assistant" }) {
            throw TrainingError("\"\(key)\" has no message of the assistant after the prompt")
        }
        return .preference(
            .messages(prompt + chosen, promptCount: prompt.count),
            over: .messages(prompt + rejected, promptCount: prompt.count))
    }

    /// Messages, or a string as the one message of a role.
    private static func messages(_ row: KeyedList<JSON>, _ key: String, role: String) throws -> [ChatMessage] {
        guard row[key]?.array != nil else { return [ChatMessage(role: role, content: try string(row, key))] }
        do {
            return try ChatConversation(json: ["messages": row[key] ?? .null]).messages
        } catch let error as TemplateError {
            throw TrainingError("\"\(key)\": \(error.message)")
        }
    }

    /// A text with its label, which is a string or a whole number.
    static func labelled(_ row: KeyedList<JSON>) throws -> DataRow {
        let text = try string(row, "text")
        let pair = try row["text_pair"].map { _ in try string(row, "text_pair") }
        let label = row["label"] ?? .null
        if let number = label.int { return .labelled(text, pair: pair, label: "\(number)") }
        guard let name = label.string, !name.isEmpty else {
            throw TrainingError("\"label\" is \(label.compact); expected a name or a whole number")
        }
        return .labelled(text, pair: pair, label: name)
    }
}
