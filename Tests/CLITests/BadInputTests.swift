import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// What is wrong is said in one sentence, and nothing half-written stays.
@Suite struct BadInputTests {
    @Test func missingModel() async throws {
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            for arguments in [
                ["eval", "--data", rows], ["generate", "--prompt", "a"], ["tokenize"],
                ["train", "--data", rows, "--output", folder("run")],
            ] {
                try await graft(arguments + ["--model", folder("missing")]).expectFailure(2, "missing")
                try await graft(arguments + ["--model", "smolm2-135m"]).expectFailure(
                    2, "Did you mean \"smollm2-135m\"?")
            }
            #expect(try folder.contents() == ["rows.jsonl"])
        }
    }

    @Test func truncatedModel() async throws {
        let whole = try Data(contentsOf: URL(fileURLWithPath: RepositoryPaths.required(RepositoryPaths.smolLM2)))
        let tiny = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            for size in [0, 3, 100, 1_000_000, whole.count - 1] {
                let path = try folder.write(whole.prefix(size), to: "cut.gguf")
                try await graft("eval", "--model", path, "--data", rows).expectFailure(2, "cut.gguf")
            }
            try FileManager.default.copyItem(atPath: tiny, toPath: folder("model"))
            let weights = folder("model/model.safetensors")
            let data = try Data(contentsOf: URL(fileURLWithPath: weights))
            try data.prefix(data.count / 2).write(to: URL(fileURLWithPath: weights))
            try await graft("eval", "--model", folder("model"), "--data", rows).expectFailure(
                2, "model.safetensors", "truncated")
            try data.write(to: URL(fileURLWithPath: weights))
            try folder.write("{\"model_type\": \"qwen\"", to: "model/config.json")
            try await graft("eval", "--model", folder("model"), "--data", rows).expectFailure(2, "config.json")
            try folder.write("{\"model_type\": \"lama\"}", to: "model/config.json")
            try await graft("eval", "--model", folder("model"), "--data", rows)
                .expectFailure(2, "architecture \"lama\"", "Did you mean \"llama\"?")
        }
    }

    @Test(arguments: [
        ("{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"prompt\": \"a\"\n", "line 3"),
        ("{\"text\": \"a b c\"}\n{\"prompt\": \"a\"}\n", "line 2"),
        ("{\"text\": \"a b c\"}\n{\"txet\": \"a\"}\n", "Did you mean \"text\"?"),
        ("{\"text\": 3}\n", "line 1"),
        ("[1]\n", "line 1"),
        ("", "empty"),
        ("\n\n", "no rows"),
    ])
    func wrongRows(_ text: String, _ word: String) async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try folder.write(text, to: "rows.jsonl")
            try await graft("eval", "--model", model, "--data", rows).expectFailure(2, rows, word)
            try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("run"))).expectFailure(
                2, rows, word)
            #expect(try folder.contents() == ["rows.jsonl"])
        }
    }

    @Test(arguments: [
        (["--method", "lroa"], "Did you mean \"lora\"?"),
        (["--set", "rr=3"], "\"rr\""),
        (["--set", "lora_alhpa=3"], "Did you mean \"lora_alpha\"?"),
        (["--set", "r=many"], "whole number"),
        (["--set", "r=0"], "positive"),
        (["--set", "target_modules=[\"w_proj\"]"], "w_proj"),
        (["--set", "target_modules=("], "regular expression"),
        (["--batch-size", "0"], "batch_size"),
        (["--lr=-1"], "learning_rate"),
        (["--warmup-ratio", "2"], "warmup_ratio"),
    ])
    func wrongSettings(_ flags: [String], _ word: String) async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("run")) + flags).expectFailure(
                2, word)
            #expect(try folder.contents() == ["rows.jsonl"])
        }
    }

    @Test func wrongRecipe() async throws {
        try await withTemporaryFolder { folder in
            let recipe = try folder.write("model: smollm2-135m\nbatchsize: 3\n", to: "recipe.yaml")
            try await graft("train", "--recipe", recipe, "--output", folder("run"))
                .expectFailure(2, "recipe.yaml, line 2", "Did you mean \"batch_size\"?")
            try await graft("train", "--recipe", folder("none.yaml"), "--output", folder("run")).expectFailure(
                2, "none.yaml")
            try await graft("train", "--output", folder("run")).expectFailure(2, "--model")
            #expect(try folder.contents() == ["recipe.yaml"])
        }
    }

    @Test func adapterForAnotherModel() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("run")))
            #expect(run.status == 0, "\(run.errors)")
            let adapter = folder("run/adapter")
            try await graft("eval", "--model", "smollm2-135m", "--adapter", adapter, "--data", rows)
                .expectFailure(2, "adapter_model.safetensors")
            try await graft("merge", "--model", "smollm2-135m", "--adapter", adapter, "--output", folder("merged"))
                .expectFailure(2, "adapter_model.safetensors")
            try await graft("eval", "--model", model, "--adapter", folder("none"), "--data", rows).expectFailure(
                2, "none")
            #expect(try folder.contents() == ["rows.jsonl", "run"])
        }
    }

    @Test func outputThatCannotBeWritten() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            // A file on the way, a file in its place, and a folder where nobody can make one.
            try await graft(Fixtures.quickRun(model: model, rows: rows, output: rows)).expectFailure(2, "is a file")
            try await graft(Fixtures.quickRun(model: model, rows: rows, output: rows + "/run")).expectFailure(2, rows)
            #if os(Linux)
            try await graft(Fixtures.quickRun(model: model, rows: rows, output: "/proc/graft-run")).expectFailure(
                74, "/proc/graft-run")
            #endif
            #expect(try folder.contents() == ["rows.jsonl"])
        }
    }

    /// A limit on the size of files refuses writes as a full disk does, wherever the tests run.
    @Test func fullDisk() async throws {
        let model = try await Fixtures.model()
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("run")))
            #expect(run.status == 0, "\(run.errors)")
            func limited(_ arguments: [String]) async throws -> CommandResult {
                let script = "ulimit -f 16; exec \"$0\" \"$@\""
                return try await RunningCommand("/bin/bash", ["-c", script, program] + arguments).wait()
            }
            let merged = try await limited(
                ["merge", "--model", model, "--adapter", folder("run"), "--output", folder("merged")])
            merged.expectFailure(74, "merged")
            let trained = try await limited(
                Fixtures.quickRun(model: model, rows: rows, output: folder("full")) + ["--set", "r=64"])
            trained.expectFailure(74, "full/")
            // No adapter and no checkpoint in part; what the run had written whole can stay.
            #expect(try folder.contents() == ["full", "rows.jsonl", "run"])
            let left = try folder.contents(of: "full")
            #expect(!left.contains("adapter") && !left.contains { $0.contains(".tmp-") })
            #expect(try !left.contains("checkpoints") || folder.contents(of: "full/checkpoints").isEmpty)
        }
    }

    @Test func brokenEngine() async throws {
        let result = try await graft(
            "generate", "--model", "smollm2-135m", "--prompt", "a", environment: ["GRAFT_ENGINE": "/nonexistent"])
        result.expectFailure(1, "/nonexistent")
    }
}
