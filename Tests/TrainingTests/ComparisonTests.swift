import Formats
import Foundation
import TestSupport
import Testing
import Training

/// What a trial is asked to be, and what it answers; no model is trained.
private final class FakeTrainer {
    var asked: [Recipe] = []
    /// The value of a method at a learning rate.
    let value: (Recipe) throws -> Double

    init(_ value: @escaping (Recipe) throws -> Double) {
        self.value = value
    }

    func train(_ recipe: Recipe, _ folder: String) throws -> JSON {
        asked.append(recipe)
        let value = try value(recipe)
        let adapter = RunLayout(folder).adapter
        try FileManager.default.createDirectory(atPath: adapter, withIntermediateDirectories: true)
        try AtomicFile.write(String(repeating: "x", count: 100), to: adapter + "/adapter_model.safetensors")
        try AtomicFile.write(
            "{\"step\": 1, \"loss\": 3.5}\n{\"step\": 2, \"loss\": 2.5}\n", to: RunLayout(folder).metrics)
        return [
            "eval_after": ["loss": JSON(value), "accuracy": JSON(1 / value)],
            "trainable_parameters": JSON(recipe.method == "lora" ? 1000 : 10), "peak_memory_bytes": 5000,
            "seconds": 4.0, "steps": 2,
        ]
    }
}

