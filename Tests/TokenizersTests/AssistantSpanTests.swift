import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Where the assistant speaks in a rendered conversation.
struct AssistantSpanTests {
    private let talk = [
        ChatMessage(role: "system", content: "Be brief."), ChatMessage(role: "user", content: "Hällo 👋"),
        ChatMessage(role: "assistant", content: " Yes. é "), ChatMessage(role: "user", content: "2+2?"),
        ChatMessage(role: "assistant", content: "Four"),
    ]

    /// A question, a call of a tool, its answer, the assistant's.
    private func toolTalk() throws -> ChatConversation {
        try ChatConversation(
            json: [
                "messages": [
                    ["role": "user", "content": "2+é?"],
                    [
                        "role": "assistant", "content": nil,
                        "tool_calls": [
                            [
                                "id": "abcdefghi", "type": "function",
                                "function": ["name": "add", "arguments": "{\"a\": 2, \"b\": \"é\"}"],
                            ]
                        ],
                    ],
                    ["role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "4"],
                    ["role": "assistant", "content": "It is 4."],
                ],
                "tools": [
                    [
                        "type": "function",
                        "function": [
                            "name": "add", "description": "Adds",
                            "parameters": ["type": "object", "properties": ["a": ["type": "integer"]]],
                        ],
                    ]
                ],
            ])
    }

    private func spans(_ template: ChatTemplate, _ conversation: ChatConversation) throws -> [String] {
        let (text, spans) = try template.renderWithAssistantSpans(conversation)
        #expect(isSame(text, try template.render(conversation, addGenerationPrompt: false)))
        let bytes = Array(text.utf8)
        return spans.map { String(decoding: bytes[$0], as: UTF8.self) }
    }

    private func spans(
        _ template: ChatTemplate, _ messages: [ChatMessage], variables: KeyedList<JSON> = [:]
    ) throws -> [String] {
        try spans(template, ChatConversation(messages, variables: variables))
    }

    private func template(_ source: String, _ ends: [String]) throws -> ChatTemplate {
        try ChatTemplate(
            source: source, specialTokens: ["bos_token": "<s>", "eos_token": "</s>"], endOfTurnTokens: ends)
    }

    @Test func theModelsSpansAreContentAndEndOfTurn() async throws {
        let tokenizer = try await smolLM2.value
        let template = try tokenizer.chatTemplate()
        var talk = talk
        talk[2].content = "Grüße! <|im_end|> is a token."
        #expect(try spans(template, talk) == ["Grüße! <|im_end|> is a token.<|im_end|>", "Four<|im_end|>"])
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

    @Test(arguments: TemplateFamily.all) func everyFamilyHasItsSpans(_ family: TemplateFamily) throws {
        let template = try template(family.source, family.ends)
        let messages = family.hasSystem ? talk : Array(talk[1...])
        let found = try spans(template, messages)
        let text = try template.render(messages: messages, addGenerationPrompt: false)
        #expect(found == family.spans, "\(family.name): \(text)")
        if !family.toolSpans.isEmpty {
            let found = try spans(template, toolTalk())
            let text = try template.render(toolTalk(), addGenerationPrompt: false)
            #expect(found == family.toolSpans, "\(family.name): \(text)")
        }
        // Without known end-of-turn tokens the turns are the same and end later, or are refused.
        if let without = try? spans(self.template(family.source, []), messages) {
            #expect(without.count == found.count)
            #expect(zip(without, found).allSatisfy { $0.hasPrefix(String($1.prefix(3))) }, "\(family.name): \(without)")
        }
    }

    @Test func spansHoldTheWordsWhateverTheyAre() throws {
        for (index, family) in TemplateFamily.all.enumerated() {
            var generator = ConversationGenerator(seed: 700 + UInt64(index))
            let template = try template(family.source, family.ends)
            var known = 0
            for _ in 0..<60 {
                let conversation = generator.conversation()
                guard let (text, spans) = try? template.renderWithAssistantSpans(conversation) else { continue }
                known += 1
                let bytes = Array(text.utf8)
                let turns = conversation.messages.filter { $0.role == "assistant" }
                #expect(spans.count == turns.count)
                #expect(zip(spans, spans.dropFirst()).allSatisfy { $0.upperBound <= $1.lowerBound })
                for (span, turn) in zip(spans, turns) {
                    let said = String(decoding: bytes[span], as: UTF8.self)
                    // Templates drop thoughts and trim; what is left of the words is inside.
                    let words = turn.content.components(separatedBy: "</think>").last ?? ""
                    let trimmed = words.trimmed
                    if turn.fields["tool_calls"] == nil, turn.fields["content"]?.string != nil {
                        #expect(said.contains(bytes: trimmed), "\(family.name): \(said) lacks \(trimmed)")
                    }
                }
            }
            #expect(known > 5, "\(family.name)")
        }
    }

    @Test func oldThoughtsThatAreDroppedDoNotMatter() throws {
        let family = try #require(TemplateFamily.all.first { $0.name == "Qwen 3" })
        let template = try template(family.source, family.ends)
        var messages = [
            ChatMessage(role: "user", content: "a"),
            ChatMessage(role: "assistant", content: "<think>\nx\n</think>\n\nb"),
            ChatMessage(role: "user", content: "c"),
            ChatMessage(role: "assistant", content: "<think>\ny\n</think>\n\nd"),
        ]
        #expect(try spans(template, Array(messages[..<2])) == ["<think>\nx\n</think>\n\nb<|im_end|>"])
        #expect(try spans(template, messages) == ["b<|im_end|>", "<think>\ny\n</think>\n\nd<|im_end|>"])
        // Where the prompt supplies empty thoughts, they are not trained.
        messages[3].content = "d"
        #expect(try spans(template, messages, variables: ["enable_thinking": false]) == ["b<|im_end|>", "d<|im_end|>"])
        messages[3].fields["reasoning_content"] = "because"
        #expect(try spans(template, messages)[1] == "<think>\nbecause\n</think>\n\nd<|im_end|>")
        // In a prompt that opens the thoughts, the words of an old turn begin right after the header.
        let opening = try #require(TemplateFamily.all.first { $0.name == "DeepSeek R1" })
        #expect(
            try spans(self.template(opening.source, opening.ends), messages)
                == ["\n\nb<｜end▁of▁sentence｜>", "d<｜end▁of▁sentence｜>"])
    }

    @Test func whatCannotBeKnownIsRefused() throws {
        let cases = [
            ("{{ messages[-1].content }}", "message 3, which is the assistant's, is left out"),
            ("{{ messages|tojson }}", "several messages"),
            ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[2].content }}", "among other messages"),
            (
                "{% for m in messages %}{{ m.role if loop.last else 'x' }}:{{ m.content }}\n{% endfor %}"
                    + "{% if add_generation_prompt %}assistant:{% endif %}",
                "begins otherwise than the generation prompt"
            ),
            (
                "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '!' if loop.last }}{% endfor %}"
                    + "{% if add_generation_prompt %}<assistant>{% endif %}", "ends otherwise"
            ),
        ]
        for (source, part) in cases {
            let error = #expect(throws: TemplateError.self) { try spans(template(source, []), Array(talk)) }
            #expect(error?.message.contains(part) ?? false, "\(source): \(error?.message ?? "no error")")
        }
        // A template that answers questions only still shows its prompt.
        let strict = """
            {% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}
            {% if add_generation_prompt %}{{ raise_exception('no') if messages|length % 2 == 0 }}<assistant>{% endif %}
            """
        #expect(
            try spans(template(strict, ["</assistant>"]), Array(talk)) == [" Yes. é </assistant>", "Four</assistant>"])
    }
}

extension String {
    /// Without what Python or Swift takes for white space at the ends.
    fileprivate var trimmed: String {
        func isBlank(_ scalar: Unicode.Scalar) -> Bool {
            scalar.properties.isWhitespace || scalar.value <= 0xA0 && !scalar.isASCII || scalar.value <= 0x20
        }
        var rest = unicodeScalars[...]
        while let first = rest.first, isBlank(first) { rest.removeFirst() }
        while let last = rest.last, isBlank(last) { rest.removeLast() }
        return String(rest)
    }

    /// Whether the bytes of a part are among the string's.
    fileprivate func contains(bytes part: String) -> Bool {
        let (text, part) = (Array(utf8), Array(part.utf8))
        guard let first = part.first else { return true }
        guard text.count >= part.count else { return false }
        return (0...text.count - part.count).contains {
            text[$0] == first && text[$0..<$0 + part.count].elementsEqual(part)
        }
    }
}
