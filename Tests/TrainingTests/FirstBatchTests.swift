import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Training

/// What a run shows and keeps of its data.
@Suite struct FirstBatchTests {
    @Test("First batch shown with coloured mask; zero-target row is an error")
    func firstBatchShown() async throws {
        let model = try await ChatModels.shared.folder()
        try withTemporaryFolder { folder in
            let text = try TextModel.load(model)
            let rows = """
                {"prompt": "the quick\\u001b[31m", "completion": " fox"}
                {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "dog"}]}
                """
            let path = try folder.write(rows, to: "rows.jsonl")
            let data = try Dataset([DataSource(path)], text: text, options: Dataset.Options(maxLength: 64))
            let shown = try (0..<2).map { try MarkedRow(data[$0], of: data, tokenizer: text.tokenizer) }
            // What is trained is coloured, and nothing else; a row's own escapes do not reach the terminal.
            let (on, off) = ("\u{1B}[32m", "\u{1B}[0m")
            #expect(shown[0].text(isColoured: true) == "the quick\\u{1b}[31m\(on) fox<|im_end|>\(off)")
            #expect(shown[0].text(isColoured: false) == "the quick\\u{1b}[31m[[ fox<|im_end|>]]")
            #expect(
                shown[1].text(isColoured: true)
                    == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n\(on)dog<|im_end|>\(off)\n")
            #expect(shown[1].name == "\(path) line 2")

            // The report shows it, coloured on a terminal and plain elsewhere.
            for isTerminal in [true, false] {
                let written = Written()
                let output = ProgressLine.Output(isTerminal: isTerminal, write: { written.text += $0 })
                let run = try RunFolder.create(folder("run-\(isTerminal)"))
                let report = try RunReport(
                    in: run.layout, title: "", totalSteps: 1, resumedStep: nil, output: output, now: { 0 })
                report.show(shown[0], as: "the first row of step 1")
                try report.finish()
                run.close()
                let expected = "the first row of step 1 (\(path) line 1), trained tokens "
                #expect(written.text.contains(expected + (isTerminal ? "coloured" : "in [[ ]]")))
                #expect(written.text.contains(shown[0].text(isColoured: isTerminal) + "\n"))
            }

            // A whole row without a token to learn is an error, by line.
            for row in [
                #"{"messages": [{"role": "user", "content": "the dog"}]}"#,
                #"{"messages": [{"role": "assistant", "content": ""}]}"#, #"{"prompt": "the", "completion": ""}"#,
            ] {
                let wrong = try folder.write(rows + "\n" + row + "\n", to: "wrong.jsonl")
                let text = message {
                    _ = try Dataset([DataSource(wrong)], text: text, options: Dataset.Options(maxLength: 64))
                }
                #expect(text.contains("wrong.jsonl, line 3"), "\(text)")
                var recipe = Recipe(model: model, data: wrong)
                recipe.steps = 1
                #expect(
                    message { try Trainer.run(recipe, output: folder("zero"), showsProgress: false) }.contains("line 3")
                )
            }
            #expect(!FileManager.default.fileExists(atPath: folder("zero")))
        }
    }

    @Test func severalFilesTrainByWeightAndResume() async throws {
        let model = try await ChatModels.shared.folder()
        try withTemporaryFolder { folder in
            var recipe = Recipe(model: model)
            recipe.dataSources = [
                DataSource(try folder.write(textRows(9, seed: 1), to: "a.jsonl"), weight: 0.5),
                DataSource(try folder.write("prompt,completion\nthe,dog\nquick, fox\n", to: "b.csv"), weight: 2),
            ]
            recipe.settings = ["r": 2, "target_modules": "all-linear"]
            recipe.dtype = .float32
            recipe.device = .cpu
            recipe.batchSize = 3
            recipe.epochs = 2
            recipe.saveSteps = 2
            let result = try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            // 5 of 9 rows, and 2 rows twice, are 9 rows: 3 steps an epoch.
            #expect(result.totalSteps == 6)
            let kept = try JSON.read(path: folder("run/data.json"))
            #expect(kept["rows_per_epoch"] == 9)
            #expect(kept["files"]?.array?.map { $0["rows_per_epoch"] } == [5, 4])
            #expect(kept["files"]?.array?.map { $0["weight"]?.double } == [0.5, 2])
            #expect(kept["files"]?.array?.map { $0["format"] } == ["jsonl", "csv"])
            #expect(kept["files"]?.array?.allSatisfy { $0["digest"]?.string?.utf8.count == 64 } == true)
            #expect(try Recipe(path: folder("run/recipe.yaml")).dataSources == recipe.dataSources)

            let adapter = URL(fileURLWithPath: folder("run/adapter/adapter_model.safetensors"))
            let whole = try Data(contentsOf: adapter)
            try FileManager.default.removeItem(atPath: RunLayout(folder("run")).checkpoint(step: 6))
            try Trainer.resume(folder("run"), showsProgress: false)
            #expect(try Data(contentsOf: adapter) == whole)
            // Other weights are other data.
            var other = try Recipe(path: folder("run/recipe.yaml"))
            other.dataSources[0].weight = 1
            let text = message { try Trainer.resume(folder("run"), recipe: other, showsProgress: false) }
            #expect(text.contains("the data have changed"), "\(text)")
        }
    }

    @Test func theReportCountsLengthsAndPairs() async throws {
        let text = try TextModel.load(await ChatModels.shared.folder())
        var generator = SeededGenerator(seed: 21)
        try withTemporaryFolder { folder in
            let lines = (0..<200).map { _ -> String in
                let count = Int.random(in: 1...60, using: &generator)
                return "{\"text\": \"" + (0..<count).map { _ in "the" }.joined(separator: " ") + "\"}"
            }
            let pairs = """
                {"prompt": "what is", "completion": " one"}
                {"prompt": "what is", "completion": " two"}
                {"prompt": "what is", "completion": " one"}
                """
            let path = try folder.write(lines.joined(separator: "\n") + "\n" + pairs + "\n", to: "rows.jsonl")
            let held = try folder.write(
                "{\"prompt\": \"what is\", \"completion\": \" two\"}\n{\"prompt\": \"what is\", \"completion\": \" six\"}\n"
                    + "{\"prompt\": \"what was\", \"completion\": \" two\"}\n", to: "held.jsonl")
            let options = Dataset.Options(maxLength: 40)
            let data = try Dataset([DataSource(path)], text: text, options: options)
            let evalData = try Dataset([DataSource(held)], text: text, options: options)
            let report = try DataReport(data, evalData: evalData, maxLength: 40, tokenizer: text.tokenizer, rows: 3)
            let whole = try Dataset([DataSource(path)], text: text, options: Dataset.Options(maxLength: 1000))
            let lengths = whole.examples.map(\.ids.count).sorted()
            #expect(lengths.count == 203)
            #expect(report.lengths.min == lengths.first && report.lengths.max == lengths.last)
            // Nearest rank: the smallest length that so many rows do not exceed.
            for (share, found) in [(0.5, report.lengths.median), (0.9, report.lengths.p90), (0.99, report.lengths.p99)]
            {
                let atMost = lengths.count { $0 <= found }
                #expect(Double(atMost) >= share * 203)
                #expect(Double(lengths.count { $0 < found }) < share * 203)
            }
            for (index, step) in report.lengths.histogram.enumerated() {
                let below = index == 0 ? 0 : report.lengths.histogram[index - 1].upTo
                #expect(step.rows == lengths.count { $0 > below && $0 <= step.upTo })
            }
            #expect(report.supervisedTokens == data.examples.reduce(0) { $0 + $1.supervisedCount })
            // Texts of as many words are the same row, once they are cut too.
            let different = Set(data.examples.dropLast(3).map(\.ids)).count
            #expect(report.duplicates.count == 200 - different + 1)
            #expect(report.otherAnswers.count == 1)
            #expect(report.otherAnswers.first.first?.later == "\(path) line 202")
            #expect(report.evalRows == 3 && report.evalDuplicates.count == 1 && report.evalPrompts.count == 1)
            #expect(report.evalDuplicates.first.first?.earlier == "\(path) line 202")
            #expect(report.firstRows.count == 3)
            let json = report.json
            #expect(json["rows"] == 203 && json["duplicates"]?["count"]?.int == report.duplicates.count)
            #expect(json["files"]?[0]?["truncated"]?.int == lengths.count { $0 > 40 })
            #expect(report.text().contains("duplicate rows: \(report.duplicates.count)"))
        }
    }
}

/// Text that closures add to.
private final class Written: @unchecked Sendable {
    var text = ""
}
