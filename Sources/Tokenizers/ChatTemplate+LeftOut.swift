import Formats

extension ChatTemplate {
    /// What a conversation may have and many templates know nothing of.
    static let optionalFields = ["tools", "tool_calls", "reasoning_content"]

    /// Refuses a conversation with tools, calls of tools or reasoning that the template does not write: the model would
    /// learn from a conversation without them, and nobody would notice.
    ///
    /// A template may leave out what it knows, such as the reasoning of earlier turns.
    ///
    /// - Throws: ``TemplateError`` naming the message and the field.
    package func requireAllIsWritten(of conversation: ChatConversation) throws {
        for field in Self.optionalFields where unnamedFields.contains(field) {
            var reduced = conversation
            var place = ""
            if field == "tools" {
                guard !conversation.tools.isEmpty else { continue }
                reduced.tools = []
            } else {
                let index = conversation.messages.firstIndex { Self.says($0.fields[field]) }
                guard let index else { continue }
                place = "message \(index + 1): "
                for index in reduced.messages.indices { reduced.messages[index].fields[field] = nil }
            }
            // A template that writes a message as a whole, say as JSON, names no field and yet leaves nothing out.
            let text = try? render(conversation, addGenerationPrompt: false)
            guard text == nil || text == (try? render(reduced, addGenerationPrompt: false)) else { continue }
            throw TemplateError(
                "\(place)\"\(field)\" is left out, so the model would learn without it; write it into the \"content\" of a "
                    + "message, or use a model whose template knows it")
        }
    }

    private static func says(_ field: JSON?) -> Bool {
        switch field {
        case nil, .null: false
        case .string(let text): !text.isEmpty
        case .array(let items): !items.isEmpty
        default: true
        }
    }
}
