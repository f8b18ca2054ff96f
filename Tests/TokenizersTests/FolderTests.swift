import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Tokenizer folders, read and written, beside the reference libraries.
struct FolderTests {
    /// A folder that the reference trained, with its components.
    struct Variant: Sendable, CustomTestStringConvertible {
        let name: String
        var byteLevel: JSON = ["add_prefix_space": false, "use_regex": true]
        var digits: [Bool] = []
        var added: JSON = []
        var options: JSON = [:]
        var testDescription: String { name }
    }

    static let variants: [Variant] = [
        Variant(name: "byte level"),
        Variant(name: "prefix space", byteLevel: ["add_prefix_space": true, "use_regex": true], digits: [true]),
        Variant(name: "no pattern", byteLevel: ["add_prefix_space": false, "use_regex": false]),
        Variant(name: "no pattern, prefix space", byteLevel: ["add_prefix_space": true, "use_regex": false]),
        Variant(name: "runs of digits", digits: [false]),
        Variant(name: "ignored merges", options: ["ignore_merges": true]),
        Variant(name: "missing bytes", options: ["whole_alphabet": false]),
        Variant(name: "unknown token", options: ["whole_alphabet": false, "unk_token": "<unk>"]),
        Variant(name: "fused unknown", options: ["whole_alphabet": false, "unk_token": "<unk>", "fuse_unk": true]),
        Variant(
            name: "added tokens", digits: [true],
            added: [
                ["content": "<|a|>", "special": true], ["content": "<|a|><|b|>", "special": true],
                ["content": "<left>", "special": true, "lstrip": true], ["content": "plain", "special": false],
                ["content": "<right>", "special": true, "rstrip": true], ["content": "plain word", "special": false],
                ["content": "alone", "special": false, "single_word": true],
                ["content": "in<|a|>side", "special": false],
            ]),
    ]

    @Test(arguments: variants)
    func aTrainedFolderGivesTheReferencesTokens(variant: Variant) async throws {
        try await withTemporaryFolder { folder in
            var generator = LineGenerator(seed: 31)
            _ = try await Oracle.shared.call(
                "tokenizers.train",
                [
                    "path": .string(folder.path), "lines": JSON(generator.lines(400).map { .string($0) }), "size": 900,
                    "pre_tokenizer": [
                        "byte_level": variant.byteLevel, "digits": JSON(variant.digits.map { JSON($0) }),
                    ],
                    "added": variant.added, "options": variant.options,
                ])
            let tokenizer = try Tokenizer(folder: folder.path)
            var tokens = tokenizer.addedTokens.map(\.content)
            tokens += tokens.flatMap { ["x" + $0, $0 + " ", " \u{3000}" + $0, " " + $0 + "\n "] }
            var lines = LineGenerator(seed: 32, specials: tokens)
            let texts = lines.lines(800)
            let expected = try await referenceEncodings(folder.path, texts)
            for (text, reference) in zip(texts, expected) {
                #expect(tokenizer.encode(text) == reference.ids, "\(text.debugDescription)")
            }
            // The tokenizer written again is the same one.
            try await withTemporaryFolder { copy in
                try tokenizer.write(toFolder: copy.path)
                let again = try await referenceEncodings(copy.path, texts, ranges: false)
                #expect(again.map(\.ids) == expected.map(\.ids))
                let reread = try Tokenizer(folder: copy.path)
                #expect(texts.map { reread.encode($0) } == expected.map(\.ids))
                #expect(reread.addedTokens == tokenizer.addedTokens)
            }
        }
    }

