import Backbones
import Formats
import Foundation
import Tokenizers
import Training

/// Every reader, with the files that it is given.
let fuzzCases: [FuzzCase] =
    [
        FuzzCase(
            "json", "value.json", .json, texts: [Seeds.configuration, "[1, -2.5e3, \"\\u00e9\\n\", true, null, {}]"]
        ) {
            let json = try JSON.read(path: $0 + "/value.json")
            guard try JSON.parse(json.compact).isSameButForNumbers(json) else {
                throw FuzzDefect(description: "what is written is not what was read")
            }
        },
        FuzzCase("jsonl", "rows.jsonl", .json, texts: Seeds.rows) {
            let file = try JSONLines(path: $0 + "/rows.jsonl")
            try file.forEach { row in
                do {
                    if row.value["messages"] != nil { _ = try ChatConversation(json: row.value) }
                } catch {
                    throw file.error("\(error)", in: row)
                }
            }
        },
        FuzzCase("rows.json", "rows.json", .json, texts: Seeds.jsonRows) { try useRows($0 + "/rows.json") },
        FuzzCase("rows.jsonl", "rows.jsonl", .json, texts: Seeds.rows) { try useRows($0 + "/rows.jsonl") },
        FuzzCase("rows.csv", "rows.csv", .text, words: Seeds.tableWords, texts: Seeds.tables) {
            try useRows($0 + "/rows.csv")
        },
        FuzzCase("rows.tsv", "rows.tsv", .text, words: Seeds.tableWords, texts: Seeds.tabbedTables) {
            try useRows($0 + "/rows.tsv")
        },
        FuzzCase("rows.jsonl.gz", "rows.jsonl.gz", .bytes, seeds: { [Seeds.packedRows] }) {
            try useRows($0 + "/rows.jsonl.gz")
        },
        FuzzCase(
            "safetensors", "model.safetensors", .safetensors,
            words: ["F32", "BF16", "I64", "BOOL", "__metadata__", "dtype"],
            seeds: {
                let path = NSTemporaryDirectory() + "/seed-\(getpid()).safetensors"
                defer { try? FileManager.default.removeItem(atPath: path) }
                try Seeds.tensors([("a", [2, 3]), ("b.weight", [4]), ("empty", [0, 5])], to: path)
                return [try Seeds.text(path)]
            }
        ) { try useTensors(try SafetensorsFile(path: $0 + "/model.safetensors").tensors) },
        FuzzCase(
            "safetensors-index", "model.safetensors.index.json", .json, words: ["weight_map"], texts: [Seeds.index],
            prepare: Seeds.shards
        ) {
            let checkpoint = try SafetensorsCheckpoint(path: $0)
            for (name, tensor) in checkpoint.tensors {
                // The two shards are all that lies in the folder.
                guard tensor.bytes.file.path.hasPrefix($0 + "/model-0000") else {
                    throw FuzzDefect(description: "\(name) was read from \(tensor.bytes.file.path)")
                }
            }
        },
        FuzzCase(
            "gguf", "model.gguf", .bytes, words: ["general.alignment", "tokenizer.ggml.tokens"],
            seeds: { [Seeds.gguf()] }
        ) {
            let file = try GGUFFile(path: $0 + "/model.gguf")
            for key in file.metadata.keys {
                let array = try file.value(key).array
                _ = try? array?.strings()
                _ = try? array?.ints()
                _ = try? array?.doubles()
            }
            for name in file.tensors.keys { _ = try file.tensor(name).tensor() }
        },
        FuzzCase(
            "gguf-tokenizer", "model.gguf", .bytes, words: ["gpt2", "smollm", "llama", "bert", "t5"],
            seeds: { [Seeds.gguf()] }
        ) { try useTokenizer(Tokenizer(gguf: GGUFFile(path: $0 + "/model.gguf"))) },
        FuzzCase("gguf-configuration", "model.gguf", .bytes, seeds: { [Seeds.gguf()] }) {
            _ = try LlamaConfiguration(gguf: GGUFFile(path: $0 + "/model.gguf"))
        },
        FuzzCase(
            "tokenizer.json", "tokenizer.json", .json, words: Seeds.tokenizerWords,
            texts: Seeds.tokenizers + Seeds.moreTokenizers
        ) {
            try useTokenizer(Tokenizer(folder: $0))
        },
        FuzzCase(
            "tokenizer_config.json", "tokenizer_config.json", .json, words: ["chat_template", "add_bos_token"],
            texts: [
                """
                {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true, "chat_template":
                [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}
                """
            ], memory: FuzzCase.templateMemory,
            prepare: { try Seeds.write(Seeds.tokenizers[0], $0 + "/tokenizer.json") }
        ) { try useTokenizer(Tokenizer(folder: $0)) },
        FuzzCase(
            "template", "chat_template.jinja", .text, words: Seeds.templateWords, texts: Seeds.templates,
            memory: FuzzCase.templateMemory
        ) {
            let source = String(decoding: try Seeds.text($0 + "/chat_template.jinja"), as: UTF8.self)
            try useTemplate(ChatTemplate(source: source, specialTokens: ["bos_token": "<s>", "eos_token": "</s>"]))
        },
        FuzzCase("recipe", "recipe.yaml", .text, words: Seeds.recipeWords, texts: Seeds.recipes) {
            let recipe = try Recipe(path: $0 + "/recipe.yaml")
            _ = try? recipe.adapterConfiguration()
            guard (try? recipe.validate()) != nil else { return }
            guard try Recipe(yaml: recipe.yaml()).json == recipe.json else {
                throw FuzzDefect(description: "the recipe that is written is another one")
            }
        },
        FuzzCase(
            "config.json", "config.json", .json, words: ["rope_scaling", "layer_types"], texts: [Seeds.configuration],
            prepare: Seeds.model
        ) {
            _ = try Checkpoint(.folder($0)).outline()
        },
        FuzzCase(
            "adapter_config.json", "adapter_config.json", .json,
            words: [
                "LORA", "LORTA", "CAPABOOST", "target_modules", "rank_pattern", "alpha_pattern", "bias", "all",
                "(a+)+$",
            ],
            seeds: { [try Seeds.text(Fixture.adapter() + "/adapter_config.json")] }, prepare: Fixture.copyAdapter,
            read: Fixture.loadAdapter),
        FuzzCase(
            "adapter_model.safetensors", "adapter_model.safetensors", .safetensors,
            words: ["base_model.model", "lora_A", "F16"],
            seeds: { [try Seeds.text(Fixture.adapter() + "/adapter_model.safetensors")] }, prepare: Fixture.copyAdapter,
            read: Fixture.loadAdapter),
        FuzzCase(
            "adapter_model.ternary", "adapter_model.ternary", .bytes,
            words: ["GRAFTTRI", "base_model.model", "lora_A"],
            seeds: { [try Seeds.text(Fixture.compressedAdapter() + "/adapter_model.ternary")] },
            prepare: Fixture.copyAdapterSettings, read: Fixture.loadCompressed),
        FuzzCase(
            "checkpoint", "trainer_state.json", .json, words: ["files", "adapter_config.json"],
            texts: [
                """
                {"step": 3, "tokens": 100, "seconds": 1.5, "unreported": {"loss": 0.5, "targets": 2, "tokens": 3,
                "seconds": 0.1}, "recipe": "ab", "data": "cd",
                "files": {"a.bin": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}}
                """
            ],
            prepare: {
                try Seeds.write("a", $0 + "/a.bin")
                try Seeds.write("a", $0 + "/../outside.safetensors")
            }
        ) {
            var checkpoint = try TrainingCheckpoint(folder: $0)
            checkpoint.countStep(tokens: 1 << 30, lossSum: 1, supervised: 1 << 30, seconds: 1)
        },
        FuzzCase(
            "training-state", "training_state.safetensors", .safetensors, words: ["exp_avg.", "F16", "BOOL", "I64"],
            seeds: { [try Seeds.text(Fixture.trainingCheckpoint() + "/training_state.safetensors")] },
            prepare: Fixture.copyTrainingCheckpoint, read: Fixture.restoreTraining),
        FuzzCase(
            "token-table", "table.tokens", .bytes, words: ["GRAFTTOK", "look_alikes", "bad_rows", "\"rows\":"],
            seeds: TokenTableFixture.seeds, prepare: TokenTableFixture.prepare, read: TokenTableFixture.read),
        FuzzCase(
            "metrics", "metrics.jsonl", .json, texts: ["{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"loss\": 1e-3}\n"]
        ) { _ = try MetricsLog.read(path: $0 + "/metrics.jsonl") },
    ]

