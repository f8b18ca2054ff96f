import Formats
import TestSupport
import Testing
import Tokenizers

/// Where the assistant speaks in a rendered conversation.
struct AssistantSpanTests {
    private let talk = [
        ChatMessage(role: "system", content: "Be brief."), ChatMessage(role: "user", content: "Hällo 👋"),
        ChatMessage(role: "assistant", content: "Grüße! <|im_end|> is a token."),
        ChatMessage(role: "user", content: "12?"),
        ChatMessage(role: "assistant", content: "twelve \n"),
    ]

    private func spans(
        _ template: ChatTemplate, _ messages: [ChatMessage], variables: KeyedList<JSON> = [:]
    ) throws -> [String] {
        let (text, spans) = try template.renderWithAssistantSpans(messages: messages, variables: variables)
        #expect(isSame(text, try template.render(messages: messages, addGenerationPrompt: false, variables: variables)))
        let bytes = Array(text.utf8)
        return spans.map { String(decoding: bytes[$0], as: UTF8.self) }
    }

    @Test func theModelsSpansAreContentAndEndOfTurn() async throws {
        let tokenizer = try await smolLM2.value
        let template = try tokenizer.chatTemplate()
        #expect(
            try spans(template, talk) == ["Grüße! <|im_end|> is a token.<|im_end|>", "twelve \n<|im_end|>"])
        #expect(try spans(template, Array(talk[1...])).count == 2)
        #expect(try spans(template, Array(talk[..<2])) == [])
        #expect(try spans(template, [talk[1], ChatMessage(role: "assistant", content: "")]) == ["<|im_end|>"])

        // Tokens: the spans' bytes are whole tokens, the last of each the end of turn.
        let (text, ranges) = try template.renderWithAssistantSpans(messages: talk)
        let encoding = tokenizer.encodeWithRanges(text)
        for range in ranges {
            let inside = encoding.ranges.indices.filter { encoding.ranges[$0].overlaps(range) }
            #expect(inside.allSatisfy { range.contains(encoding.ranges[$0].lowerBound) })
            #expect(encoding.ids[try #require(inside.last)] == 2)
            #expect(encoding.ranges[try #require(inside.last)].upperBound == range.upperBound)
        }
        #expect(encoding.ids.first == 1 && encoding.ids.count { $0 == 1 } == talk.count)
    }

    @Test func theGenerationPromptIsNotTrained() async throws {
        var generator = LineGenerator(seed: 61)
        let template = try (try await smolLM2.value).chatTemplate()
        for _ in 0..<100 {
            var messages: [ChatMessage] = []
            for _ in 0..<3 {
                messages.append(ChatMessage(role: "user", content: generator.line(fragments: 4)))
                messages.append(ChatMessage(role: "assistant", content: generator.line(fragments: 4)))
            }
            let expected = messages.filter { $0.role == "assistant" }.map { $0.content + "<|im_end|>" }
            #expect(zip(try spans(template, messages), expected).allSatisfy { isSame($0, $1) })
        }
    }

    @Test func otherFamiliesHaveTheirSpans() throws {
        func template(_ source: String, _ ends: String...) throws -> ChatTemplate {
            try ChatTemplate(
                source: source, specialTokens: ["bos_token": "<s>", "eos_token": "</s>"], endOfTurnTokens: ends)
        }
        let messages = [
            ChatMessage(role: "user", content: "a"), ChatMessage(role: "assistant", content: " b "),
            ChatMessage(role: "user", content: "c"), ChatMessage(role: "assistant", content: "d"),
        ]
        #expect(try spans(template(Templates.chatML, "<|im_end|>"), messages) == ["b<|im_end|>", "d<|im_end|>"])
        #expect(try spans(template(Templates.llama3, "<|eot_id|>"), messages) == ["b<|eot_id|>", "d<|eot_id|>"])
        #expect(try spans(template(Templates.qwen25, "<|im_end|>"), messages) == [" b <|im_end|>", "d<|im_end|>"])
        #expect(
            try spans(template(Templates.gemma, "<end_of_turn>"), messages) == ["b<end_of_turn>", "d<end_of_turn>"])
        #expect(try spans(template(Templates.mistral, "</s>"), messages) == [" b</s>", " d</s>"])
        // This one closes the conversation with a token that is not there while it goes on.
        #expect(try spans(template(Templates.phi3, "<|end|>"), messages) == [" b <|end|>", "d<|end|>"])
        #expect(try spans(template(Templates.generation, "[/A]"), messages) == [" b [/A]", "d[/A]"])
        // Without an end-of-turn token the turn is the whole of what it adds.
        #expect(try spans(template(Templates.chatML), messages) == ["b<|im_end|>\n", "d<|im_end|>\n"])
    }

    @Test func aTemplateThatChangesThePastIsAnError() throws {
        let template = try ChatTemplate(source: Templates.thinking, endOfTurnTokens: ["<|im_end|>"])
        let messages = [
            ChatMessage(role: "user", content: "a"),
            ChatMessage(role: "assistant", content: "<think>\nx\n</think>\n\nb"),
            ChatMessage(role: "user", content: "c"),
            ChatMessage(role: "assistant", content: "<think>\ny\n</think>\n\nd"),
        ]
        #expect(try spans(template, Array(messages[..<2])) == ["<think>\nx\n</think>\n\nb<|im_end|>"])
        let error = #expect(throws: TemplateError.self) { try spans(template, messages) }
        #expect(error?.message.contains("message 1") ?? false)

        let last = try ChatTemplate(source: "{{ messages[-1].content }}")
        #expect(throws: TemplateError.self) { try spans(last, messages) }
    }
}