    /// With the configuration of a Llama beside it, as a merged model has.
    @Test(arguments: [false, true])
    func transformersReadsTheWrittenFolder(withConfiguration: Bool) async throws {
        let tokenizer = try await smolLM2.value
        var generator = LineGenerator(seed: 41, specials: tokenizer.addedTokens.map(\.content))
        let lines = generator.lines(300) + ["2024-01-31", "a1b22c333", "٣٤٥ Ⅻ 12"]
        try await withTemporaryFolder { folder in
            try tokenizer.write(toFolder: folder.path)
            if withConfiguration {
                try folder.write(
                    #"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152}"#,
                    to: "config.json")
            }
            #expect(try folder.contents().contains("chat_template.jinja"))
            let messages: JSON = [
                ["role": "user", "content": "What is 12 + 345?"], ["role": "assistant", "content": " 357 "],
                ["role": "user", "content": "And in Greek: γειά\n"],
            ]
            let result = try await Oracle.shared.call(
                "tokenizers.folder",
                ["path": .string(folder.path), "lines": JSON(lines.map { .string($0) }), "messages": messages])
            let ids = try #require(result["ids"]?.array).map { try integers($0) }
            let own = lines.map { tokenizer.encode($0) }
            #expect(ids == own)
            #expect(try #require(result["with_special"]?.array).map { try integers($0) } == own)
            for (row, text) in zip(own, try strings(result["decoded"])) {
                #expect(isSame(try tokenizer.decode(row), text))
            }
            for (row, text) in zip(own, try strings(result["decoded_plain"])) {
                #expect(isSame(try tokenizer.decode(row, skipSpecialTokens: true), text))
            }
            #expect(result["roles"] == ["bos": 1, "eos": 2, "pad": 2, "unk": 0])
            #expect(result["size"]?.int == 49152)
            let conversation = [
                ChatMessage(role: "user", content: "What is 12 + 345?"),
                ChatMessage(role: "assistant", content: " 357 "),
                ChatMessage(role: "user", content: "And in Greek: γειά\n"),
            ]
            let text = try tokenizer.chatTemplate().render(messages: conversation, addGenerationPrompt: true)
            #expect(isSame(text, try #require(result["chat"]?.string)))
            #expect(tokenizer.encode(text) == (try integers(result["chat_ids"])))
            let reread = try Tokenizer(folder: folder.path)
            #expect(lines.map { reread.encode($0) } == own)
            #expect(reread.specialTokens == tokenizer.specialTokens && reread.stopTokenIDs == tokenizer.stopTokenIDs)
            #expect(reread.chatTemplateSource == tokenizer.chatTemplateSource)
        }
    }

    /// A tokenizer.json of six tokens, with one component replaced.
    private func tiny(_ change: (inout JSON) -> Void = { _ in }) -> JSON {
        var json: JSON = [
            "added_tokens": [
                ["id": 4, "content": "<s>", "special": true], ["id": 5, "content": "</s>", "special": true],
            ],
            "normalizer": nil,
            "pre_tokenizer": ["type": "ByteLevel", "add_prefix_space": false], "post_processor": nil,
            "decoder": ["type": "ByteLevel"],
            "model": ["type": "BPE", "vocab": ["a": 0, "b": 1, "ab": 2, "\u{120}": 3], "merges": ["a b"]],
        ]
        change(&json)
        return json
    }

    private func load(_ json: JSON, configuration: String = "{}", generation: String = "{}") throws -> Tokenizer {
        try withTemporaryFolder { folder in
            try folder.write(json.compact, to: "tokenizer.json")
            try folder.write(configuration, to: "tokenizer_config.json")
            try folder.write(generation, to: "generation_config.json")
            return try Tokenizer(folder: folder.path)
        }
    }

