import Backbones
import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Torch
import Training

@Suite struct EvaluatorTests {
    @Test func lossesAreThoseOfTransformersOnTheRealModel() async throws {
        let model = try LanguageModel.load("smollm2-135m", dtype: .float32, device: .cpu)
        try await withTemporaryFolder { folder in
            let path = try folder.write(
                """
                {"text": "The capital of France is Paris, and 42 is a number."}
                {"prompt": "Question: what is 7 times 6?\\nAnswer:", "completion": " 42"}
                {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}
                """, to: "rows.jsonl")
            let data = try model.dataset(path)
            let evaluation = try Evaluator(model, batchSize: 2).evaluate(data)
            let expected = try await Oracle.shared.call(
                "training.losses",
                ["folder": "", "rows": JSON(rows: data.examples), "gguf": JSON(RepositoryPaths.smolLM2)])
            let rows = try #require(expected.array)
            #expect(rows.count == 3)
            var sum = 0.0
            for (row, expected) in zip(evaluation.rows, rows) {
                let loss = try #require(expected[0]?.double)
                #expect(abs(row.loss - loss) < 1e-4)
                #expect(row.tokens == expected[1]?.int)
                sum += loss * Double(row.tokens)
            }
            #expect(evaluation.rows.map(\.line) == [1, 2, 3])
            #expect(abs(evaluation.loss - sum / Double(evaluation.tokens)) < 1e-4)
            #expect(abs(evaluation.perplexity - exp(evaluation.loss)) < 1e-9)
        }
    }

    @Test func orderAndBatchSizeDoNotMatter() async throws {
        let model = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
        try withTemporaryFolder { folder in
            let lines = textRows(11, seed: 3).split(separator: "\n").map(String.init)
            let plain = try model.dataset(folder.write(lines.joined(separator: "\n"), to: "a.jsonl"))
            let turned = try model.dataset(folder.write(lines.reversed().joined(separator: "\n"), to: "b.jsonl"))
            let one = try Evaluator(model, batchSize: 1).evaluate(plain)
            let other = try Evaluator(model, batchSize: 4).evaluate(turned)
            let packed = try Evaluator(model, layout: BatchLayout(rows: 4, isPacked: true)).evaluate(turned)
            for evaluation in [other, packed] {
                #expect(one.tokens == evaluation.tokens)
                for (row, same) in zip(one.rows, evaluation.rows.reversed()) {
                    #expect(abs(row.loss - same.loss) < 1e-5)
                    #expect(row.tokens == same.tokens)
                }
            }
            let json = one.json(perExample: true)
            #expect(json.object?.keys == ["loss", "perplexity", "tokens", "examples", "per_example"])
            #expect(json["per_example"]?.array?.count == 11)
            #expect(json["examples"] == 11)
            #expect(one.json()["per_example"] == nil)
        }
    }
}
