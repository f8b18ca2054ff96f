import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What tests of BitFit, LN-tuning and full fine-tuning must show.
@Suite struct WholeParameterTests {
    private let model = SmallModel()

    /// The changes of an adapter whose tensors are whole parameters.
    private func changes(_ adapter: Adapter) -> [ParameterChange] {
        let head = adapter.backbone.head.weight
        let isTied = adapter.backbone.configuration.tieWordEmbeddings
        let copies = adapter.copies.filter { !(isTied && $0.parameter === head) }.map {
            ParameterChange(name: $0.parameter.path, values: $0.tensor, isTied: isTied)
        }
        return copies
            + adapter.updates.compactMap { layer, _ in
                adapter.trainables.first { $0.name == "base_model.model.\(layer.path).bias" }.map {
                    ParameterChange(name: layer.path + ".bias", values: $0.tensor)
                }
            }
    }

    @Test(
        arguments: ["bitfit", "ln-tuning", "full"], ["llama", "llama-biases", "qwen2", "qwen3", "llama-tied"])
    func everyValueIsThatOfTheDenseEvaluation(name: String, kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let before = try withoutGrad { try backbone.logits(ids) }
        let adapter = try adapter(name, on: backbone)
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, before) < 1e-6)
        try adapter.randomise(seed: 71, by: 0.1)
        let changes = changes(adapter)
        #expect(changes.count == adapter.trainables.count)
        let errors = try await DenseReference(model: folder, changes).check(backbone, changes)
        print("\(name), \(kind): forward \(errors.forward), gradients \(errors.gradient)")
        #expect(adapter.parameterCount == changes.reduce(0) { $0 + $1.values.count })
    }

    // MARK: - Folders

    @Test(arguments: ["bitfit", "ln-tuning", "full", "paca", "s2ft"], ["llama-tied", "qwen2", "llama-biases"])
    func foldersAreReadAsTheyWereWritten(name: String, kind: String) async throws {
        let source = try await TinyModels.shared.folder(kind)
        let backbone = try Checkpoint(source).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let settings: KeyedList<JSON> = name == "s2ft" ? ["ratio_o": 0.4, "ratio_d": 0.1, "ratio_u": 0.1] : [:]
        let adapter = try adapter(name, settings, on: backbone)
        try adapter.randomise(seed: 72, by: 0.1)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        let folder = try TemporaryFolder.lasting(name)
        try adapter.save(to: folder("adapter"), baseModel: source)
        adapter.detach()
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        #expect(try withoutGrad { try backbone.logits(ids) }.isIdentical(to: adapted))
        #expect(loaded.parameterCount == adapter.parameterCount)
        for (a, b) in zip(loaded.state, adapter.state) {
            #expect(a.key == b.key)
            #expect(try a.value.isIdentical(to: b.value), "\(a.key)")
        }
    }

    // MARK: - LN-tuning and peft

    @Test(arguments: ["llama", "qwen3", "mistral", "llama-tied"], ["", "post_attention_layernorm"])
    func normsGoBothWaysBetweenGraftAndPeft(kind: String, target: String) async throws {
        let source = try await TinyModels.shared.folder(kind)
        let folder = try TemporaryFolder.lasting("norms")
        var config: KeyedList<JSON> = target.isEmpty ? [:] : ["target_modules": [JSON(target)]]
        if kind == "qwen3", target.isEmpty { config["target_modules"] = ["input_layernorm", "q_norm"] }
        let made = try await Oracle.shared.call(
            "selected.make_norms",
            ["model_folder": JSON(source), "folder": JSON(folder("peft")), "seed": 3, "config": .object(config)])
        let backbone = try Checkpoint(source).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let adapter = try Adapter.load(from: folder("peft"), onto: backbone)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        #expect(adapter.parameterCount == made["trainable"]?.int)
        #expect(adapter.trainables.map(\.name).sorted() == made["tensors"]?.array?.compactMap(\.string).sorted())
        try adapter.save(to: folder("graft"))
        for (name, path) in [("peft's", "peft"), ("Graft's", "graft")] {
            let report = try await Oracle.shared.call(
                "selected.logits_with_norms",
                [
                    "model_folder": JSON(source), "adapter_folder": JSON(folder(path)),
                    "ids": JSON(tokens: exampleTokens), "output": JSON(folder(path + ".out")),
                ])
            #expect(report["missing"] == [] && report["unexpected"] == [])
            #expect(try relativeGap(adapted, storedTensor(folder(path + ".out"), "logits")) < 1e-5, "\(name)")
        }
        let (ours, theirs) = (
            try JSON.read(path: folder("graft/adapter_config.json")),
            try JSON.read(path: folder("peft/adapter_config.json"))
        )
        #expect(ours.object?.keys == theirs.object?.keys)
    }

    @Test func onlyNormsAreTargets() throws {
        let sentence = refusal { _ = try adapter("ln-tuning", ["target_modules": ["q_proj"]], on: model.backbone()) }
        #expect(sentence.contains("matches no norm") && sentence.contains("input_layernorm"))
        let one = try adapter("ln-tuning", ["layers_to_transform": [1]], on: model.backbone())
        #expect(
            one.copies.map(\.parameter.modulePath) == [
                "model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm",
            ])
    }

    // MARK: - BitFit

    @Test func missingBiasesStartAtZero() async throws {
        let backbone = try Checkpoint(await TinyModels.shared.folder("llama")).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let before = try withoutGrad { try backbone.logits(ids) }
        let adapter = try adapter("bitfit", on: backbone)
        #expect(try withoutGrad { try backbone.logits(ids) }.isIdentical(to: before))
        #expect(adapter.updates.count == backbone.linears.count - 1 && adapter.copies.isEmpty)
        try adapter.randomise(seed: 75)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        let merged = try adapter.whileMerged { try withoutGrad { try backbone.logits(ids) } }
        #expect(try relativeGap(merged, adapted) < 1e-6)
        #expect(try withoutGrad { try backbone.logits(ids) }.isIdentical(to: adapted))
        adapter.detach()
        let sentence = refusal { _ = try PEFTTests.adapter("bitfit", ["add_biases": false], on: backbone) }
        #expect(sentence.contains("no selected layer has a bias"))
    }

    @Test(arguments: ["all-linear", ".*(q_proj|up_proj)"]) func aMergedModelGetsTheBiases(targets: String) async throws
    {
        let source = try await TinyModels.shared.folder("llama")
        let checkpoint = try Checkpoint(source)
        let backbone = try checkpoint.backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let adapter = try adapter("bitfit", ["target_modules": JSON(targets)], on: backbone)
        try adapter.randomise(seed: 74, by: 0.3)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        let folder = try TemporaryFolder.lasting("biases")
        try adapter.save(to: folder("adapter"))
        _ = try Merger(checkpoint, adapter: folder("adapter")).write(to: folder("merged"))
        let config = try JSON.read(path: folder("merged/config.json"))
        #expect(config["attention_bias"] == true && config["mlp_bias"] == true)
        let merged = try Checkpoint(folder("merged")).backbone(dtype: .float32)
        #expect(try relativeGap(withoutGrad { try merged.logits(ids) }, adapted) < 1e-6)
        _ = try await Oracle.shared.call(
            "models.logits",
            ["folder": JSON(folder("merged")), "ids": JSON(tokens: exampleTokens), "output": JSON(folder("logits"))])
        #expect(try relativeGap(adapted, storedTensor(folder("logits"), "logits")) < 1e-5)
    }

    @Test(arguments: ["mistral", "qwen2"]) func biasesThatNoConfigurationSpeaksOfAreNotMerged(kind: String) async throws
    {
        let checkpoint = try Checkpoint(await TinyModels.shared.folder(kind))
        let adapter = try adapter("bitfit", ["add_biases": true], on: checkpoint.backbone(dtype: .float32))
        let folder = try TemporaryFolder.lasting("biases")
        try adapter.save(to: folder("adapter"))
        let sentence = refusal {
            _ = try Merger(checkpoint, adapter: folder("adapter")).write(to: folder("merged"))
        }
        #expect(sentence.contains("a merged model of type \(kind) has no place for the adapter's bias"))
        #expect(try folder.contents() == ["adapter"])
    }

    @Test func onlyBiasesThatAreThereAreTrainedWhereThereAreSome() throws {
        let backbone = try model.backbone()
        let own = try adapter("bitfit", on: backbone)
        #expect(own.updates.isEmpty && own.copies.count == 2 * 4)
        own.detach()
        let all = try adapter("bitfit", ["add_biases": true], on: backbone)
        #expect(all.updates.count == 2 * 3 && all.copies.count == 2 * 4)
        #expect(all.parameterCount == 2 * (32 + 16 + 16 + 32 + 40 + 40 + 32))
    }

    // MARK: - Full fine-tuning

    @Test func aTiedHeadIsTrainedAndSavedOnce() async throws {
        let source = try await TinyModels.shared.folder("llama-tied")
        let backbone = try Checkpoint(source).backbone(dtype: .float32)
        let adapter = try adapter("full", on: backbone)
        #expect(!adapter.trainables.contains { $0.name.contains("lm_head") })
        #expect(backbone.head.weight.replacement === backbone.parameters[0].replacement)
        #expect(adapter.copies.count == adapter.trainables.count + 1)
        let distinct = backbone.parameters.filter { $0 !== backbone.head.weight }
        #expect(adapter.parameterCount == distinct.reduce(0) { $0 + $1.frozen.count })
        adapter.detach()
        #expect(backbone.parameters.allSatisfy { $0.replacement == nil })
    }

    @Test(arguments: ["llama-tied", "llama"]) func fullFineTuningMergesIntoAModelOfTheSameForm(kind: String)
        async throws
    {
        let source = try await TinyModels.shared.folder(kind)
        let checkpoint = try Checkpoint(source)
        let backbone = try checkpoint.backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let adapter = try adapter("full", on: backbone)
        try adapter.randomise(seed: 73, by: 0.1)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        let folder = try TemporaryFolder.lasting("full")
        try adapter.save(to: folder("adapter"))
        let report = try Merger(checkpoint, adapter: folder("adapter")).write(to: folder("merged"))
        #expect(!report.isUntied)
        let merged = try Checkpoint(folder("merged")).backbone(dtype: .float32)
        #expect(try relativeGap(withoutGrad { try merged.logits(ids) }, adapted) < 1e-6)
    }
}
