import Formats

/// A message of a conversation, with all that its JSON has: what the chat template sees of it.
public struct ChatMessage: Sendable, Equatable {
    /// The fields in their order, `role` and `content` among them.
    public var fields: KeyedList<JSON>

    /// Who speaks: `system`, `user`, `assistant` or `tool`, or what else the template knows.
    public var role: String {
        get { fields["role"]?.string ?? "" }
        set { fields["role"] = .string(newValue) }
    }

    /// What is said: the string, or the texts of the parts one after the other; empty where there is none.
    public var content: String {
        get {
            guard let content = fields["content"] else { return "" }
            return content.string ?? (content.array ?? []).compactMap { $0["text"]?.string }.joined()
        }
        set { fields["content"] = .string(newValue) }
    }

    /// Makes a message of plain text.
    public init(role: String, content: String) {
        fields = ["role": .string(role), "content": .string(content)]
    }

    /// Reads a message and checks what is known of its fields; others are kept for the template.
    ///
    /// Known are `role` (needed), `content` (a string or a list of parts; none or missing only where the assistant calls
    /// tools or gives its reasoning), `name`, `tool_call_id`, `reasoning_content` and `tool_calls`. The arguments of a tool
    /// call that are written as a string, as some services do, become the object that the string holds: templates
    /// would write the string's quotes otherwise.
    ///
    /// - Throws: ``TemplateError`` saying what was expected.
    public init(json: JSON) throws {
        guard var fields = json.object else {
            throw TemplateError("expected an object {\"role\", \"content\"}, found \(json.kind)")
        }
        try Self.checkRole(fields)
        for key in ["name", "tool_call_id", "reasoning_content"] {
            guard let value = fields[key], !value.isNull, value.string == nil else { continue }
            throw TemplateError("\"\(key)\" is \(value.kind); expected a string")
        }
        if let calls = fields["tool_calls"], !calls.isNull { fields["tool_calls"] = try Self.toolCalls(calls) }
        try Self.checkContent(fields)
        self.fields = fields
    }

    private static func checkRole(_ fields: KeyedList<JSON>) throws {
        guard let role = fields["role"] else { throw missing("role", fields) }
        guard let text = role.string else { throw TemplateError("\"role\" is \(role.kind); expected a string") }
        guard !text.isEmpty else {
            throw TemplateError("\"role\" is an empty string; expected system, user, assistant or tool")
        }
    }

    private static func checkContent(_ fields: KeyedList<JSON>) throws {
        let speaksOtherwise = ["tool_calls", "reasoning_content"].contains { fields[$0].map { !$0.isNull } ?? false }
        switch fields["content"] {
        case .string(let text):
            guard !text.isEmpty || speaksOtherwise || fields["role"]?.string == "tool" else {
                throw TemplateError("\"content\" is an empty string; expected some text")
            }
        case .array(let parts):
            for (index, part) in parts.enumerated() { try checkPart(part, number: index + 1) }
        case nil where !speaksOtherwise: throw missing("content", fields)
        case nil: break
        case .null where speaksOtherwise: break
        case let other?: throw TemplateError("\"content\" is \(other.kind); expected a string or a list of parts")
        }
    }

    private static func checkPart(_ part: JSON, number: Int) throws {
        guard part.string == nil else { return }
        guard part.object != nil, let type = part["type"]?.string else {
            throw TemplateError(
                "part \(number) of \"content\" is \(part.kind); expected {\"type\": \"text\", \"text\"}")
        }
        guard type != "text" || part["text"]?.string != nil else {
            throw TemplateError("part \(number) of \"content\" has the type \"text\" but no string \"text\"")
        }
    }

    private static func toolCalls(_ json: JSON) throws -> JSON {
        guard let calls = json.array else { throw TemplateError("\"tool_calls\" is \(json.kind); expected a list") }
        return .array(
            try calls.enumerated().map { index, call in
                let place = "tool call \(index + 1): "
                guard var call = call.object else {
                    throw TemplateError("\(place)expected an object {\"function\"}, found \(call.kind)")
                }
                if let function = call["function"] {
                    guard let function = function.object else {
                        throw TemplateError("\(place)\"function\" is \(function.kind); expected an object")
                    }
                    call["function"] = .object(try self.function(function, place))
                    return .object(call)
                }
                return .object(try function(call, place))
            })
    }

