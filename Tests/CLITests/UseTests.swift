import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// `tokenize`, `generate`, `chat`.
@Suite struct UseTests {
    @Test func tokenizeRoundTrip() async throws {
        var generator = SeededGenerator(seed: 5)
        let plain = ["<|im_start|>user 1234<|im_end|>", "tab\tand carriage return\r", " ", "", "Größe 価格 🙂", "a  b"]
        let random = (0..<200).map { index in
            String(String.UnicodeScalarView(generator.text(length: index % 40).unicodeScalars.filter { $0 != "\n" }))
        }
        let encoded = try await graft(
            "tokenize", "--model", "smollm2-135m", input: (plain + random).joined(separator: "\n") + "\n")
        #expect(encoded.status == 0 && encoded.errors.isEmpty)
        let tokenizer = try Tokenizer(gguf: GGUFFile(path: RepositoryPaths.smolLM2))
        let rows = try encoded.output.split(separator: "\n").map { try JSON.parse(String($0)) }
        #expect(rows == (plain + random).map { JSON(tokenizer.encode($0).map { JSON($0) }) })

        let decoded = try await graft("tokenize", "--model", "smollm2-135m", "--decode", input: encoded.output)
        // The vocabulary lacks some bytes, which not even the reference brings back.
        let texts = try plain + random.map { try tokenizer.decode(tokenizer.encode($0)) }
        #expect(decoded.output.utf8.elementsEqual((texts.joined(separator: "\n") + "\n").utf8))
    }

    @Test func tokenizeNeedsNoEngine() async throws {
        let result = try await graft(
            "tokenize", "--model", "smollm2-135m", environment: ["GRAFT_ENGINE": "/nonexistent"], input: "a")
        #expect(result.status == 0 && result.output == "[81]\n")
    }

    @Test func tokenizeRefusesWrongLines() async throws {
        let model = try await Fixtures.model()
        let wrong = try await graft("tokenize", "--model", model, "--decode", input: "[1]\n[1, \"a\"]\n")
        wrong.expectFailure(2, "line 2", "array of token ids")
        try await graft("tokenize", "--model", model, "--decode", input: "[99999999]\n")
            .expectFailure(2, "line 1", "99999999")
    }

    @Test func generateStreamsWhatJSONHolds() async throws {
        let model = try await Fixtures.model()
        let options = [
            "generate", "--model", model, "--prompt", "Once upon", "--max-tokens", "12", "--dtype", "float32",
            "--threads", "1",
        ]
        let json = try await graft(options + ["--json"]).json()
        let ids = try #require(json["ids"]?.array).compactMap(\.int)
        #expect(ids.count == json["generated_tokens"]?.int)
        #expect(json["prompt_tokens"] == 2)
        for key in ["load_seconds", "first_token_seconds", "generate_seconds", "tokens_per_second"] {
            #expect(json[key]?.double != nil)
        }
        #expect(json["stop_reason"]?.string != nil)
        let streamed = try await graft(options)
        let text = try #require(json["text"]?.string)
        #expect(streamed.output == (text.hasSuffix("\n") ? text : text + "\n"))
        #expect(streamed.errors.isEmpty)

        let loaded = try LanguageModel.load(model, dtype: .float32)
        let settings = GenerationSettings(maxTokens: 12)
        let own = try TextGenerator(loaded.backbone, tokenizer: loaded.tokenizer).generate(
            "Once upon", settings: settings)
        #expect(own.tokens == ids)
    }

    @Test func seedsDecideDraws() async throws {
        let model = try await Fixtures.model()
        func ids(_ seed: String) async throws -> JSON? {
            try await graft(
                "generate", "--model", model, "--prompt", "a", "--max-tokens", "16", "--temperature", "1.5", "--top-k",
                "1000", "--top-p", "0.99", "--seed", seed, "--threads", "1", "--json"
            ).json()["ids"]
        }
        let first = try await ids("1")
        #expect(try await ids("1") == first)
        #expect(try await ids("2") != first)
    }

    @Test func chatTalks() async throws {
        let lines = [
            "What is the capital of France?", "/rest", "", "/reset", "/system Be brief.", "Hi", "/exit", "never",
        ]
        let result = try await graft(
            "chat", "--model", "smollm2-135m", "--max-tokens", "12", "--dtype", "float32", "--threads", "1",
            input: lines.joined(separator: "\n"))
        #expect(result.status == 0)
        #expect(result.output.contains("Paris"))
        #expect(result.errors.contains("Did you mean \"/reset\"?"))
        // The second conversation knows nothing of the first: it is what a new one with that system's message gives.
        let alone = try await graft(
            "generate", "--model", "smollm2-135m", "--max-tokens", "12", "--dtype", "float32", "--threads", "1",
            "--system", "Be brief.",
            "--chat", "Hi")
        #expect(result.output.hasSuffix(alone.output))
        #expect(result.output.count > alone.output.count)
    }

    @Test func closedPipeEndsQuietly() async throws {
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        let script = "\"\(program)\" methods lora --json 2>err | true; echo ${PIPESTATUS[0]}; wc -c <err"
        try await withTemporaryFolder { folder in
            let result = try await RunningCommand("/bin/bash", ["-c", script], folder: folder.path).wait()
            // The pipe may also outlive the write.
            #expect(["141\n0\n", "0\n0\n"].contains(result.output))
        }
    }

    @Test func fullStandardOutputIsAnError() async throws {
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        let result = try await RunningCommand("/bin/sh", ["-c", "\"\(program)\" methods >/dev/full"]).wait()
        result.expectFailure(74, "standard output", "disk is full")
    }
}
