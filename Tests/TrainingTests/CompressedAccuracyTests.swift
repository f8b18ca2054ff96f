import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch
import Training

/// What a compressed adapter still knows.
@Suite struct CompressedAccuracyTests {
    private static let phrases = [
        ("the lazy dog", "animal"), ("the answer to this", "question"), ("a red house", "building"),
        ("seven and three", "sum"),
    ]

    /// Rows with numbers from a range, the phrases in turn.
    private func rows(_ range: Range<Int>) -> String {
        range.map { index in
            let (text, label) = Self.phrases[index % Self.phrases.count]
            return "{\"text\": \"\(index) \(text) \(index * 7)\", \"label\": \"\(label)\"}\n"
        }.joined()
    }

    /// The same places with signs at random.
    private func withRandomSigns(_ folder: String, seed: UInt64) throws {
        let path = folder + "/adapter_model.ternary"
        let file = try TernaryFile(path: path)
        var generator = SeededGenerator(seed: seed)
        var vector = TernaryVector(count: file.vector.count, scale: file.vector.scale)
        file.vector.forEachKept { index, _ in vector.keep(index, isNegative: Bool.random(using: &generator)) }
        _ = try TernaryFile.write(
            to: path, tensors: file.tensors, vector: vector, density: file.density, alpha: file.alpha, seed: file.seed)
    }

    @Test("A fifth of the changes, with a tuned alpha, answers as all of them do; random signs do not")
    func aFifthIsEnough() async throws {
        let folder = try await ChatModels.shared.folder()
        try withTemporaryFolder { temporary in
            var recipe = Recipe(model: folder, data: try temporary.write(rows(0..<64), to: "rows.jsonl"))
            let tuning = try temporary.write(rows(100..<132), to: "tuning.jsonl")
            let test = try temporary.write(rows(200..<300), to: "test.jsonl")
            recipe.objective = "classification"
            recipe.settings = ["r": 8, "target_modules": "all-linear"]
            (recipe.steps, recipe.learningRate, recipe.dtype, recipe.device) = (40, 0.01, .float32, .cpu)
            let result = try Trainer.run(recipe, output: temporary("run"), showsProgress: false)
            let trained = try #require(result.adapter)
            let base = try LanguageModel.load(folder, dtype: .float32, device: .cpu)
            func accuracy(_ adapter: String, on data: String) throws -> Double {
                let (model, attached) = try base.adapted(from: adapter)
                defer { attached.detach() }
                return try #require(model.evaluate(on: data).measures["accuracy"])
            }
            func compressed(_ alpha: Double, to name: String) throws -> String {
                let compression = AdapterCompression(density: 0.2, alpha: alpha, seed: Seed(UInt64(recipe.seed)))
                _ = try compression.compress(trained, to: temporary(name)) {
                    try Checkpoint(folder).backbone(dtype: .float32)
                }
                return temporary(name)
            }
            let tuned = try [0.5, 1, 2, 3, 4, 5].map { alpha in
                (alpha: alpha, accuracy: try accuracy(compressed(alpha, to: "alpha-\(alpha)"), on: tuning))
            }
            let best = try #require(tuned.max { $0.accuracy < $1.accuracy })
            let whole = try accuracy(trained, on: test)
            #expect(whole > 0.95)
            let kept = try accuracy(compressed(best.alpha, to: "kept"), on: test)
            #expect(kept >= whole - 0.02, "\(tuned)")
            for seed in 0..<3 as Range<UInt64> {
                let random = try compressed(best.alpha, to: "random-\(seed)")
                try withRandomSigns(random, seed: seed)
                let left = try accuracy(random, on: test)
                #expect(left < 0.7, "seed \(seed)")
            }
        }
    }
}
