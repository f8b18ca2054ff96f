import Formats
import TestSupport
import Testing
import Tokenizers

/// Conversations as tokens: what begins once and what ends each turn.
struct ChatEncoderTests {
    /// SmolLM2's tokenizer with another template and other roles of its tokens, through a folder as models come in.
    private func withFolder<Result>(
        _ source: String, bos: String = "<|endoftext|>", eos: String = "<|im_end|>",
        _ body: (Tokenizer, TemporaryFolder) async throws -> Result
    ) async throws -> Result {
        let original = try await smolLM2.value
        return try await withTemporaryFolder { folder in
            try original.write(toFolder: folder.path)
            var configuration = try JSON.read(path: folder.path + "/tokenizer_config.json")
            configuration["bos_token"] = .string(bos)
            configuration["eos_token"] = .string(eos)
            configuration["add_bos_token"] = true
            configuration["chat_template"] = nil
            // It would win over the configuration.
            try folder.write("{}", to: "special_tokens_map.json")
            try folder.write(configuration.compact, to: "tokenizer_config.json")
            try folder.write(source, to: "chat_template.jinja")
            return try await body(try Tokenizer(folder: folder.path), folder)
        }
    }

    private let llamaStyle = """
        {{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
        {{ m.content | trim }}<|im_end|>
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
        {% endif %}
        """

    private func conversation(_ lines: inout LineGenerator) -> ChatConversation {
        ChatConversation([
            ChatMessage(role: "system", content: lines.line(fragments: 3)),
            ChatMessage(role: "user", content: lines.line(fragments: 3)),
            ChatMessage(role: "assistant", content: lines.line(fragments: 3)),
            ChatMessage(role: "user", content: lines.line(fragments: 3)),
            ChatMessage(role: "assistant", content: "It is " + lines.line(fragments: 3)),
        ])
    }

