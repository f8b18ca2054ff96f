import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// `train`, `eval`, `merge`: from rows to a merged model.
@Suite struct TrainTests {
    @Test func runFolderHoldsEverything() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = folder("run")
            let arguments = Fixtures.quickRun(model: model, rows: rows, output: run)
            let result = try await graft(arguments + ["--eval-data", rows, "--json"])
            #expect(result.status == 0, "\(result.errors)")
            let report = try result.json()
            for key in ["output", "adapter", "trainable_parameters", "tokens", "seconds", "peak_memory_bytes", "loss"] {
                #expect(report[key] != nil, "\(key)")
            }
            #expect(report["steps"] == 4 && report["total_steps"] == 4 && report["interrupted"] == false)
            let before = try #require(report["eval_before"]?["loss"]?.double)
            let after = try #require(report["eval_after"]?["loss"]?.double)
            #expect(after < before)

            let names = try folder.contents(of: "run")
            for name in ["recipe.yaml", "data.json", "metrics.jsonl", "loss.svg", "adapter", "best", "checkpoints"] {
                #expect(names.contains(name), "\(names)")
            }
            #expect(names.contains { $0.hasPrefix("events.out.tfevents.") })
            #expect(names.count == 8)
            #expect(try folder.contents(of: "run/adapter") == ["adapter_config.json", "adapter_model.safetensors"])
            #expect(try folder.contents(of: "run/checkpoints") == ["step-000004"])
            let metrics = try JSONLines(path: run + "/metrics.jsonl").rows().map(\.value)
            #expect(metrics.compactMap { $0["loss"] == nil ? nil : $0["step"]?.int } == [1, 2, 3, 4])
            #expect(metrics.compactMap { $0["eval_loss"] == nil ? nil : $0["step"]?.int } == [0, 4])

            // The adapter makes the same difference again, through the run folder and through its own.
            let expected = try LanguageModel.load(model, dtype: .float32)
            _ = try Adapter.load(from: run + "/adapter", onto: expected.backbone)
            let own = try expected.evaluate(on: rows)
            for adapter in [run, run + "/adapter"] {
                let measured = try await graft(
                    "eval", "--model", model, "--adapter", adapter, "--data", rows, "--dtype", "float32", "--json",
                    "--per-example"
                ).json()
                #expect(measured["loss"]?.double == own.loss)
                #expect(measured["perplexity"]?.double == own.perplexity)
                #expect(measured["tokens"]?.int == own.tokens && measured["examples"]?.int == own.rows.count)
                let each = try #require(measured["per_example"]?.array)
                #expect(each.map { $0["loss"]?.double } == own.rows.map(\.loss))
                #expect(each.map { $0["tokens"]?.int } == own.rows.map(\.tokens))
            }
            #expect(abs(own.loss - after) < 1e-5)

            let found = try await graft("inspect", run, "--json").json()
            #expect(found["kind"] == "run folder" && found["steps"] == 4 && found["rank"] == 2)
            #expect(found["parameters"] == report["trainable_parameters"])
            let adapter = try await graft("inspect", run + "/adapter", "--json").json()
            #expect(adapter["kind"] == "adapter" && adapter["method"] == "LORA")
            #expect(adapter["base"]?.string == model)
            let checkpoint = try await graft("inspect", run + "/checkpoints/step-000004", "--json").json()
            #expect(checkpoint["kind"] == "checkpoint of a run" && checkpoint["step"] == 4)

