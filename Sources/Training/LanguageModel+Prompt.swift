import Tokenizers

extension LanguageModel {
    /// A text as the tokens that training puts before the rest of its row: no end-of-sequence token follows.
    package func promptTokens(_ text: String) -> [Int] {
        let ids = tokenizer.encode(text)
        guard tokenizer.addsBOS, let bos = tokenizer.specialTokens.bos, ids.first != bos else { return ids }
        return [bos] + ids
    }

    /// A conversation as the tokens after which the assistant speaks, as training puts them before its answer.
    ///
    /// - Throws: `TokenizerError` when the model has no chat template, `TemplateError` when that refuses the
    ///   conversation.
    public func promptTokens(_ conversation: ChatConversation) throws -> [Int] {
        guard let chatTemplate else {
            throw TokenizerError("\(name) has no chat template; use --prompt, or a model made for chat")
        }
        return try ChatEncoder(tokenizer, template: chatTemplate).prompt(conversation)
    }
}
