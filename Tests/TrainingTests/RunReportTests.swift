import Formats
import Foundation
import TestSupport
import Testing
import Training

@Suite struct RunReportTests {
    @Test func aResumedReportEqualsThatOfAnUninterruptedRun() async throws {
        try await withTemporaryFolder { folder in
            let whole = try RunFolder.create(folder("whole"))
            var report = try makeReport(whole.layout, resumedStep: nil)
            for step in 1...20 { try record(step, in: report) }
            try report.finish()

            let killed = try RunFolder.create(folder("killed"))
            report = try makeReport(killed.layout, resumedStep: nil)
            for step in 1...14 { try record(step, in: report) }
            report = try makeReport(killed.layout, resumedStep: 10)
            for step in 11...20 { try record(step, in: report) }
            try report.finish()

            for name in ["metrics.jsonl", "loss.svg"] {
                let texts = try [whole, killed].map { run in
                    try String(contentsOfFile: run.layout.path + "/" + name, encoding: .utf8)
                }
                #expect(texts[0] == texts[1])
            }
            var curves: [JSON] = []
            for run in [whole, killed] {
                curves.append(try await Oracle.shared.call("report.curves", ["folder": JSON(run.layout.path)]))
            }
            #expect(curves[0] == curves[1])
            #expect(
                try Set(#require(curves[0].object?.keys))
                    == [
                        "train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second",
                        "train/peak_memory_bytes", "train/epoch", "train/sparsity", "eval/loss", "eval/accuracy",
                    ])
            #expect(curves[0]["train/loss"]?.array?.count == 20)
            #expect(curves[0]["eval/accuracy"] == [[5, 0.25], [10, 0.5], [15, 0.75], [20, 1.0]])
        }
    }

    @Test func evaluationsAndNotesStandAmongTheProgressLines() throws {
        try withTemporaryFolder { folder in
            var text = ""
            let output = ProgressLine.Output(isTerminal: false, write: { text += $0 }, now: { 0 })
            let report = try RunReport(
                in: RunLayout(folder.path), title: "run", totalSteps: 5, resumedStep: nil, output: output, now: { 9 })
            for step in 1...5 { try record(step, in: report) }
            report.note("checkpoints/step-000005 written")
            // The picture is there from the first evaluation on.
            #expect(FileManager.default.fileExists(atPath: folder("loss.svg")))
            try report.finish()
            let lines = text.split(separator: "\n")
            #expect(lines.count == 4)
            #expect(lines.first?.hasPrefix("step 1/5  epoch 0.25  loss 2.0000") == true)
            #expect(lines.dropFirst().first?.hasPrefix("step 5/5  epoch 1.25  loss 0.4000") == true)
            #expect(
                lines.suffix(2) == [
                    "step 5/5  eval loss 0.8000  eval accuracy 0.2500", "checkpoints/step-000005 written",
                ])
        }
    }

    private func makeReport(_ layout: RunLayout, resumedStep: Int?) throws -> RunReport {
        try RunReport(
            in: layout, title: "Fine-tuning loss", subtitle: "a model", totalSteps: 20, resumedStep: resumedStep,
            output: nil, now: { 1_700_000_000 })
    }

    private func record(_ step: Int, in report: RunReport) throws {
        var metrics = Metrics(step: step)
        metrics.epoch = Double(step) / 4
        metrics.loss = 2 / Double(step)
        metrics.learningRate = 0.125
        metrics.gradNorm = Double(step)
        metrics.tokens = 100 * step
        metrics.tokensPerSecond = 50
        metrics.peakMemoryBytes = 1 << 30
        metrics.others = ["sparsity": 0.5]
        try report.record(metrics)
        guard step % 5 == 0 else { return }
        var evaluation = Metrics(step: step)
        evaluation.epoch = metrics.epoch
        evaluation.evalLoss = 4 / Double(step)
        evaluation.others = ["eval_accuracy": Double(step) / 20]
        try report.record(evaluation)
    }
}