// MARK: - Uses

private func useTensors(_ tensors: KeyedList<SafetensorsTensor>) throws {
    for (_, tensor) in tensors where tensor.type.dtype != nil { _ = try tensor.tensor() }
}

private func useRows(_ path: String) throws {
    let file = try RowFile(path: path)
    var refused: FormatError?
    try file.forEach { row in
        switch row.value {
        case .success(let value): _ = value.compact
        case .failure(let error): refused = refused ?? error
        }
    }
    if let refused { throw refused }
}

private func useTokenizer(_ tokenizer: Tokenizer) throws {
    let text =
        "a ab 1b<s> é\u{301}</s>\n\u{1F600}ab" + String(repeating: "a", count: 60) + "! Don't\t\r\n \u{3000}漢字 \u{0}b"
    let encoding = tokenizer.encodeWithRanges(text, addSpecialTokens: true)
    guard encoding.ids.allSatisfy({ (0..<max(1, tokenizer.vocabularySize)).contains($0) }) else {
        throw FuzzDefect(description: "a token has a number outside the vocabulary")
    }
    let count = text.utf8.count
    guard encoding.ranges.allSatisfy({ $0.lowerBound >= 0 && $0.upperBound <= count }) else {
        throw FuzzDefect(description: "a token lies outside the text")
    }
    _ = try tokenizer.decode(encoding.ids)
    if tokenizer.chatTemplateSource != nil { try useTemplate(tokenizer.chatTemplate()) }
}

