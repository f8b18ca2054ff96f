import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct PackingTests {
    /// The gradients of one step of eight rows of a tiny model, by trainable, and its loss.
    private struct Outcome {
        var loss: Double
        var gradients: [Tensor]

        init(_ step: GradientStep, _ plan: StepPlan, _ adapter: Adapter, processes: Int = 1) throws {
            var (loss, supervised) = (0.0, 0)
            for rank in 0..<processes {
                let sums = try step.addGradients(of: plan, share: plan.share(rank: rank, of: processes))
                loss += sums.loss
                supervised = sums.supervised
            }
            self.loss = loss / Double(supervised)
            gradients = try adapter.trainables.map { try #require($0.tensor.grad, "\($0.name)") }
            for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
        }

        /// The largest difference of the gradients over the largest gradient.
        func gap(_ other: Outcome) throws -> Double {
            let gap = try zip(gradients, other.gradients).map { try largestDifference($0, $1) }.max() ?? .infinity
            return try gap / (gradients.map { try $0.absolute().maximum().item(as: Double.self) }.max() ?? 0)
        }
    }

    /// One step of eight rows, whatever the passes that they lie in and the processes that share them.
    @Test(
        "Packed == unpacked, 1x8 == 8x1",
        arguments: ["lora", "dora", "lorta", "capaboost-lora"])
    func packedEqualsUnpacked(method: String) async throws {
        let model = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
        try withTemporaryFolder { folder in
            let data = try model.dataset(folder.write(textRows(24, seed: 6), to: "rows.jsonl"))
            let adapter = try model.attach(method)
            var generator = SeededGenerator(seed: 3)
            try withoutGrad {
                for trainable in adapter.trainables {
                    let noise = generator.normals(trainable.tensor.count).map { 0.1 * $0 }
                    try trainable.tensor.add(Tensor(noise, shape: trainable.tensor.shape))
                }
            }
            func outcome(_ layout: BatchLayout, step: Int, processes: Int = 1) throws -> Outcome {
                var order = DataOrder(seed: Seed(9), count: data.count, rowsPerStep: 8)
                let plan = order.plan(step: step, layout: layout) { data.length(at: $0) }
                return try Outcome(
                    GradientStep(model, data, layout: layout, seed: Seed(9)), plan, adapter, processes: processes)
            }
            for step in 0..<3 {
                let oneByOne = try outcome(BatchLayout(rows: 1), step: step)
                for layout in [
                    BatchLayout(rows: 8), BatchLayout(rows: 3), BatchLayout(rows: 8, isPacked: true),
                    BatchLayout(rows: 3, isPacked: true), BatchLayout(rows: 1, tokens: data.longest),
                    BatchLayout(rows: 1, tokens: data.longest + 20, isPacked: true),
                ] {
                    for processes in [1, 3] {
                        let other = try outcome(layout, step: step, processes: processes)
                        #expect(abs(oneByOne.loss - other.loss) < 1e-6, "\(layout)")
                        #expect(try oneByOne.gap(other) < 1e-6, "\(layout)")
                    }
                }
            }
            // Another step has other rows, or nothing was compared.
            #expect(try outcome(BatchLayout(rows: 1), step: 0).gap(outcome(BatchLayout(rows: 1), step: 1)) > 1e-2)
        }
    }

    /// Rows of odd lengths within and beyond sliding windows, some of one token.
    private func rows(_ seed: UInt64, count: Int = 7, vocabulary: Int = 97) -> [Example] {
        var generator = SeededGenerator(seed: seed)
        return (0..<count).map { line in
            let length = line % 3 == 1 ? 1 : Int.random(in: 2...23, using: &generator)
            // Token 0 fills rows up in these models, and transformers gives its embedding no gradient.
            let ids = generator.tokens(rows: 1, length: length, vocabulary: vocabulary - 1)[0].map { $0 + 1 }
            let supervised = ids.indices.map { $0 == length - 1 || Bool.random(using: &generator) }
            return Example(ids: ids, supervised: supervised, line: line + 1)
        }
    }

    /// The mean loss of a batch with the gradients of every parameter of a model.
    private func gradients(_ backbone: any Backbone, _ batch: Batch) throws -> (loss: Double, KeyedList<Tensor>) {
        var gradients = KeyedList<Tensor>()
        for parameter in backbone.parameters { parameter.replacement = try parameter.frozen.cloned().requiringGrad() }
        let loss = try SupervisedObjective().losses(batch, backbone).sum() / Double(batch.supervisedTokens)
        try loss.backward()
        for parameter in backbone.parameters {
            gradients[parameter.path] = try #require(parameter.replacement?.grad, "\(parameter.path)")
            parameter.replacement = nil
        }
        return (try loss.item(), gradients)
    }

    /// Grouped queries, scaled positions, windows, norms and biases: every parameter has the same gradient, and it is
    /// the one that transformers computes for the packed sequence.
    @Test(arguments: ["llama", "llama3", "llama-dynamic", "llama-yarn", "mistral", "qwen2", "qwen3-sliding"])
    func everyKindOfModelPacks(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 21)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let rows = rows(UInt64(kind.utf8.count))
        let (loss, apart) = try gradients(backbone, Batch(rows, padding: 0))
        let packed = try Batch(rows, padding: 0, isPacked: true)
        #expect(packed.ids.shape == [1, packed.tokens])
        let (packedLoss, together) = try gradients(backbone, packed)
        #expect(abs(loss - packedLoss) < 1e-6)
        // Aligned rows, as in bfloat16, have what fills them up in the sequence.
        let (alignedLoss, _) = try gradients(backbone, Batch(rows, padding: 0, isPacked: true, multiple: 8))
        #expect(abs(loss - alignedLoss) < 1e-6)
        try await withTemporaryFolder { temporary in
            let expected = try await Oracle.shared.call(
                "training.packed_objective",
                ["folder": JSON(folder), "rows": JSON(rows: rows), "output": JSON(temporary("g.safetensors"))])
            #expect(abs(packedLoss - (expected.double ?? 0)) < 2e-6)
            let reference = try SafetensorsFile(path: temporary("g.safetensors"))
            for (path, gradient) in together {
                let size = try max(1, gradient.absolute().maximum().item(as: Double.self))
                #expect(try largestDifference(gradient, #require(apart[path])) < 1e-6 * size, "\(path)")
                #expect(try largestDifference(gradient, reference.tensor(path).tensor()) < 3e-6 * size, "\(path)")
            }
        }
    }

    /// Nothing of a row depends on what lies before or behind it, and nothing predicts its first token.
    @Test func rowsDoNotSeeEachOther() async throws {
        let folder = try await TinyModels.shared.folder("mistral", seed: 21)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let rows = rows(4)
        func losses(_ rows: [Example]) throws -> [Float] {
            try withoutGrad {
                try SupervisedObjective().losses(Batch(rows, padding: 0, isPacked: true), backbone).values(
                    as: Float.self)
            }
        }
        let counts = rows.map(\.supervisedCount)
        let all = try losses(rows)
        #expect(all.count == counts.reduce(0, +))
        var start = 0
        for (row, count) in zip(rows, counts) {
            let alone = count > 0 ? try losses([row]) : []
            for (one, other) in zip(alone, all[start..<(start + count)]) { #expect(abs(one - other) < 2e-6) }
            start += count
        }
        // The first tokens are no targets although their flags were set.
        let flagged = rows.map { Example(ids: $0.ids, supervised: $0.ids.map { _ in true }, line: $0.line) }
        let batch = try Batch(flagged, padding: 0, isPacked: true)
        let targets: [Int] = try batch.targets.values()
        #expect(targets == flagged.flatMap { $0.ids.dropFirst() })
    }

    @Test(arguments: ["llama", "mistral", "qwen3"]) func packedInBfloat16(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 22, dtype: "bfloat16")
        let rows = rows(5)
        func loss(_ dtype: DType, isPacked: Bool) throws -> Double {
            let backbone = try Checkpoint(folder).backbone(dtype: dtype)
            let batch = try Batch(rows, padding: 0, isPacked: isPacked, multiple: 8)
            return try withoutGrad { try SupervisedObjective().losses(batch, backbone).mean().item() }
        }
        let exact = try loss(.float32, isPacked: false)
        #expect(try abs(loss(.bfloat16, isPacked: true) - exact) < 0.02 * exact)
        #expect(try abs(loss(.bfloat16, isPacked: true) - loss(.bfloat16, isPacked: false)) < 0.01 * exact)
    }

    @Test func whatDoesNotFitIsRefused() async throws {
        let backbone = try Checkpoint(try await TinyModels.shared.folder("llama")).backbone(dtype: .float32)
        func refusal(_ shape: [Int], _ change: (inout Context) throws -> Void) -> String {
            message {
                var context = Context()
                context.segments = Segments([2, 0, 3])
                try change(&context)
                _ = try backbone.hiddenStates(Tensor.ones(shape, dtype: .int64), context)
            }
        }
        #expect(refusal([1, 5]) { _ in }.isEmpty)
        #expect(refusal([1, 6]) { _ in }.contains("the packed rows make [1, 5]"))
        #expect(refusal([5, 1]) { _ in }.contains("the packed rows make [1, 5]"))
        #expect(refusal([1, 5]) { $0.cache = backbone.makeCache(capacity: 9) }.contains("no cache"))
        #expect(refusal([1, 5]) { $0.positions = try Tensor.arange(5) }.contains("its own mask and positions"))
    }

    /// A whole run: the recipe's keys reach training and evaluation, and change neither beyond rounding.
    @Test func aPackedRunIsTheUnpackedOne() async throws {
        try await withTemporaryFolder { folder in
            var recipe = Recipe(
                model: try await ChatModels.shared.folder(),
                data: try folder.write(textRows(20, seed: 8), to: "train.jsonl"),
                settings: ["r": 4, "target_modules": "all-linear"])
            recipe.evalData = recipe.data
            recipe.steps = 4
            recipe.batchSize = 8
            recipe.learningRate = 5e-3
            recipe.dtype = .float32
            recipe.device = .cpu
            let plain = try Trainer.run(recipe, output: folder("plain"), showsProgress: false)
            recipe.packing = true
            recipe.batchTokens = 60
            let plan = try TrainingPlan(recipe)
            let packed = try Trainer.run(recipe, output: folder("packed"), showsProgress: false)
            let again = try Recipe(path: folder("packed/recipe.yaml"))
            #expect(again.packing && again.batchTokens == 60)
            #expect(plain.tokens == packed.tokens && plan.steps == 4)
            let (a, b) = (try #require(plain.evaluationAfter), try #require(packed.evaluationAfter))
            #expect(a.rows.map(\.line) == b.rows.map(\.line))
            for (one, other) in zip(a.rows, b.rows) { #expect(abs(one.loss - other.loss) < 1e-4) }
            let losses = try ["plain", "packed"].map {
                try MetricsLog.read(path: RunLayout(folder($0)).metrics).compactMap(\.loss)
            }
            #expect(losses[0].count == 4)
            for (one, other) in zip(losses[0], losses[1]) { #expect(abs(one - other) < 1e-5) }

            recipe.batchTokens = 9
            let text = message { try Trainer.run(recipe, output: folder("none"), showsProgress: false) }
            #expect(text.contains("train.jsonl line ") && text.contains("more than batch_tokens 9"), "\(text)")
            #expect(!FileManager.default.fileExists(atPath: folder("none")))
            recipe.maxLength = 9
            try Trainer.run(recipe, output: folder("cut"), showsProgress: false)
        }
    }
}
