import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct ClassificationTests {
    @Test(
        "Loss and gradients are those of fp64",
        arguments: [
            [:], ["density_weight": 0.5, "density_eps": 0.01],
            ["consistency_weight": 0.7, "diversity_weight": 0.4, "svd_weight": 0.6, "svd_k": 1],
        ] as [KeyedList<JSON>])
    func equalsDenseEvaluation(settings: KeyedList<JSON>) async throws {
        let example = try await ObjectiveCase(.labelled)
        try example.randomise()
        let found = try example.step(LossFunction("classification", settings: settings))
        let gap = try await example.gap(settings, found)
        #expect(gap.loss < 2e-6)
        #expect(gap.gradients < 5e-5)
    }

    @Test("Packed == unpacked, 1x8 == 8x1, one process == three", arguments: [false, true])
    func passesDoNotMatter(isRegularised: Bool) async throws {
        let example = try await ObjectiveCase(.labelled)
        try example.randomise()
        let settings: KeyedList<JSON> =
            isRegularised
            ? ["consistency_weight": 0.7, "diversity_weight": 0.4, "svd_weight": 0.6, "svd_k": 1] : [:]
        let loss = try LossFunction("classification", settings: settings)
        let whole = try example.step(loss)
        for (layout, processes) in [
            (BatchLayout(rows: 1), 1), (BatchLayout(rows: 3), 1), (BatchLayout(rows: 8, isPacked: true), 1),
            (BatchLayout(rows: 4), 3),
        ] {
            let other = try example.step(loss, layout, processes: processes)
            #expect(abs(other.loss - whole.loss) < 1e-6, "\(layout)")
            for (a, b) in zip(other.gradients, whole.gradients) { #expect(try largestDifference(a, b) < 1e-5) }
        }
    }

    @Test("Adapters go to and from peft's SEQ_CLS with equal logits")
    func exchangesWithPeft() async throws {
        let example = try await ObjectiveCase(.labelled, settings: ["target_modules": ["q_proj", "v_proj"]])
        try example.randomise()
        let rows = example.data.examples
        func logits(_ model: LanguageModel) throws -> Tensor {
            try withoutGrad { try ForwardPass(rows, model: model).classLogits() }
        }
        try await withTemporaryFolder { temporary in
            try example.adapter.save(to: temporary("own"))
            func peft(_ adapter: String) async throws -> (report: JSON, logits: Tensor) {
                let report = try await Oracle.shared.call(
                    "objectives.classify",
                    [
                        "folder": JSON(example.folder), "labels": 3, "adapter": JSON(adapter),
                        "rows": JSON(rows.map { JSON($0.ids.map { JSON($0) }) }),
                        "output": JSON(temporary("l.safetensors")),
                    ])
                let file = try SafetensorsFile(path: temporary("l.safetensors"))
                return (report, try file.tensor("logits").tensor().cloned())
            }
            let theirs = try await peft(temporary("own"))
            #expect(theirs.report["missing"] == [] && theirs.report["unexpected"] == [])
            #expect(theirs.report["task_type"] == "SEQ_CLS" && theirs.report["warnings"] == [])
            #expect(theirs.report["type"] == "PeftModelForSequenceClassification")
            #expect(try largestDifference(logits(example.model), theirs.logits) < 1e-5)
            // Back through a folder of Graft's own, with the names of the labels.
            let base = try LanguageModel.load(example.folder, dtype: .float32, device: .cpu)
            let (again, _) = try base.adapted(from: temporary("own"))
            #expect(again.labels == ["no", "perhaps", "yes"])
            #expect(try logits(again).isIdentical(to: logits(example.model)))
            // And what peft makes.
            _ = try await Oracle.shared.call(
                "objectives.make_adapter",
                ["folder": JSON(example.folder), "labels": 3, "output": JSON(temporary("peft")), "seed": 4])
            let expected = try await peft(temporary("peft")).logits
            let other = try LanguageModel.load(example.folder, dtype: .float32, device: .cpu)
            let (loaded, adapter) = try other.adapted(from: temporary("peft"))
            #expect(loaded.labels == ["0", "1", "2"])
            #expect(try largestDifference(logits(loaded), expected) < 1e-5)
            #expect(adapter.trainables.map(\.name).contains("base_model.model.score.weight"))
            // Generation refuses it in one sentence.
            let plain = try LanguageModel.load(example.folder, dtype: .float32, device: .cpu)
            let sentence = message { _ = try Adapter.load(from: temporary("peft"), onto: plain.backbone) }
            #expect(sentence.contains("tells texts apart (task_type SEQ_CLS) and does not write any"))
        }
    }

    @Test("The head belongs to what is trained, and the pretrained model keeps its own")
    func headIsTrained() async throws {
        let example = try await ObjectiveCase(.labelled)
        #expect(example.adapter.trainables.map(\.name).contains("base_model.model.score.weight"))
        #expect(example.model.backbone.linears.filter { $0.role == .head }.map(\.path) == ["score"])
        example.adapter.detach()
        let before = try withoutGrad { try ForwardPass(example.data.examples, model: example.model).classLogits() }
        try example.adapter.attach()
        try example.randomise()
        let pass = try ForwardPass(example.data.examples, model: example.model)
        #expect(try pass.reference().classLogits().isIdentical(to: before))
        #expect(try largestDifference(withoutGrad { try pass.classLogits() }, before) > 1e-3)
    }

    @Test("Measures are those of the confusion matrix", arguments: 0..<12)
    func measures(seed: Int) async throws {
        var generator = SeededGenerator(seed: UInt64(seed))
        let classes = seed % 3 + 2
        let count = 5 + 7 * seed
        let labels = (0..<count).map { _ in Int.random(in: 0..<classes, using: &generator) }
        // Answers that are often right, and in one case always the same.
        let answers = labels.map { label in
            seed == 6 ? 0 : Bool.random(using: &generator) ? label : Int.random(in: 0..<classes, using: &generator)
        }
        let report = ClassificationReport(answers: answers, labels: labels)
        let expected = try await Oracle.shared.call(
            "objectives.report",
            ["answers": JSON(answers.map { JSON($0) }), "labels": JSON(labels.map { JSON($0) })])
        #expect(abs(report.accuracy - (expected["accuracy"]?.double ?? .nan)) < 1e-12)
        #expect(abs(report.macroF1 - (expected["f1_macro"]?.double ?? .nan)) < 1e-12)
        #expect(abs(report.matthewsCorrelation - (expected["matthews"]?.double ?? .nan)) < 1e-12)
        #expect((report.binaryF1 == nil) == (expected["f1_binary"]?.double == nil))
        if let f1 = report.binaryF1 { #expect(abs(f1 - (expected["f1_binary"]?.double ?? .nan)) < 1e-12) }
    }

    @Test("Intervals hold the measure, narrow with more rows, and are the same every time")
    func bootstrapIntervals() {
        func interval(_ count: Int) -> ClosedRange<Double> {
            let rows = (0..<count).map { $0 % 4 == 0 ? 0.0 : 1.0 }
            let found = Bootstrap().intervals(of: rows) { rows in
                ["accuracy": rows.reduce(0, +) / Double(rows.count)]
            }
            return found["accuracy"] ?? 0...0
        }
        #expect(interval(100).contains(0.75) && interval(1600).contains(0.75))
        let width = interval(100).upperBound - interval(100).lowerBound
        // 2 * 1.96 * sqrt(0.75 * 0.25 / 100)
        #expect(abs(width - 0.17) < 0.03)
        #expect(interval(1600).upperBound - interval(1600).lowerBound < width / 3)
        #expect(interval(100) == interval(100))
    }

    @Test("A run ends with an adapter that tells the labels, and evaluates as it said")
    func trainsAndEvaluates() async throws {
        let folder = try await ChatModels.shared.folder()
        try withTemporaryFolder { temporary in
            let colours = [("the lazy dog", "animal"), ("the answer to this", "question")]
            let lines = (0..<16).map { index in
                "{\"text\": \"\(colours[index % 2].0) \(index)\", \"label\": \"\(colours[index % 2].1)\"}\n"
            }.joined()
            var recipe = Recipe(model: folder, data: try temporary.write(lines, to: "rows.jsonl"))
            recipe.evalData = recipe.data
            recipe.objective = "classification"
            recipe.steps = 12
            recipe.learningRate = 0.02
            recipe.dtype = .float32
            recipe.device = .cpu
            let result = try Trainer.run(recipe, output: temporary("run"), showsProgress: false)
            #expect(result.evaluationAfter?.measures["accuracy"] == 1)
            #expect(result.evaluationAfter?.measures["matthews_correlation"] == 1)
            let metrics = try MetricsLog.read(path: RunLayout(temporary("run")).metrics)
            #expect(metrics.contains { $0.others["eval_f1_macro"] == 1 && $0.others["eval_perplexity"] == nil })
            #expect(metrics.contains { $0.others["accuracy"] != nil })
            let base = try LanguageModel.load(folder, dtype: .float32, device: .cpu)
            let (model, _) = try base.adapted(from: try #require(result.adapter))
            #expect(model.labels == ["animal", "question"])
            #expect(try model.evaluate(on: temporary("rows.jsonl")) == result.evaluationAfter)
        }
    }
}
