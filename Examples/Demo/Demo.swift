import Foundation
import Graft
import Training

/// The demo from data to table.
enum Demo {
    static let folder = "runs/demo"
    static let modelName = "smollm2-135m"

    /// A method with its settings; each trains about three minutes at most on two cores.
    struct Contestant {
        let method: String
        let title: String
        let settings: KeyedList<JSON>
        let learningRate: Double
    }

    static let contestants = [
        Contestant(
            method: "lora", title: "LoRA, r 8",
            settings: ["r": 8, "lora_alpha": 16, "target_modules": "all-linear"], learningRate: 2e-3),
        Contestant(
            method: "lorta", title: "LoRTA, r 96", settings: ["r": 96, "lorta_alpha": 96], learningRate: 2e-2),
        Contestant(
            method: "capaboost-lora", title: "CapaBoost, r 8 x 2",
            settings: ["r": 8, "lora_alpha": 16, "target_modules": "all-linear"], learningRate: 2e-3),
    ]

    /// What one method came to.
    struct Outcome {
        let contestant: Contestant
        let result: TrainingResult
        let adapterBytes: Int
        let exam: Exam
    }

    static func run() throws {
        let data = try prepare()
        let model = try LanguageModel.load(modelName)
        let tester = Tester(model: model, rows: data.test, file: "\(folder)/data/test.jsonl")
        Console.write(
            """
            SmolLM2-135M-Instruct learns to \(DemoData.task).
            Data: \(DemoData.source).
            \(data.train.count) rows to learn from, \(data.test.count) other rows to test with; \(model.backbone.dtype) on \
            \(model.backbone.device), \(try Machine.threads()) threads.

            Before: testing the pretrained model ...
            """)
        let before = try tester.examine()
        Console.write("  \(before.summary)\n")
        let outcomes = try contestants.map { try train($0, model, tester) }
        Console.write(table(before, outcomes))
        Console.write(sample(data, before, outcomes))
        Console.write(next(data))
    }

    /// Cuts the data into the demo's folder, which is made anew.
    private static func prepare() throws -> DemoData {
        let files = FileManager.default
        if files.fileExists(atPath: folder) {
            guard files.fileExists(atPath: "\(folder)/data/train.jsonl") else {
                throw DemoError("\(folder) is there but is not an earlier demo's; move it away")
            }
            try files.removeItem(atPath: folder)
        }
        try files.createDirectory(atPath: "\(folder)/data", withIntermediateDirectories: true)
        let data = try DemoData()
        try data.write(to: "\(folder)/data")
        return data
    }

    private static func train(_ contestant: Contestant, _ model: LanguageModel, _ tester: Tester) throws -> Outcome {
        Console.write("\(contestant.title): training ...")
        let output = "\(folder)/\(contestant.method)"
        let adapter = try model.attach(contestant.method, contestant.settings)
        defer { adapter.detach() }
        let result = try model.train(adapter, on: "\(folder)/data/train.jsonl", output: output) {
            $0.evalData = "\(folder)/data/test.jsonl"
            $0.learningRate = contestant.learningRate
            $0.batchSize = 8
            $0.epochs = 1
            $0.warmupRatio = 0.1
            $0.schedule = .cosine
        }
        if result.isInterrupted { throw DemoError("interrupted; 'make demo' begins again") }
        let exam = try tester.examine()
        Console.write("  \(exam.summary), \(Units.duration(result.seconds)) of training\n")
        let file = try FileManager.default.attributesOfItem(atPath: "\(output)/adapter/adapter_model.safetensors")
        return Outcome(
            contestant: contestant, result: result, adapterBytes: (file[.size] as? NSNumber)?.intValue ?? 0, exam: exam)
    }

    private static func table(_ before: Exam, _ outcomes: [Outcome]) -> String {
        var table = TextTable(
            .left("method"), .right("trained values"), .right("adapter file"), .right("training"), .right("test loss"),
            .right("answers right"), .right("word overlap"))
        func results(_ exam: Exam) -> [String] {
            [
                Units.loss(exam.loss), "\(exam.right) of \(exam.answers.count)",
                Units.percent(exam.overlap, decimals: 0),
            ]
        }
        table.append(["pretrained", "-", "-", "-"] + results(before))
        for outcome in outcomes {
            let cost = [
                outcome.contestant.title, "\(outcome.result.trainableParameters)", Units.bytes(outcome.adapterBytes),
                Units.duration(outcome.result.seconds),
            ]
            table.append(cost + results(outcome.exam))
        }
        return table.text()
    }

    /// A test row that the best method answers rightly and the pretrained model does not.
    private static func sample(_ data: DemoData, _ before: Exam, _ outcomes: [Outcome]) -> String {
        guard let best = outcomes.max(by: { $0.exam.right < $1.exam.right }) else { return "" }
        let index = data.test.indices.first { best.exam.scores[$0].isRight && !before.scores[$0].isRight } ?? 0
        return """
            One test row, which no method has seen in training:
            \(Console.wrapped(data.test[index].prompt, indent: 2))
              the right answer: \(data.test[index].answer)
              before:\(Tester.shown(before.answers[index]))
              after \(best.contestant.title):\(Tester.shown(best.exam.answers[index]))

            """
    }

    private static func next(_ data: DemoData) -> String {
        let adapter = "\(folder)/lora/adapter"
        let graft = ".build/release/graft"
        return """
            Run folders with recipe, metrics, loss curve and adapter: \(contestants.map { "\(folder)/\($0.method)" }.joined(separator: ", "))

            Try next:
              \(graft) eval --model \(modelName) --adapter \(adapter) --data \(folder)/data/test.jsonl
              \(graft) merge --model \(modelName) --adapter \(adapter) --output \(folder)/merged --verify
              \(graft) train --recipe \(folder)/lora/recipe.yaml --set r=16 --output runs/second
            """
    }
}
