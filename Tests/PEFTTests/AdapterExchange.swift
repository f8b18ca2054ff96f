import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Token ids for the tiny models, two rows of different tokens.
let exampleTokens = [[5, 17, 3, 88, 41, 9, 60], [1, 70, 70, 2, 33, 95, 14]]

/// int64 `[batch, time]`.
func tokenTensor(_ rows: [[Int]]) throws -> Tensor {
    try Tensor(rows.flatMap { $0 }, shape: [rows.count, rows.first?.count ?? 0])
}

/// The largest absolute difference of two tensors.
func largestDifference(_ a: Tensor, _ b: Tensor) throws -> Double {
    try (a.to(dtype: .float64) - b.to(dtype: .float64)).absolute().maximum().item(as: Double.self)
}

/// One tensor of a safetensors file.
func storedTensor(_ path: String, _ name: String) throws -> Tensor {
    try SafetensorsFile(path: path).tensor(name).tensor().cloned()
}

/// The bytes of a tensor's values.
func bits(_ tensor: Tensor) throws -> [UInt8] {
    try tensor.detached().contiguous().withUnsafeMutableBytes { Array($0) }
}

/// What a Graft adapter and peft's of the same configuration have in common, checked in both directions.
struct AdapterExchange {
    let kind: String
    /// peft's `LoraConfig` fields.
    let config: KeyedList<JSON>
    var seed = 1
    /// How far logits may be apart, relative to the largest logit or 1.
    var tolerance = 1e-5

    private var logitsOfPeft: (String, String, String) async throws -> (report: JSON, logits: Tensor) {
        { model, adapter, output in
            let report = try await Oracle.shared.call(
                "peft.logits",
                [
                    "model_folder": JSON(model), "adapter_folder": JSON(adapter),
                    "ids": JSON(tokens: exampleTokens), "output": JSON(output),
                ])
            return (report, try storedTensor(output, "logits"))
        }
    }

    /// Lets peft make an adapter and Graft load it, then Graft make one and peft load it.
    func check() async throws {
        let model = try await TinyModels.shared.folder(kind)
        try await withTemporaryFolder { folder in
            let made = try await Oracle.shared.call(
                "peft.make_adapter",
                [
                    "model_folder": JSON(model), "folder": JSON(folder("peft")), "seed": JSON(seed),
                    "config": .object(config),
                ])
            let backbone = try Checkpoint(model).backbone(dtype: .float32)
            let ids = try tokenTensor(exampleTokens)
            let base = try withoutGrad { try backbone.logits(ids) }

            let loaded = try Adapter.load(from: folder("peft"), onto: backbone)
            try compare(loaded, with: made)
            let ours = try withoutGrad { try backbone.logits(ids) }
            let theirs = try await logitsOfPeft(model, folder("peft"), folder("peft.safetensors"))
            try expectClose(ours, theirs.logits, "peft's adapter in Graft")
            #expect(try largestDifference(ours, base) > 1e-3, "the adapter has no effect")

            try loaded.save(to: folder("loaded"))
            try compareFolders(folder("loaded"), folder("peft"))
            loaded.detach()
            #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(base))

            let configuration = try AdapterConfiguration(method: "lora", settings: config)
            let own = try Adapter(configuration, on: backbone, seed: Seed(7))
            #expect(own.updates.map(\.linear.path) == loaded.updates.map(\.linear.path))
            try own.restore(loaded.state)
            #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(ours))
            try own.save(to: folder("own"), baseModel: model)
            let back = try await logitsOfPeft(model, folder("own"), folder("own.safetensors"))
            try expectClose(ours, back.logits, "Graft's adapter in peft")
            #expect(back.report["unexpected"] == [] && back.report["misshapen"] == [])
            #expect(back.report["adapted"] == made["adapted"] && back.report["saved_whole"] == made["saved_whole"])
            #expect(back.report["details"] == made["details"])
            let missing = (back.report["missing"]?.array ?? []).compactMap(\.string).filter { !isPretrainedCopy($0) }
            #expect(missing.isEmpty)
        }
    }

    private func expectClose(_ a: Tensor, _ b: Tensor, _ what: Comment) throws {
        let size = max(1, try b.absolute().maximum().item(as: Float.self))
        let difference = try largestDifference(a, b)
        #expect(difference <= tolerance * Double(size), what)
    }

    /// peft saves the pretrained weight of an adapted output head, which Graft does not.
    private func isPretrainedCopy(_ key: String) -> Bool { key.hasSuffix(".base_layer.weight") }

    private func compare(_ adapter: Adapter, with made: JSON) throws {
        let tensors = try #require(made["tensors"]?.object)
        #expect(adapter.updates.map(\.linear.path).sorted() == made["adapted"]?.array?.compactMap(\.string))
        #expect(adapter.parameterCount == made["trainable"]?.int)
        #expect(adapter.trainables.map(\.name).sorted() == tensors.keys.filter { !isPretrainedCopy($0) }.sorted())
        for trainable in adapter.trainables {
            #expect(trainable.tensor.shape == tensors[trainable.name]?.array?.compactMap(\.int))
        }
        for (linear, update) in adapter.updates {
            let details = made["details"]?[linear.path]
            let rank = adapter.state["base_model.model.\(linear.path).lora_A.weight"]?.size(0)
            #expect(rank == details?["r"]?.int)
            if let update = update as? any LowRankUpdate {
                let scale = try #require(details?["scaling"]?.double)
                #expect(abs(update.scale - scale) < 1e-12)
            }
        }
    }

    /// Tensors are the same bits, settings the same values.
    private func compareFolders(_ ours: String, _ theirs: String) throws {
        let (a, b) = (
            try SafetensorsFile(path: ours + "/adapter_model.safetensors"),
            try SafetensorsFile(path: theirs + "/adapter_model.safetensors")
        )
        #expect(a.metadata == b.metadata)
        #expect(a.tensors.keys.sorted() == b.tensors.keys.filter { !isPretrainedCopy($0) }.sorted())
        for (name, tensor) in a.tensors { #expect(try bits(tensor.tensor()) == bits(b.tensor(name).tensor())) }
        let (left, right) = (
            try JSON.read(path: ours + "/adapter_config.json"), try JSON.read(path: theirs + "/adapter_config.json")
        )
        #expect(left.object?.keys == right.object?.keys)
        for (key, value) in left.object ?? [:] {
            // Python writes sets in any order; a single number may stand for a list.
            let other = sorted(right[key])
            #expect(sorted(value) == other || value == .array([other]), "\(key)")
        }
    }

    private func sorted(_ json: JSON?) -> JSON {
        guard let items = json?.array?.map(\.compact) else { return json ?? .null }
        return .array(items.sorted().map { JSON($0) })
    }
}

/// Adds seeded normal noise to every trainable tensor, so that none is zero and none as it was initialised.
func randomise(_ adapter: Adapter, seed: UInt64, by size: Double = 0.1) throws {
    var random = SeededGenerator(seed: seed)
    try withoutGrad {
        for trainable in adapter.trainables {
            let noise = try Tensor(random.normals(trainable.tensor.count), shape: trainable.tensor.shape) * size
            _ = try callTensor("aten::add_.Tensor", trainable.tensor, noise)
        }
    }
}