@Suite struct ComparisonTests {
    private let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder.lasting("comparison")
        let rows = (0..<10).map { "{\"text\": \"row \($0)\"}\n" }.joined()
        try AtomicFile.write(rows, to: folder("train.jsonl"))
        try AtomicFile.write("{\"text\": \"held out\"}\n", to: folder("eval.jsonl"))
    }

    private func comparison(_ methods: [String] = ["lora", "lorta"]) -> Comparison {
        var recipe = Recipe(model: "model", data: folder("train.jsonl"))
        recipe.evalData = folder("eval.jsonl")
        recipe.steps = 2
        var comparison = Comparison(recipe, arms: methods.map { .init(method: $0) }, output: folder("out"))
        comparison.learningRates = [1e-3, 1e-2]
        return comparison
    }

    /// The larger the distance of the learning rate's logarithm from -4, the worse; lora is better by a constant.
    private static func bowl(_ recipe: Recipe) -> Double {
        abs(log10(recipe.learningRate) + 4) + (recipe.method == "lora" ? 1 : 1.5) + Double(recipe.seed) / 100
    }

    @Test("The PPT score has the published values")
    func pptValues() {
        let published = [
            (0.8910, 850_000, 0.8600), (0.9178, 660_000, 0.8927), (0.7170, 2_380_000, 0.6535), (0.7458, 40_000, 0.7445),
        ]
        for (score, parameters, expected) in published {
            #expect(abs(pptScore(score, parameters: parameters) - expected) < 1e-4)
        }
        #expect(pptScore(0.5, parameters: 0) == 0.5)
        #expect(pptScore(0.5, parameters: 2_000_000) < pptScore(0.5, parameters: 1_000_000))
        #expect(pptScore(0.5, parameters: 2_000_000) * 2 == pptScore(1, parameters: 2_000_000))
    }

    @Test("The search goes on beyond the end of the list, and every seed has its best learning rate")
    func search() throws {
        let trainer = FakeTrainer { Self.bowl($0) }
        let comparison = comparison()
        let trials = try comparison.run(trainer.train)
        let search = trials.filter { $0.arm == "lora" && $0.phase == .search }
        // 1e-2, 1e-3, then a fifth each: 2e-4 is better, 4e-5 is not.
        #expect(search.map(\.learningRate).sorted().map { ($0 * 1e6).rounded() } == [40, 200, 1000, 10000])
        let final = trials.filter { $0.arm == "lora" && $0.phase == .final }
        #expect(final.map(\.seed) == [1, 2, 3] && final.allSatisfy { abs($0.learningRate - 2e-4) < 1e-12 })
        let searched = try #require(trainer.asked.first)
        #expect(searched.data.hasSuffix("search-train.jsonl") && searched.seed == 1)
        #expect(try String(contentsOfFile: searched.data, encoding: .utf8).split(separator: "\n").count == 8)
        #expect(trainer.asked.last?.data == folder("train.jsonl"))
        #expect(PathKind(folder("out/running")) == .missing)
    }

    @Test("What is trained is not trained again, whatever was torn or added")
    func resume() throws {
        let first = FakeTrainer { Self.bowl($0) }
        let trials = try comparison(["lora"]).run(first.train)
        let log = folder("out/trials.jsonl")
        let text = try String(contentsOfFile: log, encoding: .utf8)
        try AtomicFile.write(String(text.dropLast(30)), to: log)
        let second = FakeTrainer { Self.bowl($0) }
        let more = try comparison(["lora", "lorta"]).run(second.train)
        #expect(second.asked.count(where: { $0.method == "lora" }) == 1)
        #expect(more.filter { $0.arm == "lora" }.map(\.value) == trials.map(\.value))
        let third = FakeTrainer { Self.bowl($0) }
        _ = try comparison(["lora", "lorta"]).run(third.train)
        #expect(third.asked.isEmpty)
        try AtomicFile.write("{\"text\": \"another\"}\n", to: folder("eval.jsonl"))
        _ = try comparison(["lora"]).run(third.train)
        #expect(third.asked.count == 3, "other held-out rows are other results, but for the search")
    }

    @Test("A method that fails is reported with its reason, and the others go on")
    func failure() throws {
        struct Broken: Error, CustomStringConvertible { let description = "no memory" }
        let trainer = FakeTrainer { recipe in
            if recipe.method == "lorta" { throw Broken() }
            return Self.bowl(recipe)
        }
        let comparison = comparison(["lorta", "lora"])
        let report = ComparisonReport(try comparison.run(trainer.train), of: comparison)
        #expect(report.rows.map(\.name) == ["lora"])
        #expect(report.failures.map(\.reason) == ["no memory"])
        #expect(report.text.contains("lorta: not in the table: no memory"))
    }

    @Test("The front holds what nothing beats in both; the page and the table show every method")
    func report() throws {
        let trainer = FakeTrainer { Self.bowl($0) }
        let comparison = comparison(["lora", "lorta", "dora"])
        let report = ComparisonReport(try comparison.run(trainer.train), of: comparison)
        // dora is no better than lorta with as many values (10); lora is better with more.
        #expect(report.rows.map(\.name) == ["lora", "lorta", "dora"])
        #expect(Set(report.front.map(\.name)) == ["lora", "lorta", "dora"])
        let lora = report.rows[0]
        #expect(abs(lora.mean - (Self.bowl(trainer.asked[0]) - 0)) < 2 && abs((lora.spread ?? 0) - 0.01) < 1e-12)
        #expect(lora.secondsPerStep == 2 && lora.adapterBytes == 100 && lora.peakBytes == 5000)
        #expect(abs(report.score(of: lora) - exp(-lora.mean)) < 1e-12)
        let html = ComparisonPage(report, title: "a & b", subtitle: "<none>").html()
        #expect(html.contains("a &amp; b") && html.contains("&lt;none&gt;") && !html.contains("nan"))
        for name in ["lora", "lorta", "dora"] { #expect(html.contains(name) && report.markdown.contains(name)) }
        var better = comparison
        better.metric = "accuracy"
        let other = ComparisonReport(try better.run(trainer.train), of: better)
        #expect(other.rows.first?.name == "lora" && other.rows.first.map { other.score(of: $0) == $0.mean } == true)
    }

    @Test("Comparisons that are none are refused")
    func refusals() throws {
        func refusal(_ change: (inout Comparison) -> Void) -> String {
            var comparison = comparison()
            change(&comparison)
            do {
                try comparison.validate()
                return ""
            } catch {
                return "\(error)"
            }
        }
        #expect(refusal { $0.arms = [] }.contains("needs methods"))
        #expect(refusal { $0.arms += $0.arms }.contains("named twice"))
        #expect(refusal { $0.recipe.evalData = nil }.contains("held-out rows"))
        #expect(refusal { $0.learningRates = [0] }.contains("learning rates"))
        #expect(refusal { $0.searchShare = 0.9 }.contains("0...0.5"))
        #expect(refusal { _ in } == "")
    }
}
