import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// An adapter of a type that peft has, made there and read here, and the other way round.
struct FolderExchange {
    let method: String
    let peftType: String
    /// The model of `TinyModels`.
    let kind: String
    /// The fields of peft's configuration.
    let config: KeyedList<JSON>
    var seed = 1

    private func logitsOfPeft(
        _ model: String, _ adapter: String, _ output: String, merged: Bool = false
    ) async throws -> Tensor {
        let report = try await Oracle.shared.call(
            "weights.logits",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(adapter), "ids": JSON(tokens: exampleTokens),
                "output": JSON(output), "merged": JSON(merged),
            ])
        for key in ["missing", "unexpected", "differing"] { #expect(report[key] == [], "\(key)") }
        return try storedTensor(output, "logits")
    }

    /// Logits, gradients, tensors and settings are the same in both directions.
    func check() async throws {
        let model = try await TinyModels.shared.folder(kind)
        let folder = try TemporaryFolder.lasting("exchange")
        let trainable = try await Oracle.shared.call(
            "weights.make_adapter",
            [
                "model_folder": JSON(model), "folder": JSON(folder("peft")), "seed": JSON(seed),
                "peft_type": JSON(peftType), "config": .object(config),
            ])
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let base = try withoutGrad { try backbone.logits(ids) }
        let theirs = try await logitsOfPeft(model, folder("peft"), folder("theirs"))
        let loaded = try Adapter.load(from: folder("peft"), onto: backbone)
        #expect(loaded.parameterCount == trainable.int)
        let ours = try withoutGrad { try backbone.logits(ids) }
        #expect(try relativeGap(ours, theirs) < 1e-5, "peft's adapter in Graft")
        #expect(try relativeGap(ours, base) > 1e-3, "the adapter has no effect")
        try await compareGradients(loaded, model, folder("peft"), folder("gradients"))
        try loaded.save(to: folder("saved"))
        try compareFolders(folder("saved"), folder("peft"))
        loaded.detach()

        let own = try Adapter(AdapterConfiguration(method: method, settings: config), on: backbone, seed: Seed(7))
        try own.randomise(seed: UInt64(seed), by: 0.1)
        try own.save(to: folder("own"), baseModel: model)
        let expected = try withoutGrad { try backbone.logits(ids) }
        for merged in [false, true] {
            let back = try await logitsOfPeft(model, folder("own"), folder("back"), merged: merged)
            #expect(try relativeGap(back, expected) < 1e-5, merged ? "merged in peft" : "in peft")
        }
    }

    private func compareGradients(_ adapter: Adapter, _ model: String, _ folder: String, _ output: String) async throws
    {
        _ = try await Oracle.shared.call(
            "peft.gradients",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(folder), "ids": JSON(tokens: exampleTokens),
                "labels": JSON(tokens: exampleTokens), "output": JSON(output),
            ])
        let expected = try SafetensorsFile(path: output)
        try nextTokenLoss(adapter.backbone, tokenTensor(exampleTokens)).backward()
        try adapter.penalty()?.backward()
        for trainable in adapter.trainables {
            let gradient = try #require(trainable.tensor.grad, "\(trainable.name)")
            #expect(try relativeGap(gradient, expected.tensor(trainable.name).tensor()) < 1e-4, "\(trainable.name)")
        }
    }

    private func compareFolders(_ ours: String, _ theirs: String) throws {
        let (a, b) = (
            try SafetensorsFile(path: ours + "/adapter_model.safetensors"),
            try SafetensorsFile(path: theirs + "/adapter_model.safetensors")
        )
        #expect(a.tensors.keys.sorted() == b.tensors.keys.sorted() && a.metadata == b.metadata)
        for (name, tensor) in a.tensors { #expect(try bits(tensor.tensor()) == bits(b.tensor(name).tensor())) }
        let (left, right) = (
            try JSON.read(path: ours + "/adapter_config.json"), try JSON.read(path: theirs + "/adapter_config.json")
        )
        #expect(left.object?.keys == right.object?.keys)
        for (key, value) in left.object ?? [:] where key != "bias" {
            #expect(sorted(value) == sorted(right[key]), "\(key)")
        }
    }

    private func sorted(_ json: JSON?) -> JSON {
        guard let items = json?.array?.map(\.compact) else { return json ?? .null }
        return .array(items.sorted().map { JSON($0) })
    }
}