    @Test func theConfigurationIsRead() throws {
        let tokenizer = try load(
            tiny(),
            configuration: #"""
                {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true,
                 "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}
                """#,
            generation: #"{"eos_token_id": [4, 1]}"#)
        #expect(tokenizer.specialTokens == SpecialTokens(bos: 4, eos: 5))
        #expect(tokenizer.stopTokenIDs == [1, 4, 5])
        #expect(tokenizer.chatTemplateSource == "yes")
        #expect(tokenizer.encode("ab a", addSpecialTokens: true) == [4, 2, 3, 0, 5])
        let encoding = tokenizer.encodeWithRanges("ab a", addSpecialTokens: true)
        #expect(encoding.ranges == [0..<0, 0..<2, 2..<3, 3..<4, 0..<0])
        #expect(tokenizer.encode("ab a") == [2, 3, 0])
    }

    /// A folder's tokenizer is written as it was, with what encoding does not use; its limits can be read.
    @Test func aFolderIsWrittenAsItWas() throws {
        let json = tiny {
            $0["truncation"] = ["direction": "Left", "max_length": 12, "strategy": "OnlyFirst", "stride": 3]
            $0["padding"] = [
                "strategy": ["Fixed": 16], "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 5, "pad_type_id": 0,
                "pad_token": "</s>",
            ]
        }
        try withTemporaryFolder { folder in
            let text = "\n " + json.compact + " \n"
            try folder.write(text, to: "tokenizer.json")
            try folder.write(#"{"eos_token": "</s>",   "model_max_length": 12}"#, to: "tokenizer_config.json")
            let tokenizer = try Tokenizer(folder: folder.path)
            #expect(tokenizer.truncation?.maxLength == 12 && tokenizer.truncation?.strategy == "OnlyFirst")
            #expect(tokenizer.truncation?.stride == 3 && tokenizer.truncation?.direction == "Left")
            #expect(
                tokenizer.padding?.length == 16 && tokenizer.padding?.multiple == 8 && tokenizer.padding?.tokenID == 5)
            #expect(tokenizer.encode(String(repeating: "ab ", count: 20)).count == 40)
            try withTemporaryFolder { copy in
                try tokenizer.write(toFolder: copy.path)
                for name in ["tokenizer.json", "tokenizer_config.json"] {
                    let contents = try [folder, copy].map { try Data(contentsOf: URL(filePath: $0.path + "/" + name)) }
                    #expect(contents[0] == contents[1], "\(name)")
                }
            }
        }
    }

    /// Whether BOS and EOS are added: as in `transformers` by the post-processor, whatever the configuration says.
    @Test(arguments: ["{}", #"{"add_bos_token": false}"#, #"{"add_bos_token": true, "add_eos_token": true}"#])
    func thePostProcessorDecidesWhatIsAdded(flags: String) async throws {
        try await withTemporaryFolder { folder in
            let json = tiny {
                // The reference wants every field.
                $0["version"] = "1.0"
                $0["added_tokens"] = JSON(
                    [("<s>", 4), ("</s>", 5)].map { content, id in
                        [
                            "id": JSON(id), "content": .string(content), "single_word": false, "lstrip": false,
                            "rstrip": false, "normalized": false, "special": true,
                        ]
                    })
                $0["pre_tokenizer"] = Pipeline.byteLevel()
                $0["decoder"] = Pipeline.byteLevel()
                $0["post_processor"] = Pipeline.template(first: 4, last: 5)
            }
            try folder.write(json.compact, to: "tokenizer.json")
            var configuration = try JSON.parse(flags)
            configuration["bos_token"] = "<s>"
            configuration["eos_token"] = "</s>"
            configuration["tokenizer_class"] = "PreTrainedTokenizerFast"
            try folder.write(configuration.compact, to: "tokenizer_config.json")
            let tokenizer = try Tokenizer(folder: folder.path)
            let lines = ["ab a", "", "b"]
            let result = try await Oracle.shared.call(
                "tokenizers.folder",
                ["path": .string(folder.path), "lines": JSON(lines.map { .string($0) }), "messages": []])
            let expected = try #require(result["with_special"]?.array).map { try integers($0) }
            #expect(lines.map { tokenizer.encode($0, addSpecialTokens: true) } == expected)
            #expect(tokenizer.addsBOS == (expected[1].first == 4) && tokenizer.addsEOS == (expected[1].last == 5))
            #expect(tokenizer.encode("<s>ab") == [4, 2])
        }
    }

    private static func sequence(_ key: String, _ types: [String]) -> JSON {
        .object(["type": "Sequence", key: JSON(types.map { ["type": .string($0)] })])
    }

    private static func metaspace(_ scheme: String) -> JSON {
        ["type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": .string(scheme)]
    }

    @Test func whatIsNotSupportedIsNamed() throws {
        let cases: [(String, (inout JSON) -> Void)] = [
            ("'NFX' is not supported", { $0["normalizer"] = ["type": "NFX"] }),
            ("\"normalizer.normalizers[1]\"", { $0["normalizer"] = Self.sequence("normalizers", ["NFC", "NFX"]) }),
            ("'Words' is not supported", { $0["pre_tokenizer"] = ["type": "Words"] }),
            (
                "'Words' is not supported",
                { $0["pre_tokenizer"] = Self.sequence("pretokenizers", ["ByteLevel", "Words"]) }
            ),
            ("\"pre_tokenizer.pattern\"", { $0["pre_tokenizer"] = ["type": "Split", "behavior": "Isolated"] }),
            (
                "\"pre_tokenizer.pattern\"",
                {
                    $0["pre_tokenizer"] = [
                        "type": "Split", "pattern": ["Regex": "a(b"], "behavior": "Isolated", "invert": false,
                    ]
                }
            ),
            (
                "\"pre_tokenizer.behavior\"",
                { $0["pre_tokenizer"] = ["type": "Punctuation", "behavior": "Sometimes"] }
            ),
            ("\"pre_tokenizer.prepend_scheme\"", { $0["pre_tokenizer"] = Self.metaspace("sometimes") }),
            ("\"pre_tokenizer.length\"", { $0["pre_tokenizer"] = ["type": "FixedLength", "length": 0] }),
            ("\"post_processor.single\"", { $0["post_processor"] = ["type": "TemplateProcessing"] }),
            ("\"post_processor.cls\"", { $0["post_processor"] = ["type": "BertProcessing", "cls": 1] }),
            ("'Other' is not supported", { $0["post_processor"] = ["type": "Other"] }),
            ("'Other' is not supported", { $0["decoder"] = ["type": "Other"] }),
            ("\"decoder.content\"", { $0["decoder"] = ["type": "Strip", "content": "ab", "start": 1, "stop": 0] }),
            ("'Other' is not supported", { $0["model"]?["type"] = "Other" }),
            ("\"model.dropout\"", { $0["model"]?["dropout"] = 0.1 }),
            ("merge 1 'a c'", { $0["model"]?["merges"] = ["a b", "a c"] }),
            ("\"model.merges\"", { $0["model"]?["merges"] = [["a"]] }),
            ("\"model.vocab\"", { $0["model"]?["vocab"] = ["a": 0, "b": 0] }),
            ("\"model.vocab\"", { $0["model"]?["vocab"] = ["a": 1_000_000_000] }),
            ("\"model.vocab\"", { $0["model"]?["vocab"] = ["a": -1] }),
            ("\"model.vocab\"", { $0["model"]?["vocab"] = [] }),
            ("\"added_tokens[0]\"", { $0["added_tokens"] = [["id": 1]] }),
            ("\"model\"", { $0["model"] = nil }),
        ]
        for (part, change) in cases {
            let error = #expect(throws: TokenizerError.self) { try load(tiny(change)) }
            #expect(error?.description.contains(part) ?? false, "\(part): \(String(describing: error))")
            #expect(error?.description.contains("tokenizer.json") ?? false)
        }
        #expect(throws: TokenizerError.self) { try load(tiny(), configuration: #"{"eos_token": "<eos>"}"#) }
        #expect(throws: TokenizerError.self) { try load(tiny(), generation: #"{"eos_token_id": "x"}"#) }
        #expect(throws: FormatError.self) { try load(tiny(), configuration: "{") }
        #expect(throws: FormatError.self) { try Tokenizer(folder: "/nonexistent") }
    }
}
