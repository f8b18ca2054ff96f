import Formats
import Tokenizers

/// A row of a data set, checked, before it is split into tokens.
enum DataRow: Equatable {
    case text(String)
    case completion(prompt: String, completion: String)
    case messages(ChatConversation)
    /// A request, perhaps with an input, and its answer: rows as Alpaca has them.
    case instruction(String, output: String)
    /// Turns with `from` and `value`: rows as ShareGPT has them.
    case conversation([ChatMessage])
    /// Two answers to one prompt, of which the first is preferred.
    case preference(Answer, over: Answer)
    /// A text, perhaps with a second one, and the name of its label.
    case labelled(String, pair: String?, label: String)

    private static let forms =
        "a row is {\"text\"}, {\"prompt\", \"completion\"}, {\"messages\"}, {\"instruction\", \"output\"}, "
        + "{\"conversations\"}, {\"prompt\", \"chosen\", \"rejected\"} or {\"text\", \"label\"}"

    /// Reads a row.
    ///
    /// - Throws: ``TrainingError`` saying what was expected.
    init(_ json: JSON) throws {
        guard let row = json.object else {
            throw TrainingError("expected a JSON object, found \(json.kind); \(Self.forms)")
        }
        for key in row.keys where !RowColumns.keys.contains(key) {
            throw TrainingError(
                "the key \(JSON(key).compact) is unknown.\(suggestion(for: key, in: RowColumns.keys)) Expected other keys: "
                    + Self.forms)
        }
        if row["messages"] != nil, Set(row.keys).isSubset(of: RowColumns.conversationKeys) {
            self = .messages(try Self.conversation(json))
            return
        }
        switch Set(row.keys) {
        case ["text"]: self = .text(try Self.string(row, "text"))
        case ["prompt", "completion"]:
            self = .completion(prompt: try Self.string(row, "prompt"), completion: try Self.string(row, "completion"))
        case ["instruction", "output"], ["instruction", "input", "output"]:
            self = .instruction(try Self.request(row), output: try Self.string(row, "output"))
        case ["conversations"]: self = .conversation(try Self.turns(row["conversations"] ?? .null))
        case ["prompt", "chosen", "rejected"], ["chosen", "rejected"]: self = try Self.preference(row)
        case ["text", "label"], ["text", "text_pair", "label"]: self = try Self.labelled(row)
        case ["prompt"]: throw TrainingError("the row has a \"prompt\" but no \"completion\"")
        case ["completion"]: throw TrainingError("the row has a \"completion\" but no \"prompt\"")
        case ["instruction"], ["instruction", "input"]:
            throw TrainingError("the row has an \"instruction\" but no \"output\"")
        case []: throw TrainingError("the row is empty; \(Self.forms)")
        default:
            let found = row.keys.map { "\"\($0)\"" }.joined(separator: ", ")
            throw TrainingError("the row mixes the keys \(found); \(Self.forms)")
        }
    }

    static func string(_ row: KeyedList<JSON>, _ key: String, at place: String = "") throws -> String {
        guard let value = row[key] else { throw TrainingError("\(place)the key \"\(key)\" is missing") }
        guard let text = value.string else {
            throw TrainingError("\(place)\"\(key)\" is \(value.kind); expected a string")
        }
        guard !text.isEmpty else { throw TrainingError("\(place)\"\(key)\" is an empty string; expected some text") }
        return text
    }

    /// An instruction with its input, which may be missing or empty, after an empty line.
    private static func request(_ row: KeyedList<JSON>) throws -> String {
        let instruction = try string(row, "instruction")
        guard let input = row["input"], !input.isNull else { return instruction }
        guard let text = input.string else { throw TrainingError("\"input\" is \(input.kind); expected a string") }
        return text.isEmpty ? instruction : instruction + "\n\n" + text
    }

    /// Turns with `from` and `value` as messages.
    private static func turns(_ json: JSON) throws -> [ChatMessage] {
        guard let items = json.array else {
            throw TrainingError("\"conversations\" is \(json.kind); expected an array of {\"from\", \"value\"}")
        }
        guard !items.isEmpty else { throw TrainingError("\"conversations\" is empty; expected at least one turn") }
        let keys = ["from", "value"]
        let roles = ["system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"]
        return try items.enumerated().map { index, item in
            let place = "turn \(index + 1): "
            guard let turn = item.object else {
                throw TrainingError("\(place)expected an object {\"from\", \"value\"}, found \(item.kind)")
            }
            for key in turn.keys where !keys.contains(key) {
                throw TrainingError(
                    "\(place)the key \(JSON(key).compact) is unknown.\(suggestion(for: key, in: keys)) Expected "
                        + "\"from\" and \"value\"; turns with \"role\" and \"content\" are called \"messages\"")
            }
            let speaker = try string(turn, "from", at: place)
            guard let role = roles[speaker] else {
                throw TrainingError(
                    "\(place)\"from\" is \(JSON(speaker).compact).\(suggestion(for: speaker, in: roles.keys.sorted())) "
                        + "Expected system, human or gpt")
            }
            return ChatMessage(role: role, content: try string(turn, "value", at: place))
        }
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
        case .messages, .conversation: return try chat(row, line: line)
        case .instruction(let request, let output):
            guard template != nil else {
                let prompt = request + "\n\n"
                return try plain(prompt + output, supervisedFrom: prompt.utf8.count, line: line)
            }
            return try chat(row, line: line)
        case .preference(let chosen, let rejected):
            let (chosen, rejected) = (try answer(chosen, line: line), try answer(rejected, line: line))
            return Example(
                ids: chosen.ids, supervised: chosen.supervised, line: line,
                rejected: (rejected.ids, rejected.supervised))
        case .labelled(let text, let pair, _): return try whole(text, pair, line: line)
        }
    }

    /// A prompt with an answer, of which only the answer is supervised.
    private func answer(_ answer: DataRow.Answer, line: Int) throws -> Example {
        switch answer {
        case .text(let prompt, let completion):
            return try plain(prompt + completion, supervisedFrom: prompt.utf8.count, line: line)
        case .messages(let messages, let promptCount):
            return try chat(ChatConversation(messages), after: promptCount, line: line)
        }
    }

    /// A text, perhaps with a second one, as transformers gives it to a model: with the tokens that the tokenizer's
    /// post-processor adds, and nothing supervised.
    private func whole(_ text: String, _ pair: String?, line: Int) throws -> Example {
        let encoding =
            pair.map { tokenizer.encodeWithRanges(text, pair: $0) }
            ?? tokenizer.encodeWithRanges(text, addSpecialTokens: true)
        guard !encoding.ids.isEmpty else { throw TrainingError("the row's text has no tokens") }
        return Example(ids: encoding.ids, supervised: [], line: line)
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
    private func chat(_ row: DataRow, line: Int) throws -> Example {
        try chat(row.conversation, after: 0, line: line)
    }

    /// The same, without the assistant's turns among the first so many messages.
    private func chat(_ conversation: ChatConversation, after promptCount: Int, line: Int) throws -> Example {
        guard let template else {
            throw TrainingError("the row has \"messages\", but the model has no chat template")
        }
        let example = try ChatEncoder(tokenizer, template: template).example(conversation, after: promptCount)
        return try checked(
            Example(ids: example.ids, supervised: example.supervised, line: line),
            conversation.messages.contains { $0.role == "assistant" } ? "" : ": no message has the role \"assistant\"")
    }

    private func checked(_ example: Example, _ reason: String) throws -> Example {
        guard example.supervisedCount > 0 else { throw TrainingError("the row has no token to learn\(reason)") }
        return example
    }
}
