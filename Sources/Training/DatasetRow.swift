import Formats
import Tokenizers

/// A row of a data set, checked, before it is split into tokens.
enum DataRow: Equatable {
    case text(String)
    case completion(prompt: String, completion: String)
    case messages(ChatConversation)

    private static let forms =
        "a row is {\"text\"}, {\"prompt\", \"completion\"} or {\"messages\"}"
    private static let keys = ["text", "prompt", "completion", "messages", "tools", "chat_template_kwargs"]

    /// Reads a row.
    ///
    /// - Throws: ``TrainingError`` saying what was expected.
    init(_ json: JSON) throws {
        guard let row = json.object else {
            throw TrainingError("expected a JSON object, found \(json.kind); \(Self.forms)")
        }
        for key in row.keys where !Self.keys.contains(key) {
            throw TrainingError(
                "the key \(JSON(key).compact) is unknown.\(suggestion(for: key, in: Self.keys)) Expected other keys: "
                    + Self.forms)
        }
        if row["messages"] != nil, row["text"] == nil, row["prompt"] == nil, row["completion"] == nil {
            self = .messages(try Self.conversation(json))
            return
        }
        switch Set(row.keys) {
        case ["text"]: self = .text(try Self.string(row, "text"))
        case ["prompt", "completion"]:
            self = .completion(prompt: try Self.string(row, "prompt"), completion: try Self.string(row, "completion"))
        case ["prompt"]: throw TrainingError("the row has a \"prompt\" but no \"completion\"")
        case ["completion"]: throw TrainingError("the row has a \"completion\" but no \"prompt\"")
        case []: throw TrainingError("the row is empty; \(Self.forms)")
        default:
            let found = row.keys.map { "\"\($0)\"" }.joined(separator: ", ")
            throw TrainingError("the row mixes the keys \(found); \(Self.forms)")
        }
    }

    private static func string(_ row: KeyedList<JSON>, _ key: String) throws -> String {
        guard let value = row[key] else { throw TrainingError("the key \"\(key)\" is missing") }
        guard let text = value.string else {
            throw TrainingError("\"\(key)\" is \(value.kind); expected a string")
        }
        guard !text.isEmpty else { throw TrainingError("\"\(key)\" is an empty string; expected some text") }
        return text
    }

    private static func conversation(_ json: JSON) throws -> ChatConversation {
        do {
            return try ChatConversation(json: json)
        } catch let error as TemplateError {
            throw TrainingError(error.message)
        }
    }
}

/// Splits rows into tokens and marks those that are part of the loss.
struct RowEncoder {
    let tokenizer: Tokenizer
    let template: ChatTemplate?

    /// The example of a row.
    ///
    /// - Throws: ``TrainingError`` when the row has nothing to learn from or the model lacks what it needs;
    ///   `TemplateError` when the chat template refuses it.
    func example(_ row: DataRow, line: Int) throws -> Example {
        switch row {
        case .text(let text): return try plain(text, supervisedFrom: 0, line: line)
        case .completion(let prompt, let completion):
            return try plain(prompt + completion, supervisedFrom: prompt.utf8.count, line: line)
        case .messages(let conversation): return try chat(conversation, line: line)
        }
    }

    /// A text whose tokens are supervised where they reach beyond a byte, ended by a supervised EOS.
    private func plain(_ text: String, supervisedFrom start: Int, line: Int) throws -> Example {
        guard let eos = tokenizer.specialTokens.eos else {
            throw TrainingError("the model's tokenizer has no end-of-sequence token to end the row with")
        }
        let encoding = tokenizer.encodeWithRanges(text)
        var ids = encoding.ids
        var supervised = encoding.ranges.map { $0.upperBound > start }
        if tokenizer.addsBOS, let bos = tokenizer.specialTokens.bos, ids.first != bos {
            ids.insert(bos, at: 0)
            supervised.insert(false, at: 0)
        }
        if ids.last != eos {
            ids.append(eos)
            supervised.append(true)
        }
        return try checked(Example(ids: ids, supervised: supervised, line: line), "")
    }

    /// A conversation whose tokens are supervised where they reach into a turn of the assistant.
    private func chat(_ conversation: ChatConversation, line: Int) throws -> Example {
        guard let template else {
            throw TrainingError("the row has \"messages\", but the model has no chat template")
        }
        let example = try ChatEncoder(tokenizer, template: template).example(conversation)
        return try checked(
            Example(ids: example.ids, supervised: example.supervised, line: line),
            conversation.messages.contains { $0.role == "assistant" } ? "" : ": no message has the role \"assistant\"")
    }

    private func checked(_ example: Example, _ reason: String) throws -> Example {
        guard example.supervisedCount > 0 else { throw TrainingError("the row has no token to learn\(reason)") }
        return example
    }
}