    @Test("One BOS, EOS trained") func oneBOSAndTrainedEOS() async throws {
        try await withFolder(llamaStyle) { tokenizer, folder in
            let (bos, eos) = (
                try #require(tokenizer.id(of: "<|endoftext|>")), try #require(tokenizer.id(of: "<|im_end|>"))
            )
            #expect(tokenizer.addsBOS && tokenizer.specialTokens.bos == bos && tokenizer.specialTokens.eos == eos)
            let encoder = ChatEncoder(tokenizer, template: try tokenizer.chatTemplate())
            var lines = LineGenerator(seed: 77)
            for number in 0..<50 {
                var conversation = conversation(&lines)
                let example = try encoder.example(conversation)
                #expect(example.ids.count { $0 == bos } == 1 && example.ids.first == bos)
                #expect(!(example.supervised.first ?? true))
                #expect(example.ids.count == example.supervised.count)
                // Both turns' ends are targets, and no other end is.
                let ends = example.ids.indices.filter { example.ids[$0] == eos }
                #expect(ends.map { example.supervised[$0] } == [false, false, true, false, true])
                #expect(encoder.teachesToStop(example))

                // What generation is given is what training puts before the answer.
                conversation.messages.removeLast()
                let prompt = try encoder.prompt(conversation)
                #expect(prompt.count { $0 == bos } == 1 && example.ids.starts(with: prompt))
                #expect(example.supervised[prompt.count] && !example.supervised[prompt.count - 1])

                guard number < 4 else { continue }
                let reference = try await Oracle.shared.call(
                    "tokenizers.folder",
                    [
                        "path": .string(folder.path), "lines": ["a"],
                        "messages": JSON(conversation.messages.map { .object($0.fields) }),
                    ])
                #expect(prompt == (try integers(reference["chat_ids"])), "\(reference["chat"]?.compact ?? "")")
            }
            // A cut row does not teach to stop, nor one where the end is not trained.
            let whole = try encoder.example(conversation(&lines))
            let cut = whole.ids.indices.filter { whole.ids[$0] != eos }
            #expect(
                !tokenizer.teachesToStop(ids: cut.map { whole.ids[$0] }, supervised: cut.map { whole.supervised[$0] }))
            #expect(!tokenizer.teachesToStop(ids: whole.ids, supervised: whole.ids.map { _ in false }))
            // Plain text has one BOS too.
            #expect(tokenizer.encode("Hello", addSpecialTokens: true).count { $0 == bos } == 1)
        }
    }

    @Test func aSecondBOSIsAnError() async throws {
        try await withFolder("{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}") {
            tokenizer, _ in
            let encoder = ChatEncoder(tokenizer, template: try tokenizer.chatTemplate())
            #expect(throws: Never.self) {
                try encoder.prompt(ChatConversation([ChatMessage(role: "user", content: "a")]))
            }
            let error = #expect(throws: TemplateError.self) {
                try encoder.prompt(ChatConversation([ChatMessage(role: "user", content: "<|endoftext|>a")]))
            }
            #expect(error?.message.contains("begins with <|endoftext|> twice") ?? false)
        }
    }

    /// Training that ends turns with another token than the configuration's end of sequence, and generation that stops there.
    @Test func theTemplatesEndOfTurnStopsGeneration() async throws {
        try await withFolder(llamaStyle, bos: "<|endoftext|>", eos: "<|endoftext|>") { tokenizer, _ in
            let (end, eos) = (
                try #require(tokenizer.id(of: "<|im_end|>")), try #require(tokenizer.id(of: "<|endoftext|>"))
            )
            #expect(tokenizer.stopTokenIDs == [end, eos].sorted())
            var lines = LineGenerator(seed: 78)
            let encoder = ChatEncoder(tokenizer, template: try tokenizer.chatTemplate())
            #expect(encoder.teachesToStop(try encoder.example(conversation(&lines))))
        }
    }

    @Test func whatTheTemplateLeavesOutIsAnError() async throws {
        let call: JSON = [["function": ["name": "add", "arguments": ["a": 1]]]]
        let messages: [ChatMessage] = [
            ChatMessage(role: "user", content: "a"),
            try ChatMessage(json: ["role": "assistant", "content": "", "tool_calls": call]),
            ChatMessage(role: "tool", content: "2"), ChatMessage(role: "assistant", content: "It is 2."),
        ]
        var thought = messages[3]
        thought.fields["reasoning_content"] = "One and one."
        let silent: [(ChatConversation, String)] = [
            (ChatConversation(messages), "message 2: \"tool_calls\" is left out"),
            (ChatConversation([messages[0], thought]), "message 2: \"reasoning_content\" is left out"),
            (ChatConversation([messages[0], messages[3]], tools: [["name": "add"]]), "\"tools\" is left out"),
        ]
        try await withFolder(llamaStyle) { tokenizer, _ in
            let encoder = ChatEncoder(tokenizer, template: try tokenizer.chatTemplate())
            for (conversation, words) in silent {
                let error = #expect(throws: TemplateError.self) { try encoder.example(conversation) }
                #expect(error?.message.contains(words) ?? false, "\(words)")
            }
            // Fields without content say nothing that could be left out.
            var empty = messages[3]
            empty.fields["tool_calls"] = []
            empty.fields["reasoning_content"] = ""
            #expect(throws: Never.self) { try encoder.example(ChatConversation([messages[0], empty])) }
        }
        // A template that writes messages whole leaves nothing out, though it names no field.
        let whole = try ChatTemplate(source: "{% for m in messages %}{{ m | tojson }}{% endfor %}")
        #expect(throws: Never.self) { try whole.requireAllIsWritten(of: silent[0].0) }
        #expect(throws: TemplateError.self) { try whole.requireAllIsWritten(of: silent[2].0) }
    }

    @Test func messagesAreChecked() throws {
        let message = try ChatMessage(
            json: [
                "role": "assistant", "content": nil, "reasoning_content": "why", "weight": 1,
                "tool_calls": [
                    ["function": ["name": "f", "arguments": "{\"x\": [1, 2.0]}"], "id": "a"], ["name": "g"],
                ],
            ])
        #expect(message.role == "assistant" && message.content.isEmpty)
        #expect(message.fields["weight"] == 1)
        #expect(message.fields["tool_calls"]?[0]?["function"]?["arguments"] == ["x": [1, 2.0]])
        let parts = try ChatMessage(
            json: ["role": "user", "content": [["type": "text", "text": "a"], ["type": "image"], "b"]])
        #expect(parts.content == "a")

        let cases: [(JSON, String)] = [
            ("hi", "expected an object"), (["content": "a"], "\"role\" is missing"),
            (["role": 1], "\"role\" is an integer"),
            (["role": "", "content": "a"], "\"role\" is an empty string"),
            (["role": "user"], "\"content\" is missing"),
            (["role": "user", "contents": "a"], "Did you mean \"content\"?"),
            (["role": "user", "content": nil], "\"content\" is null"),
            (["role": "user", "content": 3], "is an integer"),
            (["role": "user", "content": [["text": "a"]]], "part 1"),
            (["role": "user", "content": [["type": "text"]]], "part 1 of \"content\" has the type"),
            (["role": "user", "content": ""], "empty string"),
            (["role": "tool", "content": "a", "tool_call_id": 3], "tool_call_id"),
            (["role": "assistant", "tool_calls": 3], "\"tool_calls\" is an integer"),
            (["role": "assistant", "tool_calls": ["f"]], "tool call 1: expected an object"),
            (
                ["role": "assistant", "tool_calls": [["function": ["arguments": [:]]]]],
                "tool call 1: the function has no"
            ),
            (["role": "assistant", "tool_calls": [["name": "f", "arguments": "x"]]], "holds no JSON object"),
            (["role": "assistant", "tool_calls": [["name": "f", "arguments": [1]]]], "is an array"),
        ]
        for (json, part) in cases {
            let error = #expect(throws: TemplateError.self) { try ChatMessage(json: json) }
            #expect(error?.message.contains(part) ?? false, "\(json): \(error?.message ?? "")")
        }
        let conversation = try ChatConversation(
            json: [
                "messages": [["role": "user", "content": "a"]], "tools": "[{\"name\": \"f\"}]",
                "chat_template_kwargs": ["enable_thinking": false],
            ])
        #expect(conversation.tools == [["name": "f"]] && conversation.variables["enable_thinking"] == false)
        for (json, part): (JSON, String) in [
            ([:], "\"messages\" is missing"), (["messages": []], "is empty"),
            (["messages": [["role": "user", "content": "a"], 1]], "message 2: expected"),
            (["messages": [["role": "user", "content": "a"]], "tools": [1]], "tool 1 is an integer"),
            (["messages": [["role": "user", "content": "a"]], "tools": "x"], "holds no JSON"),
            (["messages": [["role": "user", "content": "a"]], "chat_template_kwargs": 1], "expected an object"),
        ] {
            let error = #expect(throws: TemplateError.self) { try ChatConversation(json: json) }
            #expect(error?.message.contains(part) ?? false, "\(json): \(error?.message ?? "")")
        }
    }
}
