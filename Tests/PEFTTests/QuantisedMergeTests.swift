import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What an adapter over quantised weights is merged into.
@Suite struct QuantisedMergeTests {
    /// A model's folder, and the folder of an adapter that was made over its quantised weights.
    private func prepare(_ form: WeightForm, in folder: TemporaryFolder) async throws -> String {
        let sizes: JSON = [
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        ]
        let model = try await TinyModels.shared.folder("llama", seed: 72, options: ["overrides": sizes])
        let backbone = try Checkpoint(model).backbone(dtype: .float32, form: form)
        let adapter = try adapter("lora", ["target_modules": ["q_proj", "down_proj"]], on: backbone)
        try adapter.randomise(seed: 5)
        try adapter.save(to: folder("adapter"))
        return model
    }

    private func logits(_ path: String, _ form: WeightForm = .plain, adapter: String? = nil) throws -> Tensor {
        let backbone = try Checkpoint(path).backbone(dtype: .float32, form: form)
        if let adapter { _ = try Adapter.load(from: adapter, onto: backbone) }
        return try withoutGrad { try backbone.logits(Tensor(Array(3..<19), shape: [1, 16])) }
    }

    @Test(arguments: [WeightForm.nf4(), .int8]) func mergesIntoTheBaseThatIsNamed(form: WeightForm) async throws {
        try await withTemporaryFolder { folder in
            let model = try await prepare(form, in: folder)
            let checkpoint = try Checkpoint(model)
            for base in MergeBase.allCases {
                var merger = Merger(checkpoint, adapter: folder("adapter"))
                merger.form = form
                merger.base = base
                let report = try merger.write(to: folder(base.rawValue))
                let comparison = try merger.verify(folder(base.rawValue), prompts: [Array(3..<19)])
                #expect(comparison.largestDifference < 1e-4 * comparison.largestLogit)
                let file = try SafetensorsFile(path: folder(base.rawValue) + "/model.safetensors")
                #expect(file.metadata["merged_into"] == report.base)
                // How far apart the two bases are, in lengths of the update.
                #expect(report.changes.allSatisfy { ($0.quantisation ?? 0) > 0 })
                #expect(try #require(report.relativeQuantisation) > 1e-3)
            }
            let trained = try logits(model, form, adapter: folder("adapter"))
            let untouched = try logits(model, adapter: folder("adapter"))
            let (original, dequantised) = (try logits(folder("original")), try logits(folder("dequantised")))
            #expect(try relativeGap(original, untouched) < 1e-5)
            #expect(try relativeGap(dequantised, trained) < 1e-5)
            #expect(try relativeGap(dequantised, original) > 1e-4)
            // Layers without an adapter were quantised in training as well.
            let name = "model.layers.0.mlp.up_proj.weight"
            let stored = try SafetensorsFile(path: folder("dequantised") + "/model.safetensors").tensor(name).tensor()
            let weight = try Checkpoint(model).backbone(dtype: .float32, form: form).parameters.first {
                $0.path == name
            }
            #expect(try stored.isIdentical(to: #require(weight).values(dtype: .float32)))
        }
    }

    @Test func aFullPreciseRunIsMergedAsEver() async throws {
        try await withTemporaryFolder { folder in
            let model = try await prepare(.plain, in: folder)
            let report = try Merger(Checkpoint(model), adapter: folder("adapter")).write(to: folder("merged"))
            #expect(report.base == "the original weights" && report.relativeQuantisation == nil)
        }
    }

    /// Of a GGUF file there is nothing but its blocks.
    @Test func blocksAreUnpacked() async throws {
        try await withTemporaryFolder { folder in
            let model = try await prepare(.plain, in: folder)
            let file = folder("model.gguf")
            _ = try await Oracle.shared.call(
                "backbones.make_gguf", ["folder": JSON(model), "path": JSON(file), "quantisation": "Q8_0"])
            let merger = Merger(try Checkpoint(file), adapter: folder("adapter"))
            let trained = try logits(file, .blocks, adapter: folder("adapter"))
            let comparison = try logits(file, adapter: folder("adapter"))
            #expect(try relativeGap(trained, comparison) < 1e-6)
            #expect(merger.base == .original && merger.form == .plain)
        }
    }
}
