import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// `compress`, `combine` and `generate --rows`.
@Suite struct AdapterValueTests {
    /// Two adapters of noise on the tiny model, as a training would leave them.
    private func adapters(_ folder: TemporaryFolder) async throws -> (model: String, names: [String]) {
        let model = try await Fixtures.model()
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        for (name, rank) in [("one", 4), ("two", 2)] {
            let configuration = try AdapterConfiguration(
                method: "lora",
                settings: ["r": JSON(rank), "target_modules": "all-linear", "init_lora_weights": false])
            let adapter = try Adapter(configuration, on: backbone, seed: Seed(UInt64(rank)))
            try adapter.save(to: folder(name), baseModel: model)
            adapter.detach()
        }
        return (model, ["one", "two"])
    }

    @Test func compressShowsSizesAndEveryVerbTakesTheResult() async throws {
        try await withTemporaryFolder { folder in
            let (model, _) = try await adapters(folder)
            let options = [
                "compress", folder("one"), "--density", "0.2", "--alpha", "1.5", "--output", folder("small"),
            ]
            let report = try await graft(options + ["--json"]).json()
            let (before, after) = (try #require(report["bytes_before"]?.int), try #require(report["bytes_after"]?.int))
            let bound = try #require(report["entropy_bound_bytes"]?.double)
            let code = try #require(report["code_bytes"]?.int)
            #expect(after < before / 10 && Double(code) > 0.97 * bound)
            let size = try FileManager.default.attributesOfItem(atPath: folder("small/adapter_model.ternary"))[.size]
            #expect(size as? Int == after)
            let text = try await graft(options)
            #expect(text.status == 0 && text.errors.isEmpty)
            for word in ["before", "after", "entropy bound"] { #expect(text.output.contains(word)) }

            let rows = try Fixtures.rows(folder)
            let loss = try await graft(
                "eval", "--model", model, "--adapter", folder("small"), "--data", rows, "--json", "--dtype", "float32"
            ).json()["loss"]?.double
            let again = try await graft("compress", folder("small"), "--decompress", "--output", folder("again"))
            #expect(again.status == 0)
            let ordinary = try await graft(
                "eval", "--model", model, "--adapter", folder("again"), "--data", rows, "--json", "--dtype", "float32"
            ).json()["loss"]?.double
            #expect(loss != nil && loss == ordinary)
            let facts = try await graft("inspect", folder("small"), "--json").json()
            #expect(facts["parameters"] == report["values"] && facts["method"] == "LORA")
            let merged = try await graft(
                "merge", "--model", model, "--adapter", folder("small"), "--output", folder("merged"), "--json",
                "--verify"
            ).json()
            #expect(try #require(merged["verify"]?["largest_logit_difference"]?.double) < 1e-3)
            let searched = try await graft(
                "compress", folder("one"), "--density", "0.2", "--alpha", "0.5,2,8", "--data", rows, "--output",
                folder("best"), "--json"
            ).json()
            let trials = try #require(searched["trials"]?.array).map { trial in
                (trial["alpha"]?.double, trial["loss"]?.double ?? .nan)
            }
            #expect(trials.map(\.0) == [0.5, 2, 8])
            let best = try #require(trials.min { $0.1 < $1.1 })
            #expect(searched["alpha"]?.double == best.0 && searched["seed"] == .null)
            let found = try await graft(
                "eval", "--model", model, "--adapter", folder("best"), "--data", rows, "--json", "--dtype", "float32"
            ).json()["loss"]?.double
            #expect(try abs(#require(found) - best.1) < 1e-5)
            let unjudged = try await graft(
                "compress", folder("one"), "--density", "0.2", "--alpha", "1,2", "--output", folder("x"))
            #expect(unjudged.status != 0 && unjudged.errors.contains("--data"))
            try await graft("compress", folder("one"), "--density", "1.5", "--output", folder("x"))
                .expectFailure(2, "density")
        }
    }

    @Test func combineMakesOneOfSeveral() async throws {
        try await withTemporaryFolder { folder in
            let (model, names) = try await adapters(folder)
            let report = try await graft(
                ["combine"] + names.map { folder($0) } + [
                    "--method", "cat", "--weights", "-0.5,2", "--output", folder("both"), "--json",
                ]
            ).json()
            #expect(report["rank"] == 6 && report["lost"]?.double == 0)
            let backbone = try Checkpoint(model).backbone(dtype: .float32)
            func updates(_ name: String) throws -> [Tensor] {
                let adapter = try Adapter.load(from: folder(name), onto: backbone)
                defer { adapter.detach() }
                return try adapter.updates.map { try #require($0.update as? any LowRankUpdate).dense().detached() }
            }
            let (one, two, both) = (try updates("one"), try updates("two"), try updates("both"))
            for index in both.indices {
                let expected = try one[index] * -0.5 + two[index] * 2
                let gap = try (both[index] - expected).absolute().maximum().item(as: Double.self)
                #expect(try gap < 1e-5 * expected.absolute().maximum().item(as: Double.self))
            }
            let text = try await graft("combine", folder("one"), folder("two"), "--rank", "3", "--output", folder("x"))
            #expect(text.status == 0 && text.output.contains("cut off by the rank"))
            try await graft("combine", folder("one"), folder("two"), "--method", "ties", "--output", folder("y"))
                .expectFailure(2, "density")
            try await graft(
                "combine", folder("one"), folder("two"), "--method", "linear", "--output", folder("y")
            ).expectFailure(2, "ranks [4, 2]")
        }
    }

    /// An adapter that tells texts apart keeps its head and the names of its labels.
    @Test func classifiersStayClassifiers() async throws {
        try await withTemporaryFolder { folder in
            let model = try await Fixtures.model()
            func trained(_ name: String, _ labels: [String], seed: String) async throws -> String {
                let lines = (0..<12).map { index -> String in
                    let text = JSON.string("The fox number \(index) is \(["red", "green", "blue"][index % 3])")
                    return (["text": text, "label": .string(labels[index % labels.count])] as JSON).compact
                }
                let rows = try folder.write(lines.joined(separator: "\n") + "\n", to: name + ".jsonl")
                let run = try await graft(
                    Fixtures.quickRun(model: model, rows: rows, output: folder(name))
                        + ["--objective", "classification", "--seed", seed])
                #expect(run.status == 0, "\(run.errors)")
                return rows
            }
            let rows = try await trained("one", ["no", "perhaps", "yes"], seed: "1")
            _ = try await trained("two", ["no", "perhaps", "yes"], seed: "2")
            _ = try await trained("other", ["no", "yes"], seed: "1")
            func loss(_ adapter: String) async throws -> Double {
                let options = [
                    "eval", "--model", model, "--adapter", folder(adapter), "--data", rows, "--dtype", "float32",
                    "--threads", "1", "--json",
                ]
                let result = try await graft(options).json()
                #expect(result["accuracy"]?.double != nil && result["examples"] == 12)
                return try #require(result["loss"]?.double)
            }
            func make(_ options: String...) async throws {
                let result = try await graft(options)
                #expect(result.status == 0, "\(result.errors)")
            }
            let compressed = try await graft(
                "compress", folder("one"), "--density", "0.3", "--alpha", "2", "--output", folder("small"))
            #expect(compressed.output.contains("drawn from the seed 1"), "\(compressed.errors)")
            try await make("compress", folder("small"), "--decompress", "--output", folder("again"))
            try await make("combine", folder("one"), "--method", "cat", "--output", folder("same"))
            try await make(
                "combine", folder("one"), folder("two"), "--method", "ties", "--density", "0.5", "--output",
                folder("both"))
            let labels = try JSON.read(path: folder("one/adapter/labels.json"))
            for name in ["small", "again", "same", "both"] {
                #expect(try JSON.read(path: folder(name + "/labels.json")) == labels)
                let settings = try JSON.read(path: folder(name + "/adapter_config.json"))
                #expect(settings["task_type"] == "SEQ_CLS" && settings["modules_to_save"] == ["score"])
            }
            #expect(try await loss("small") == loss("again"))
            #expect(abs(try await loss("same") - loss("one")) < 1e-5)
            _ = try await loss("both")
            try await graft("combine", folder("one"), folder("other"), "--output", folder("x"))
                .expectFailure(2, "no, perhaps, yes", "the same labels")
        }
    }

    @Test func rowsAreAnsweredWithTheirAdapters() async throws {
        try await withTemporaryFolder { folder in
            let (model, names) = try await adapters(folder)
            let lines: [JSON] = [
                ["prompt": "Once upon", "adapter": "two"], ["prompt": "The red fox"],
                ["messages": [["role": "user", "content": "Hello"]], "adapter": "first"],
                ["prompt": "Once upon", "adapter": nil], ["prompt": "Once upon", "adapter": "first"],
            ]
            let rows = try folder.write(lines.map(\.compact).joined(separator: "\n") + "\n", to: "rows.jsonl")
            let common = ["generate", "--model", model, "--max-tokens", "8", "--dtype", "float32", "--threads", "1"]
            let options = common + ["--adapter", "first=\(folder(names[0]))", "--adapter", folder(names[1]) + "/"]
            let result = try await graft(options + ["--rows", rows, "--batch-size", "3"])
            #expect(result.errors.isEmpty)
            let answers = try result.output.split(separator: "\n").map { try JSON.parse(String($0)) }
            #expect(answers.map { $0["line"]?.int } == [1, 2, 3, 4, 5])
            #expect(try await graft(options + ["--rows", rows, "--json"]).json().array == answers)
            for (line, answer) in zip(lines, answers) {
                var alone = common + ["--json"]
                if let text = line["prompt"]?.string {
                    alone += ["--prompt", text]
                } else {
                    alone += ["--chat", "Hello"]
                }
                let name = line["adapter"]?.string
                if let name { alone += ["--adapter", folder(name == "first" ? "one" : name)] }
                let expected = try await graft(alone).json()
                for key in ["ids", "text", "prompt_tokens", "stop_reason"] { #expect(answer[key] == expected[key]) }
                #expect(answer["adapter"]?.string == name)
            }
            #expect(Set([answers[0], answers[3], answers[4]].map { $0["ids"]?.compact }).count == 3)

            for (row, word) in [
                (["prompt": "a", "adapter": "tow"], "Did you mean \"two\"?"),
                (["prompt": "a", "adapter": 1], "an integer"),
                (["adapter": "two"], "prompt"), (["prompt": "a", "Adapter": "two"], "\"Adapter\" is unknown"),
                (["prompt": ""], "empty"),
            ] as [(JSON, String)] {
                let bad = try folder.write("{\"prompt\": \"x\"}\n" + row.compact + "\n", to: "bad.jsonl")
                try await graft(options + ["--rows", bad]).expectFailure(2, "bad.jsonl", "line 2", word)
            }
            try await graft(options + ["--prompt", "a"]).expectFailure(64, "--rows")
        }
    }
}