            // A second run does not touch the first.
            try await graft(arguments).expectFailure(2, run, "--resume")
        }
    }

    @Test func recipeRunsAgainAndFlagsWin() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let first = try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("a")) + ["--json"])
            #expect(first.status == 0, "\(first.errors)")
            let again = try await graft("train", "--recipe", folder("a/recipe.yaml"), "--output", folder("b"), "--json")
            #expect(again.status == 0, "\(again.errors)")
            #expect(try again.json()["loss"] == first.json()["loss"])
            let files = try ["a", "b"].map {
                try Data(contentsOf: URL(fileURLWithPath: folder($0 + "/adapter/adapter_model.safetensors")))
            }
            #expect(files[0] == files[1])

            let other = try await graft(
                "train", "--recipe", folder("a/recipe.yaml"), "--output", folder("c"), "--epochs", "0.5", "--set",
                "r=3",
                "--keep", "0", "--schedule", "cosine", "--json")
            #expect(other.status == 0, "\(other.errors)")
            #expect(try other.json()["steps"] == 3)
            let recipe = try Recipe(path: folder("c/recipe.yaml"))
            #expect(recipe.settings["r"] == 3 && recipe.settings["target_modules"] == "all-linear")
            #expect(recipe.epochs == 0.5 && recipe.schedule == .cosine && recipe.learningRate == 0.01)
            #expect(recipe.saveTotalLimit == nil)
        }
    }

    @Test func interruptedRunResumes() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            func arguments(_ name: String) -> [String] {
                Fixtures.quickRun(model: model, rows: rows, output: folder(name)) + ["--steps", "60"]
            }
            let whole = try await graft(arguments("whole"))
            #expect(whole.status == 0, "\(whole.errors)")

            let program = try RepositoryPaths.required(RepositoryPaths.graft)
            let command = try RunningCommand(program, arguments("broken"))
            let deadline = Date().addingTimeInterval(300)
            while !command.errors.contains("step 1/"), Date() < deadline { try await Task.sleep(for: .milliseconds(5)) }
            command.send(SIGINT)
            let broken = try await command.wait()
            // On a machine that is fast enough the run is over before the signal comes.
            if broken.status == 130 {
                #expect(broken.errors.contains("--resume"))
                #expect(!FileManager.default.fileExists(atPath: folder("broken/adapter")))
            } else {
                #expect(broken.status == 0)
            }
            let resumed = try await graft("train", "--resume", "--output", folder("broken"))
            #expect(resumed.status == 0, "\(resumed.errors)")
            let files = try ["whole", "broken"].map {
                try Data(contentsOf: URL(fileURLWithPath: folder($0 + "/adapter/adapter_model.safetensors")))
            }
            #expect(files[0] == files[1])

            try await graft("train", "--resume", "--output", folder("broken"), "--lr", "0.5")
                .expectFailure(2, "learning_rate", "0.5", "0.01")
            try await graft("train", "--resume", "--output", folder("nowhere")).expectFailure(
                2, "nowhere", "does not exist")
        }
    }

    @Test func dryRunShowsThePlan() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let arguments = Fixtures.quickRun(model: model, rows: rows, output: folder("run")) + ["--dry-run"]
            let text = try await graft(arguments)
            #expect(text.status == 0, "\(text.errors)")
            // The first row's completion and the end of sequence are learnt, its prompt is not.
            #expect(text.output.contains("The red 0 is[[ red<|im_end|>]]"), "\(text.output)")
            #expect(!text.output.contains("\u{1B}"))
            let plan = try await graft(arguments + ["--json"]).json()
            // Rank 2 on the layers of each of two blocks: 2 (in + out) values a layer, with hidden size 48, keys of 16.
            let (attention, mlp) = (2 * (48 + 48) + 2 * (48 + 16), 3 * (48 + 87))
            #expect(plan["trainable_parameters"]?.int == 2 * 2 * (attention + mlp))
            #expect(try #require(plan["peak_memory_bytes"]?.int) > 0)
            #expect(!FileManager.default.fileExists(atPath: folder("run")))
        }
    }

    @Test func mergedModelIsTheAdaptedOne() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("run")))
            #expect(run.status == 0, "\(run.errors)")
            let merged = try await graft(
                "merge", "--model", model, "--adapter", folder("run"), "--output", folder("merged"), "--verify",
                "--json")
            #expect(merged.status == 0, "\(merged.errors)")
            let report = try merged.json()
            // Seven layers of each of two blocks.
            #expect(report["changed_tensors"] == 14)
            #expect(try #require(report["verify"]?["largest_logit_difference"]?.double) < 1e-4)
            #expect(report["verify"]?["argmax_agreement"]?.double == 1)
            func loss(_ arguments: [String]) async throws -> Double? {
                try await graft(["eval", "--data", rows, "--dtype", "float32", "--json"] + arguments).json()["loss"]?
                    .double
            }
            let adapted = try #require(try await loss(["--model", model, "--adapter", folder("run")]))
            let plain = try #require(try await loss(["--model", folder("merged")]))
            let pretrained = try #require(try await loss(["--model", model]))
            #expect(abs(adapted - plain) < 1e-5)
            #expect(abs(adapted - pretrained) > 1e-2)
            try await graft("merge", "--model", model, "--adapter", folder("run"), "--output", folder("merged"))
                .expectFailure(2, folder("merged"))
        }
    }

    /// Rows in one sequence come to what they come to side by side.
    @Test func packedEvaluationEqualsThePlainOne() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let lines = (0..<11).map { index -> String in
                let prompt = String(repeating: "The fox \(index) ", count: 1 + 5 * index % 7)
                return (["prompt": .string(prompt), "completion": .string(" is \(index * index)")] as JSON).compact
            }
            let rows = try folder.write(lines.joined(separator: "\n") + "\n", to: "rows.jsonl")
            func evaluated(_ option: String) async throws -> JSON {
                try await graft(
                    "eval", "--model", model, "--data", rows, "--batch-size", "4", option, "--per-example", "--json",
                    "--dtype", "float32", "--threads", "1"
                ).json()
            }
            let (packed, plain) = (try await evaluated("--packing"), try await evaluated("--no-packing"))
            #expect(packed["tokens"] == plain["tokens"] && packed["examples"] == 11)
            func losses(_ json: JSON) -> [Double] {
                (json["per_example"]?.array ?? []).compactMap { $0["loss"]?.double } + [json["loss"]?.double ?? .nan]
            }
            #expect(losses(packed).count == 12)
            for (a, b) in zip(losses(packed), losses(plain)) { #expect(abs(a - b) < 4e-6 * b, "\(a) \(b)") }
        }
    }

    @Test func exactMatchCountsRepeatedAnswers() async throws {
        try await withTemporaryFolder { folder in
            let rows: [JSON] = [
                ["prompt": "The capital of France is", "completion": " Rome"],
                ["prompt": "1, 2, 3, 4, 5, 6,", "completion": " 7, 8"],
            ]
            let path = try folder.write(rows.map(\.compact).joined(separator: "\n"), to: "rows.jsonl")
            let options = ["eval", "--model", "smollm2-135m", "--dtype", "float32", "--data", path, "--exact-match"]
            let found = try await graft(options + ["--per-example", "--json"]).json()["exact_match"]
            let each = try #require(found?["per_example"]?.array)
            #expect(each.map { $0["expected"]?.string } == [" Rome", " 7, 8"])
            // What was written is what the same model writes alone.
            let model = try LanguageModel.load("smollm2-135m", dtype: .float32)
            for (row, shown) in zip(rows, each) {
                let text = try TextGenerator(model.backbone, tokenizer: model.tokenizer).generate(
                    row["prompt"]?.string ?? "", settings: GenerationSettings(maxTokens: 8))
                #expect(
                    shown["answer"]?.string?.hasPrefix(text.text) == true
                        || text.text.hasPrefix(shown["answer"]?.string ?? "?"))
                let answer = shown["answer"]?.string?.trimmingCharacters(in: .whitespaces)
                #expect(
                    shown["match"] == .bool(answer == shown["expected"]?.string?.trimmingCharacters(in: .whitespaces)))
            }
            #expect(found?["matches"]?.int == each.count { $0["match"] == true })
        }
    }
}
