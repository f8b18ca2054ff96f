import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// An adapter of one of peft's types without ranks, in peft and in Graft, in both directions.
struct PromptExchange {
    let kind: String
    let peftType: String
    /// Graft's name of the method.
    let method: String
    /// peft's fields.
    var config: KeyedList<JSON> = [:]
    /// Settings that Graft's own adapter has beside peft's fields.
    var own: KeyedList<JSON> = [:]
    var seed = 5
    /// Fields that a loaded and saved folder has otherwise, because they concern the training that is over.
    var forgotten: Set<String> = []

    func check() async throws {
        let model = try await TinyModels.shared.folder(kind)
        let folder = try TemporaryFolder.lasting("exchange")
        let made = try await Oracle.shared.call(
            "slots.make_adapter",
            [
                "model_folder": JSON(model), "folder": JSON(folder("peft")), "kind": JSON(peftType),
                "seed": JSON(seed), "config": .object(config),
            ])
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let plain = try withoutGrad { try backbone.logits(ids) }

        let loaded = try Adapter.load(from: folder("peft"), onto: backbone)
        try await compare(backbone, model: model, adapter: folder("peft"), output: folder("first"))
        try await compareGradients(loaded, backbone, model: model, adapter: folder("peft"), output: folder("second"))
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, plain) > 1e-3, "the adapter has no effect")
        try loaded.save(to: folder("again"))
        try compareFolders(folder("again"), folder("peft"))
        loaded.detach()
        #expect(try withoutGrad { try backbone.logits(ids) }.isIdentical(to: plain))

        var settings = config
        for (key, value) in own { settings[key] = value }
        let mine = try adapter(method, settings, on: backbone)
        if forgotten.isEmpty { #expect(mine.parameterCount == made["trainable"]?.int) }
        try mine.randomise(seed: UInt64(seed), by: 0.4)
        try mine.save(to: folder("mine"), baseModel: model)
        try await compare(backbone, model: model, adapter: folder("mine"), output: folder("third"))
        mine.detach()
        let back = try Adapter.load(from: folder("mine"), onto: backbone)
        try await compare(backbone, model: model, adapter: folder("mine"), output: folder("fourth"))
        back.detach()
    }

    /// The model's logits and generated tokens against peft's.
    private func compare(_ backbone: any Backbone, model: String, adapter: String, output: String) async throws {
        let count = 6
        let report = try await Oracle.shared.call(
            "slots.answers",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(adapter), "ids": JSON(tokens: exampleTokens),
                "output": JSON(output), "new_tokens": JSON(count),
            ])
        let theirs = try storedTensor(output, "logits")
        let ours = try withoutGrad { try backbone.logits(tokenTensor(exampleTokens)) }
        #expect(try relativeGap(ours, theirs) < 1e-5)
        let loss = try withoutGrad { try nextTokenLoss(backbone, tokenTensor(exampleTokens)).item(as: Double.self) }
        #expect(abs(loss - (report["loss"]?.double ?? 0)) < 1e-4)
        let generated = try backbone.generateBatch(
            prompts: exampleTokens, settings: GenerationSettings(maxTokens: count))
        #expect(JSON(tokens: generated.map(\.tokens)) == report["new"])
        let file = try SafetensorsFile(path: adapter + "/adapter_model.safetensors")
        let shapes = try #require(report["keys"]?.object)
        #expect(file.tensors.keys.sorted() == shapes.keys.sorted())
        for (name, tensor) in file.tensors { #expect(tensor.shape == shapes[name]?.array?.compactMap(\.int)) }
    }

    private func compareGradients(
        _ adapter: Adapter, _ backbone: any Backbone, model: String, adapter folder: String, output: String
    ) async throws {
        // peft itself cannot train on from a saved projection.
        guard forgotten.isEmpty else { return }
        _ = try await Oracle.shared.call(
            "slots.gradients",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(folder), "ids": JSON(tokens: exampleTokens),
                "output": JSON(output),
            ])
        try nextTokenLoss(backbone, tokenTensor(exampleTokens)).backward()
        for trainable in adapter.trainables {
            let gradient = try #require(trainable.tensor.grad, "\(trainable.name)")
            #expect(try relativeGap(gradient, storedTensor(output, trainable.name)) < 1e-4, "\(trainable.name)")
        }
    }

    /// Tensors are the same bits, settings the same values.
    private func compareFolders(_ ours: String, _ theirs: String) throws {
        let (a, b) = (
            try SafetensorsFile(path: ours + "/adapter_model.safetensors"),
            try SafetensorsFile(path: theirs + "/adapter_model.safetensors")
        )
        #expect(a.tensors.keys.sorted() == b.tensors.keys.sorted())
        for (name, tensor) in a.tensors { #expect(try bits(tensor.tensor()) == bits(b.tensor(name).tensor())) }
        let (left, right) = (
            try JSON.read(path: ours + "/adapter_config.json"), try JSON.read(path: theirs + "/adapter_config.json")
        )
        #expect(left.object?.keys == right.object?.keys)
        for (key, value) in left.object ?? [:] where !forgotten.contains(key) {
            #expect(sorted(value) == sorted(right[key]), "\(key)")
        }
    }

    /// Python writes sets in any order.
    private func sorted(_ json: JSON?) -> JSON {
        guard let items = json?.array?.map(\.compact) else { return json ?? .null }
        return .array(items.sorted().map { JSON($0) })
    }
}
