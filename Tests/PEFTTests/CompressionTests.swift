import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch

/// ComPEFT: what is kept, of what size, and what comes back.
@Suite struct CompressionTests {
    /// A trained adapter's folder, made of noise.
    private func saved(
        _ name: String, _ settings: KeyedList<JSON> = [:], on backbone: any Backbone, to path: String, seed: UInt64 = 4
    ) throws {
        let adapter = try adapter(name, settings, on: backbone)
        defer { adapter.detach() }
        try adapter.randomise(seed: seed)
        try adapter.save(to: path)
    }

    private func tensors(_ shapes: KeyedList<[Int]>, seed: UInt64) throws -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (name, shape) in shapes {
            var stream = Seed(seed).stream(name)
            result[name] = try Tensor.normal(shape, standardDeviation: 0.3, from: &stream)
        }
        return result
    }

    @Test(arguments: [0.01, 0.05, 0.1, 0.2, 0.5, 0.999]) func keepsTheLargestChanges(density: Double) throws {
        let vector = try TaskVector(tensors(["b": [37, 11], "a": [5, 19]], seed: 3))
        #expect(vector.shapes.keys == ["a", "b"])
        let ternary = try vector.ternary(density: density, alpha: 2)
        let (values, count) = (try vector.values.values(as: Float.self), vector.values.count)
        #expect(ternary.count == 502 && count == 502)
        #expect(ternary.keptCount == Int(density * Double(count)) + 1)
        let kept = values.indices.filter { ternary.sign($0) != 0 }
        let dropped = values.indices.filter { ternary.sign($0) == 0 }
        let smallest = try #require(kept.map { abs(values[$0]) }.min())
        #expect(dropped.allSatisfy { abs(values[$0]) < smallest })
        #expect(kept.allSatisfy { (values[$0] < 0) == (ternary.sign($0) < 0) })
        let mean = values.map(Double.init).reduce(0, +) / Double(count)
        let variance = values.reduce(0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / Double(count - 1)
        #expect(abs(Double(ternary.scale) - 2 * variance.squareRoot()) < 1e-6)
        #expect(Set(try ternary.dense().values(as: Float.self)).isSubset(of: [0, ternary.scale, -ternary.scale]))
    }

    @Test func equalChangesAndSmallSharesAreKeptByTheRule() throws {
        let vector = try TaskVector(["w": Tensor([Float(1), -1, 1, 0.5, 0, 0, 0, 0], shape: [8])])
        // Fewer than one entry keeps the largest, and with it all that are as large.
        #expect(try vector.ternary(density: 0.01).keptCount == 3)
        // All of them: zeros have no sign.
        #expect(try vector.ternary(density: 1).keptCount == 4)
        #expect(try vector.ternary(density: 0.9).keptCount == 4)
        let mean = try vector.meanTernary(density: 0.01)
        #expect(mean.scale == 1 && mean.keptCount == 3)
        #expect(try vector.pruned(density: 0.01).values(as: Float.self) == [1, -1, 1, 0, 0, 0, 0, 0])
    }

    @Test(arguments: [(0.05, 1.0), (0.3, 4.0), (1.0, 0.5)]) func equalsTheOraclesVector(
        density: Double, alpha: Double
    ) async throws {
        let (values, starts) = (
            try tensors(["m.b": [13, 7], "m.a": [31], "m.a.x": [4, 5]], seed: 8), try tensors(["m.a": [31]], seed: 9)
        )
        try await withTemporaryFolder { folder in
            try SafetensorsWriter.write(values, to: folder("values"))
            try SafetensorsWriter.write(starts, to: folder("starts"))
            let expected = try await Oracle.shared.call(
                "values.compeft",
                [
                    "tensors": JSON(folder("values")), "starts": JSON(folder("starts")), "density": JSON(density),
                    "alpha": JSON(alpha), "output": JSON(folder("signs")),
                ])
            let ternary = try TaskVector(values, starts: starts).ternary(density: density, alpha: alpha)
            let signs: [Int] = try storedTensor(folder("signs"), "signs").values()
            #expect((0..<ternary.count).map { ternary.sign($0) } == signs)
            #expect(ternary.keptCount == expected["kept"]?.int)
            let scale = try #require(expected["scale"]?.double)
            #expect(abs(Double(ternary.scale) - scale) < 1e-6 * scale)
        }
    }

    /// (IA)^3 starts from ones, LoRA's factors from zeros, DoRA's magnitudes and whole modules from the base model.
    @Test func pruningNothingGivesTheTensorsBack() throws {
        let values = try tensors(["a": [9, 4], "b": [6]], seed: 2)
        for starts: KeyedList<Tensor> in [[:], ["b": try Tensor.ones([6])]] {
            let vector = try TaskVector(values, starts: starts)
            let back = try vector.tensors(vector.pruned(density: 1), starts: starts)
            for (name, tensor) in back {
                let gap = try largestDifference(tensor, #require(values[name]))
                #expect(gap <= (starts[name] == nil ? 0 : 0x1p-22), "\(name)")
            }
        }
    }

    @Test(arguments: MethodCase.all) func everyMethodComesBackAsItsStartAndSigns(method: MethodCase) throws {
        let backbone = try SmallModel().backbone()
        try withTemporaryFolder { folder in
            let trained = try method.adapter(on: backbone)
            try trained.randomise(seed: 4)
            try trained.save(to: folder("plain"))
            trained.detach()
            let plain = try SafetensorsFile(path: folder("plain/adapter_model.safetensors"))
            if plain.tensors.contains(where: { $0.value.type.dtype == .int64 }) {
                let sentence = refusal {
                    _ = try AdapterCompression(density: 0.2).compress(folder("plain"), to: folder("small")) { backbone }
                }
                #expect(sentence.contains("holds positions") && sentence.contains("are not compressed"))
                return
            }
            let report = try AdapterCompression(density: 0.2, alpha: 2).compress(
                folder("plain"), to: folder("small")
            ) { backbone }
            #expect(try folder.contents(of: "small") == ["adapter_config.json", "adapter_model.ternary"])
            #expect(backbone.attachPoints.allSatisfy { $0.occupant == nil })
            let small = try FileManager.default.attributesOfItem(atPath: folder("small/adapter_model.ternary"))
            #expect(small[.size] as? Int == report.bytesAfter)
            #expect(Double(report.codeBytes) * 8 >= (report.boundBits - 16) * 0.97)

            let loaded = try Adapter.load(from: folder("small"), onto: backbone)
            let values = loaded.state
            loaded.detach()
            let fresh = try Adapter(loaded.configuration, on: backbone, seed: Seed(0))
            fresh.detach()
            let file = try TernaryFile(path: folder("small/adapter_model.ternary"))
            #expect(file.vector.keptCount == report.kept && Double(file.vector.scale) == report.scale)
            for trainable in fresh.trainables {
                let entry = try #require(file.tensors[trainable.name])
                let start = try entry.start == .own ? trainable.tensor.detached() : trainable.tensor.zerosLike()
                let change = try (#require(values[trainable.name]).detached() - start).values(as: Float.self)
                #expect(
                    change.allSatisfy { value in
                        [0, report.scale, -report.scale].contains { abs(Double(value) - $0) < 1e-5 }
                    }, "\(trainable.name)")
            }

            try AdapterCompression.decompress(folder("small"), to: folder("again")) { backbone }
            #expect(try folder.contents(of: "again") == ["adapter_config.json", "adapter_model.safetensors"])
            let again = try Adapter.load(from: folder("again"), onto: backbone)
            for (key, tensor) in values { #expect(try #require(again.state[key]).isIdentical(to: tensor), "\(key)") }
            again.detach()
        }
    }

    /// With its seed an adapter comes back as what it was begun with and signs; another seed's start is not taken.
    @Test(arguments: MethodCase.all) func startsFromWhatItsSeedDraws(method: MethodCase) throws {
        let backbone = try SmallModel().backbone()
        try withTemporaryFolder { folder in
            let trained = try method.adapter(on: backbone, seed: 7)
            var begun = KeyedList<Tensor>()
            for trainable in trained.trainables { begun[trainable.name] = try trainable.tensor.detached().cloned() }
            try trained.randomise(seed: 4, by: 0.01)
            try trained.save(to: folder("plain"))
            trained.detach()
            let plain = try SafetensorsFile(path: folder("plain/adapter_model.safetensors"))
            guard !plain.tensors.contains(where: { $0.value.type.dtype == .int64 }) else { return }
            func compressed(_ seed: UInt64) throws -> AdapterCompression.Report {
                try AdapterCompression(density: 0.2, alpha: 2, seed: Seed(seed)).compress(
                    folder("plain"), to: folder("small")
                ) { backbone }
            }
            let other = try compressed(8)
            let report = try compressed(7)
            // Of few numbers another seed's may be nearer than zero by chance.
            #expect(other.drawn < max(report.drawn, 1))
            let file = try TernaryFile(path: folder("small/adapter_model.ternary"))
            #expect(file.seed == report.seed?.value && report.tensors == file.tensors.count)
            #expect(report.seed == (report.drawn > 0 ? Seed(7) : nil))
            if ["lora", "dora", "melora", "capaboost-lora", "houlsby"].contains(method.name) {
                #expect(report.drawn > 0)
            }
            let loaded = try Adapter.load(from: folder("small"), onto: backbone)
            let values = loaded.state
            loaded.detach()
            for (name, entry) in file.tensors where entry.start == .drawn {
                let start = try #require(begun[name], "\(name)")
                let change = try (#require(values[name]).detached() - start).values(as: Float.self)
                #expect(
                    change.allSatisfy { value in
                        [0, report.scale, -report.scale].contains { abs(Double(value) - $0) < 1e-6 }
                    }, "\(name)")
            }
            try AdapterCompression.decompress(folder("small"), to: folder("again")) { backbone }
            let again = try Adapter.load(from: folder("again"), onto: backbone)
            for (key, tensor) in values { #expect(try #require(again.state[key]).isIdentical(to: tensor), "\(key)") }
            again.detach()
        }
    }

    /// The head of a classifier is drawn from the file's seed, whatever head the model was made with.
    @Test func aClassifiersHeadStartsFromItsSeed() throws {
        let model = try SmallModel().backbone()
        func classifier(_ seed: UInt64) throws -> SequenceClassifier {
            try SequenceClassifier(model, labels: ["no", "yes"], seed: Seed(seed))
        }
        try withTemporaryFolder { folder in
            let trained = try adapter("lora", on: classifier(7), seed: 7)
            let start = try trained.tensor("score.weight").detached().cloned()
            try trained.randomise(seed: 4, by: 0.01)
            try trained.save(to: folder("plain"))
            trained.detach()
            let report = try AdapterCompression(density: 0.5, seed: Seed(7)).compress(
                folder("plain"), to: folder("small")
            ) { model }
            #expect(try folder.contents(of: "small").contains("labels.json"))
            let loaded = try Adapter.load(from: folder("small"), onto: classifier(1))
            let change = try (loaded.tensor("score.weight").detached() - start).values(as: Float.self)
            loaded.detach()
            #expect(
                change.allSatisfy { value in
                    [0, report.scale, -report.scale].contains { abs(Double(value) - $0) < 1e-6 }
                })
            // What combines adapters finds the same values.
            _ = try AdapterCombination(.cat).combine([folder("small")], to: folder("same")) { model }
            let same = try Adapter.load(from: folder("same"), onto: classifier(1))
            #expect(try same.tensor("score.weight").isIdentical(to: loaded.tensor("score.weight")))
            for (a, b) in try zip(same.lowRankUpdates(), loaded.lowRankUpdates()) {
                #expect(try relativeGap(a.update.dense().detached(), b.update.dense().detached()) < 1e-6)
            }
            same.detach()
        }
    }

    @Test func wholeModulesAndBiasesStartFromTheBaseModel() throws {
        let backbone = try SmallModel().backbone()
        let ids = try SmallModel().tokens()
        try withTemporaryFolder { folder in
            try saved(
                "dora", ["modules_to_save": ["lm_head"], "bias": "all"], on: backbone, to: folder("plain"))
            _ = try AdapterCompression(density: 0.3).compress(folder("plain"), to: folder("small")) { backbone }
            let entries = try TernaryFile(path: folder("small/adapter_model.ternary")).tensors
            for (name, entry) in entries {
                #expect((entry.start == .zero) == (name.contains("lora_A") || name.contains("lora_B")), "\(name)")
            }
            let adapter = try Adapter.load(from: folder("small"), onto: backbone)
            #expect(try backbone.logits(ids).isAllFinite())
            adapter.detach()
            let other = try SmallModel().backbone(seed: 2)
            let sentence = refusal { _ = try Adapter.load(from: folder("small"), onto: other) }
            #expect(sentence.contains("another base model"), "\(sentence)")
            let unasked = refusal {
                _ = try AdapterCompression(density: 0.3).compress(folder("plain"), to: folder("x")) {
                    throw PEFTError("no model")
                }
            }
            #expect(unasked == "no model")
        }
    }

    @Test func plainLoRANeedsNoModelAndPeftReadsWhatComesBack() async throws {
        let model = try await TinyModels.shared.folder("llama")
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        try await withTemporaryFolder { folder in
            try saved("lora", ["target_modules": "all-linear", "use_rslora": true], on: backbone, to: folder("plain"))
            func none() throws -> any Backbone { throw PEFTError("the model was asked for") }
            _ = try AdapterCompression(density: 0.2, alpha: 2).compress(
                folder("plain"), to: folder("small"), backbone: none)
            try AdapterCompression.decompress(folder("small"), to: folder("again"), backbone: none)
            let adapter = try Adapter.load(from: folder("small"), onto: backbone)
            let ours = try withoutGrad { try backbone.logits(ids) }
            let size = try ours.absolute().maximum().item(as: Double.self)
            _ = try await Oracle.shared.call(
                "peft.logits",
                [
                    "model_folder": JSON(model), "adapter_folder": JSON(folder("again")),
                    "ids": JSON(tokens: exampleTokens), "output": JSON(folder("logits")),
                ])
            #expect(try largestDifference(ours, storedTensor(folder("logits"), "logits")) < 1e-5 * max(1, size))
            let merged = try adapter.whileMerged { try withoutGrad { try backbone.logits(ids) } }
            #expect(try relativeGap(merged, ours) < 1e-5)
            try await compareWithTheDocumentsReader(adapter, folder("small/adapter_model.ternary"), folder("read"))
        }
    }

    /// The norms that DoRA starts from are the base model's, which merging does not hold otherwise.
    @Test func mergesWhatStartsFromTheBaseModel() async throws {
        let model = try await TinyModels.shared.folder("llama")
        let checkpoint = try Checkpoint(model)
        let backbone = try checkpoint.backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        try withTemporaryFolder { folder in
            try saved("dora", on: backbone, to: folder("plain"))
            _ = try AdapterCompression(density: 0.3).compress(folder("plain"), to: folder("small")) { backbone }
            let adapter = try Adapter.load(from: folder("small"), onto: backbone)
            let adapted = try withoutGrad { try backbone.logits(ids) }
            adapter.detach()
            _ = try Merger(checkpoint, adapter: folder("small")).write(to: folder("merged"))
            let merged = try Checkpoint(folder("merged")).backbone(dtype: .float32)
            #expect(try relativeGap(withoutGrad { try merged.logits(ids) }, adapted) < 1e-5)
        }
    }

    private func compareWithTheDocumentsReader(_ adapter: Adapter, _ file: String, _ output: String) async throws {
        let names = try await Oracle.shared.call(
            "values.documented_tensors",
            [
                "document": JSON(RepositoryPaths.root + "/docs/adapters.md"), "path": JSON(file),
                "output": JSON(output),
            ])
        #expect(names.array?.compactMap(\.string) == adapter.trainables.map(\.name).sorted())
        for trainable in adapter.trainables {
            #expect(try largestDifference(storedTensor(output, trainable.name), trainable.tensor.detached()) == 0)
        }
    }

    @Test(arguments: [1, 2, 3]) func tiesOfCompressedIsTiesOfTheirValues(seed: UInt64) async throws {
        var vectors: [TernaryVector] = []
        var dense = KeyedList<Tensor>()
        for index in 0..<3 {
            let values = try tensors(["w": [601]], seed: 10 * seed + UInt64(index))
            // Two of one scale, so that opposite signs add up to zero.
            var vector = try TaskVector(values).ternary(density: 0.4)
            if index == 1 { vector.scale = vectors[0].scale }
            vectors.append(vector)
            dense["v\(index)"] = try vector.dense()
        }
        try await withTemporaryFolder { folder in
            try SafetensorsWriter.write(dense, to: folder("dense"))
            let changed = try await Oracle.shared.call(
                "values.ties",
                ["vectors": JSON(folder("dense")), "factor": 0.7, "output": JSON(folder("merged"))])
            let merged = try TernaryVector.ties(of: vectors, factor: 0.7)
            #expect(try relativeGap(merged, storedTensor(folder("merged"), "merged")) < 1e-6)
            #expect(try merged.values(as: Float.self).count { $0 != 0 } == changed.int)
        }
        let weights = [0.5, -1.25, 2]
        let sum = try TernaryVector.sum(of: vectors, weights: weights)
        let expected = try zip(dense.values, weights).reduce(Tensor.zeros([601])) { try $0 + $1.0 * $1.1 }
        #expect(try relativeGap(sum, expected) < 1e-6)
        #expect(refusal { _ = try TernaryVector.sum(of: vectors, weights: [1]) }.contains("a weight for each"))
    }

    @Test func badSettingsAndFoldersAreRefused() throws {
        let backbone = try SmallModel().backbone()
        try withTemporaryFolder { folder in
            try saved("lora", on: backbone, to: folder("plain"))
            func sentence(_ density: Double, _ alpha: Double = 1) -> String {
                refusal {
                    _ = try AdapterCompression(density: density, alpha: alpha).compress(
                        folder("plain"), to: folder("small")
                    ) { backbone }
                }
            }
            for density in [0, -0.1, 1.01, .nan] { #expect(sentence(density).hasPrefix("density: ")) }
            for alpha in [0, -1, .nan] { #expect(sentence(0.5, alpha).hasPrefix("alpha: ")) }
            #expect(!FileManager.default.fileExists(atPath: folder("small")))
            #expect(sentence(0.5).isEmpty)
            try FileManager.default.copyItem(
                atPath: folder("plain/adapter_model.safetensors"), toPath: folder("small/adapter_model.safetensors"))
            #expect(refusal { _ = try Adapter.load(from: folder("small"), onto: backbone) }.contains("two adapters"))
        }
    }
}