private func useTemplate(_ template: ChatTemplate) throws {
    let conversation = ChatConversation(
        [
            ChatMessage(role: "system", content: "é"), ChatMessage(role: "user", content: " a b "),
            ChatMessage(role: "assistant", content: "<think>x</think>y"), ChatMessage(role: "user", content: "c"),
            ChatMessage(role: "assistant", content: "d"),
        ], tools: [["type": "function", "function": ["name": "f", "parameters": ["a": 1]]]])
    let text = try template.render(conversation, addGenerationPrompt: true).utf8.count
    guard text < 1 << 27 else { throw FuzzDefect(description: "the rendered text has \(text) bytes") }
    // A template may well hide where the assistant speaks.
    guard let (whole, spans) = try? template.renderWithAssistantSpans(conversation) else { return }
    guard spans.allSatisfy({ $0.upperBound <= whole.utf8.count }) else {
        throw FuzzDefect(description: "a span lies outside the text")
    }
}

extension JSON {
    /// Equality in which numbers that are too large to be written are equal to null.
    fileprivate func isSameButForNumbers(_ other: JSON) -> Bool {
        switch (self, other) {
        case (.array(let a), .array(let b)):
            a.count == b.count && zip(a, b).allSatisfy { $0.isSameButForNumbers($1) }
        case (.object(let a), .object(let b)):
            a.count == b.count && zip(a, b).allSatisfy { $0.value.isSameButForNumbers($1.value) }
        case (.number(let number), .null), (.null, .number(let number)): !number.isFinite
        default: self == other
        }
    }
}
