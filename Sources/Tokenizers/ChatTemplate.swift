import Formats

/// The chat template of a model: turns a conversation into the text that the model was trained on.
///
/// Renders the Jinja source that comes with a model as `transformers` does (`trim_blocks`, `lstrip_blocks`, loop controls,
/// `raise_exception`, `strftime_now`, `tojson`). A construct that is not supported is an error, not left out.
/// The text has all the special tokens it needs: encode it without adding any, as ``ChatEncoder`` does.
public struct ChatTemplate: Sendable {
    /// The Jinja source.
    public let source: String
    /// The tokens as text that may end an assistant's turn.
    public let endOfTurnTokens: [String]

    /// The fields that not every template writes and that this one's source does not even name.
    let unnamedFields: Set<String>

    private let statements: [JinjaStatement]
    /// The variables that are the same for all conversations.
    private let constants: [String: JinjaValue]

    /// Reads a template.
    ///
    /// - Parameters:
    ///   - source: The Jinja source.
    ///   - specialTokens: Variables with the text of special tokens, such as `bos_token`.
    ///   - endOfTurnTokens: The tokens as text that may end an assistant's turn.
    /// - Throws: ``TemplateError`` with the line of what cannot be read.
    public init(source: String, specialTokens: [String: String] = [:], endOfTurnTokens: [String] = []) throws {
        self.source = source
        self.endOfTurnTokens = endOfTurnTokens
        unnamedFields = Set(Self.optionalFields.filter { !source.contains($0) })
        statements = try JinjaParser.parse(source)
        constants = specialTokens.mapValues { .string($0) }
    }

    /// Renders a conversation.
    ///
    /// - Parameters:
    ///   - conversation: The messages, tools and variables.
    ///   - addGenerationPrompt: Whether to end with what the assistant's turn begins with.
    /// - Throws: ``TemplateError``, also when the template refuses the conversation.
    public func render(_ conversation: ChatConversation, addGenerationPrompt: Bool) throws -> String {
        try render(conversation, addGenerationPrompt: addGenerationPrompt, tracksMessages: false).text
    }

    /// Renders messages.
    ///
    /// - Parameters:
    ///   - messages: The conversation.
    ///   - addGenerationPrompt: Whether to end with what the assistant's turn begins with.
    ///   - variables: Further variables of the template, such as `enable_thinking`.
    /// - Throws: ``TemplateError``, also when the template refuses the conversation.
    public func render(
        messages: [ChatMessage], addGenerationPrompt: Bool, variables: KeyedList<JSON> = [:]
    ) throws -> String {
        try render(ChatConversation(messages, variables: variables), addGenerationPrompt: addGenerationPrompt)
    }

    /// Renders a conversation and tells where the assistant speaks.
    ///
    /// Every character that the template writes carries the message that it came from, so a span is known wherever the
    /// message's own words stand, also when the template trims them, drops old thoughts or moves the system message. A
    /// span begins after what the template supplies when the assistant is to speak (the generation prompt) and ends with
    /// the end-of-turn token (without one in the turn, where the turn ends).
    ///
    /// - Returns: The text, and for each message of the assistant a range of bytes in its UTF-8.
    /// - Throws: ``TemplateError``, also when a span cannot be known: a message that the template leaves out, mixes with
    ///   others, or begins otherwise than the generation prompt.
    public func renderWithAssistantSpans(
        _ conversation: ChatConversation
    ) throws -> (text: String, spans: [Range<Int>]) {
        let finder = AssistantSpanFinder(messages: conversation.messages, endOfTurnTokens: endOfTurnTokens) {
            var part = conversation
            part.messages = Array($0)
            return try render(part, addGenerationPrompt: $1, tracksMessages: true)
        }
        return try finder.spans()
    }

    /// Renders messages and tells where the assistant speaks; see ``renderWithAssistantSpans(_:)``.
    public func renderWithAssistantSpans(
        messages: [ChatMessage], variables: KeyedList<JSON> = [:]
    ) throws -> (text: String, spans: [Range<Int>]) {
        try renderWithAssistantSpans(ChatConversation(messages, variables: variables))
    }

    /// The special token that the template writes right after what the assistant says; nil where there is none or the
    /// template refuses a plain conversation.
    func endOfTurn(_ tokenizer: Tokenizer) -> Int? {
        let messages = [ChatMessage(role: "user", content: "a"), ChatMessage(role: "assistant", content: "b")]
        guard
            let text = try? render(ChatConversation(messages), addGenerationPrompt: false, tracksMessages: true),
            let last = text.marks.last, last.message == 1, !last.isHeader
        else { return nil }
        let rest = text[last.range.upperBound..<text.count].text
        return tokenizer.encode(rest).first { tokenizer.isSpecialToken($0) }
    }

    private func render(
        _ conversation: ChatConversation, addGenerationPrompt: Bool, tracksMessages: Bool
    ) throws -> JinjaText {
        var values = constants
        values["tools"] = conversation.tools.isEmpty ? JinjaValue.none : JinjaValue(.array(conversation.tools))
        values["documents"] = JinjaValue.none
        for pair in conversation.variables { values[pair.key] = JinjaValue(pair.value) }
        values["messages"] = .list(
            conversation.messages.enumerated().map { index, message in
                let value = JinjaValue(.object(message.fields))
                return tracksMessages ? value.markedAsMessage(index) : value
            })
        values["add_generation_prompt"] = .boolean(addGenerationPrompt)
        var interpreter = JinjaInterpreter(variables: values)
        var text = JinjaText()
        guard case .next = try interpreter.run(statements, &text) else {
            throw TemplateError("{% break %} or {% continue %} stands outside a loop")
        }
        return text
    }
}

extension JinjaValue {
    /// A message with every string in it marked; its role and name as parts of its header.
    fileprivate func markedAsMessage(_ index: Int) -> JinjaValue {
        guard case .dictionary(let fields) = self else { return self }
        return .dictionary(
            fields.mapped { pair in
                var isHeader = false
                if case .string("role", _) = pair.key { isHeader = true }
                if case .string("name", _) = pair.key { isHeader = true }
                return (pair.key, pair.value.marked(message: index, isHeader: isHeader))
            })
    }
}

extension Tokenizer {
    /// The chat template that came with the tokenizer.
    ///
    /// The tokens that may end a turn are the tokenizer's stop tokens.
    ///
    /// - Throws: ``TokenizerError`` when there is none, ``TemplateError`` when it cannot be read.
    public func chatTemplate() throws -> ChatTemplate {
        guard let chatTemplateSource else {
            throw TokenizerError("this model has no chat template; give it plain text, or a model made for chat")
        }
        let roles = [
            ("bos_token", specialTokens.bos), ("eos_token", specialTokens.eos), ("pad_token", specialTokens.pad),
            ("unk_token", specialTokens.unk),
        ]
        var texts: [String: String] = [:]
        for (name, id) in roles { texts[name] = id.flatMap { token($0) } }
        return try ChatTemplate(
            source: chatTemplateSource, specialTokens: texts, endOfTurnTokens: stopTokenIDs.compactMap { token($0) })
    }
}
