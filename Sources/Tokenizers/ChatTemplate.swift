import Formats

/// A message of a conversation.
public struct ChatMessage: Sendable, Equatable {
    /// Who speaks: `system`, `user` or `assistant`, or what else the template knows.
    public var role: String
    /// What is said.
    public var content: String

    /// Makes a message.
    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// The chat template of a model: turns a conversation into the text that the model was trained on.
///
/// Renders the Jinja source that comes with a model as `transformers` does (`trim_blocks`, `lstrip_blocks`, loop controls,
/// `raise_exception`, `strftime_now`, `tojson`). A construct that is not supported is an error, not left out.
/// The text has all the special tokens it needs: encode it without adding any.
public struct ChatTemplate: Sendable {
    /// The Jinja source.
    public let source: String

    private let statements: [JinjaStatement]
    /// The variables that are the same for all conversations.
    private let constants: [String: JinjaValue]
    private let endOfTurnTokens: [String]

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
        statements = try JinjaParser.parse(source)
        constants = specialTokens.mapValues { .string($0) }
    }

    /// Renders a conversation.
    ///
    /// - Parameters:
    ///   - messages: The conversation.
    ///   - addGenerationPrompt: Whether to end with what the assistant's turn begins with.
    ///   - variables: Further variables of the template, such as `enable_thinking`.
    /// - Throws: ``TemplateError``, also when the template refuses the conversation.
    public func render(
        messages: [ChatMessage], addGenerationPrompt: Bool, variables: KeyedList<JSON> = [:]
    ) throws -> String {
        var values = constants
        values["tools"] = JinjaValue.none
        values["documents"] = JinjaValue.none
        for pair in variables { values[pair.key] = JinjaValue(pair.value) }
        values["messages"] = .list(
            messages.map { .dictionary(["role": .string($0.role), "content": .string($0.content)]) })
        values["add_generation_prompt"] = .boolean(addGenerationPrompt)
        var interpreter = JinjaInterpreter(variables: values)
        var text = ""
        guard case .next = try interpreter.run(statements, &text) else {
            throw TemplateError("{% break %} or {% continue %} stands outside a loop")
        }
        return text
    }

    /// Renders a conversation and tells where the assistant speaks.
    ///
    /// A span begins after what `addGenerationPrompt` would have written and ends with the end-of-turn token (without one
    /// in the turn, where the turn ends). Both come from rendering the conversation up to the turn and up to its end.
    ///
    /// - Returns: The text, and for each message of the assistant a range of bytes in its UTF-8.
    /// - Throws: ``TemplateError``, also when the template writes earlier messages differently once later ones follow, so
    ///   that there is no such range.
    public func renderWithAssistantSpans(
        messages: [ChatMessage], variables: KeyedList<JSON> = [:]
    ) throws -> (text: String, spans: [Range<Int>]) {
        let text = try render(messages: messages, addGenerationPrompt: false, variables: variables)
        let whole = Array(text.utf8)
        let spans = try messages.indices.filter { messages[$0].role == "assistant" }.map { index in
            let before = try render(
                messages: Array(messages[..<index]), addGenerationPrompt: true, variables: variables)
            let through = try render(
                messages: Array(messages[...index]), addGenerationPrompt: false, variables: variables)
            return try span(in: whole, before: Array(before.utf8), through: Array(through.utf8), message: index)
        }
        return (text, spans)
    }

    private func span(in whole: [UInt8], before: [UInt8], through: [UInt8], message: Int) throws -> Range<Int> {
        guard whole.starts(with: before) else {
            throw TemplateError(
                "the text before message \(message), which is the assistant's, is not the beginning of the whole "
                    + "text, so its span is unknown; use a template that writes each message on its own")
        }
        // After the turn a template may close the conversation, so only what both texts share can be the turn.
        let shared = zip(whole, through).prefix { $0 == $1 }.count
        if let end = lastEndOfTurn(in: whole, before.count..<max(before.count, shared)) { return before.count..<end }
        guard shared == through.count, shared >= before.count else {
            throw TemplateError(
                "message \(message), which is the assistant's, is written differently once others follow, so its "
                    + "span is unknown; use a template that writes each message on its own")
        }
        return before.count..<shared
    }

    private func lastEndOfTurn(in text: [UInt8], _ range: Range<Int>) -> Int? {
        endOfTurnTokens.compactMap { token in
            let token = Array(token.utf8)
            guard !token.isEmpty, range.count >= token.count else { return nil }
            return (range.lowerBound...range.upperBound - token.count).last {
                text[$0] == token[0] && text[$0..<$0 + token.count].elementsEqual(token)
            }.map { $0 + token.count }
        }.max()
    }
}

extension Tokenizer {
    /// The chat template that came with the tokenizer.
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
