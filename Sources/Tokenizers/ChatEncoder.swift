/// Turns conversations into tokens: the one way for training, evaluation, generation and chat.
///
/// A rendered template has its own special tokens, so none is added when it is split into tokens: what begins the text once
/// begins the tokens once.
public struct ChatEncoder: Sendable {
    /// Splits the rendered text into tokens.
    public let tokenizer: Tokenizer
    /// Renders conversations.
    public let template: ChatTemplate

    /// The tokens of a conversation to learn from.
    public struct Example: Sendable, Equatable {
        /// The token numbers.
        public var ids: [Int]
        /// Whether each token is the assistant's: part of the loss.
        public var supervised: [Bool]
    }

    /// Joins a tokenizer and a template.
    public init(_ tokenizer: Tokenizer, template: ChatTemplate) {
        self.tokenizer = tokenizer
        self.template = template
    }

    /// The tokens after which the assistant speaks.
    ///
    /// - Throws: ``TemplateError`` when the template refuses the conversation.
    public func prompt(_ conversation: ChatConversation) throws -> [Int] {
        try encode(try template.render(conversation, addGenerationPrompt: true)).ids
    }

    /// The tokens of a whole conversation, those that reach into a turn of the assistant supervised.
    ///
    /// - Parameters:
    ///   - conversation: The conversation.
    ///   - promptCount: How many of its first messages are a prompt, in which nothing is supervised.
    /// - Throws: ``TemplateError`` when the template refuses the conversation, leaves out its tools, calls of tools or
    ///   reasoning, or a turn's place is unknown.
    public func example(_ conversation: ChatConversation, after promptCount: Int = 0) throws -> Example {
        try template.requireAllIsWritten(of: conversation)
        let rendered = try template.renderWithAssistantSpans(conversation)
        let encoding = try encode(rendered.text)
        // Each turn of the assistant has one span.
        let given = conversation.messages.prefix(promptCount).count { $0.role == "assistant" }
        var spans = rendered.spans.dropFirst(given)
        let supervised = encoding.ranges.map { range in
            // Tokens and spans both ascend: a span that ends before this token ends before all later ones.
            while let span = spans.first, span.upperBound <= range.lowerBound { spans.removeFirst() }
            return spans.first?.overlaps(range) ?? false
        }
        return Example(ids: encoding.ids, supervised: supervised)
    }

    /// Whether the tokens teach the model to stop: a token that ends a turn or a sequence is supervised.
    ///
    /// A model that never sees one as a target never learns to stop; rows that were cut have none.
    public func teachesToStop(_ example: Example) -> Bool {
        tokenizer.teachesToStop(ids: example.ids, supervised: example.supervised)
    }

    private func encode(_ text: String) throws -> Encoding {
        let encoding = tokenizer.encodeWithRanges(text)
        if let bos = tokenizer.specialTokens.bos, encoding.ids.starts(with: [bos, bos]) {
            let name = tokenizer.token(bos) ?? "\(bos)"
            throw TemplateError(
                "the rendered conversation begins with \(name) twice; the template writes it, so take it out of the "
                    + "first message")
        }
        return encoding
    }
}

extension Tokenizer {
    /// Whether a stop token is among the supervised tokens.
    public func teachesToStop(ids: [Int], supervised: [Bool]) -> Bool {
        zip(ids, supervised).contains { id, isSupervised in isSupervised && stopTokenIDs.contains(id) }
    }
}