    private static func function(_ fields: KeyedList<JSON>, _ place: String) throws -> KeyedList<JSON> {
        var fields = fields
        guard fields["name"]?.string?.isEmpty == false else {
            throw TemplateError("\(place)the function has no \"name\"; expected {\"name\", \"arguments\"}")
        }
        switch fields["arguments"] {
        case nil, .null, .object: break
        case .string(let text):
            guard let parsed = try? JSON.parse(text), parsed.object != nil else {
                throw TemplateError(
                    "\(place)\"arguments\" is a string that holds no JSON object; write the object itself")
            }
            fields["arguments"] = parsed
        case let other?: throw TemplateError("\(place)\"arguments\" is \(other.kind); expected an object")
        }
        return fields
    }

    /// The error for a key that is not there; names the key that may have been meant for it.
    private static func missing(_ key: String, _ fields: KeyedList<JSON>) -> TemplateError {
        for other in fields.keys {
            let hint = suggestion(for: other, in: [key])
            if !hint.isEmpty { return TemplateError("the key \(JSON(other).compact) is unknown.\(hint)") }
        }
        return TemplateError("the key \"\(key)\" is missing")
    }
}

/// A conversation: its messages, the tools that the model may call, and further variables of the chat template.
public struct ChatConversation: Sendable, Equatable {
    /// What is said, in order.
    public var messages: [ChatMessage]
    /// The definitions of tools, as templates expect them: `{"type": "function", "function": {...}}`.
    public var tools: [JSON]
    /// Variables of the template, such as `enable_thinking`.
    public var variables: KeyedList<JSON>

    /// Makes a conversation.
    public init(_ messages: [ChatMessage], tools: [JSON] = [], variables: KeyedList<JSON> = [:]) {
        self.messages = messages
        self.tools = tools
        self.variables = variables
    }

    /// Reads `{"messages": [...]}`, with `tools` (a list, or its JSON as a string) and `chat_template_kwargs` (an object)
    /// where they are there; other keys are left to the caller.
    ///
    /// - Throws: ``TemplateError`` naming the message and what was expected.
    public init(json: JSON) throws {
        guard let list = json["messages"] else { throw TemplateError("the key \"messages\" is missing") }
        guard let items = list.array else {
            throw TemplateError("\"messages\" is \(list.kind); expected an array of {\"role\", \"content\"}")
        }
        guard !items.isEmpty else { throw TemplateError("\"messages\" is empty; expected at least one turn") }
        messages = try items.enumerated().map { index, item in
            do {
                return try ChatMessage(json: item)
            } catch let error as TemplateError {
                throw TemplateError("message \(index + 1): \(error.message)")
            }
        }
        tools = try Self.tools(json["tools"])
        guard let variables = json["chat_template_kwargs"], !variables.isNull else {
            self.variables = [:]
            return
        }
        guard let pairs = variables.object else {
            throw TemplateError("\"chat_template_kwargs\" is \(variables.kind); expected an object")
        }
        self.variables = pairs
    }

    private static func tools(_ json: JSON?) throws -> [JSON] {
        guard let json, !json.isNull else { return [] }
        let list = try json.string.map { text in
            guard let parsed = try? JSON.parse(text) else {
                throw TemplateError("\"tools\" is a string that holds no JSON; write the list itself")
            }
            return parsed
        }
        guard let tools = (list ?? json).array else {
            throw TemplateError("\"tools\" is \((list ?? json).kind); expected a list of tool definitions")
        }
        for (index, tool) in tools.enumerated() where tool.object == nil {
            throw TemplateError("tool \(index + 1) is \(tool.kind); expected an object with its definition")
        }
        return tools
    }
}
