import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch

@Suite("Adapter folders", .serialized)
struct AdapterFolderTests {
    private static let settings: KeyedList<JSON> = ["r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]]

    private func backbone(_ kind: String = "llama", dtype: DType = .float32) async throws -> any Backbone {
        try Checkpoint(try await TinyModels.shared.folder(kind)).backbone(dtype: dtype)
    }

    /// An adapter whose every trainable tensor is random.
    private func randomAdapter(
        _ backbone: any Backbone, method: String = "lora", settings: KeyedList<JSON> = Self.settings, seed: UInt64 = 1
    ) throws -> Adapter {
        let adapter = try Adapter(
            AdapterConfiguration(method: method, settings: settings), on: backbone, seed: Seed(seed))
        try randomise(adapter, seed: seed)
        return adapter
    }

    /// The error's sentence, or nil when nothing is thrown.
    private func refusal(_ body: () throws -> Void) -> String? {
        do {
            try body()
            return nil
        } catch {
            return "\(error)"
        }
    }

    // MARK: What is written

    @Test("The files are byte for byte what peft writes")
    func bytesAsPeft() async throws {
        let model = try await TinyModels.shared.folder("llama")
        try await withTemporaryFolder { folder in
            // A list of one target has one order in Python, too.
            let config: KeyedList<JSON> = ["r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "lora_dropout": 0.25]
            _ = try await Oracle.shared.call(
                "peft.make_adapter",
                ["model_folder": JSON(model), "folder": JSON(folder("peft")), "seed": 1, "config": .object(config)])
            try Adapter.load(from: folder("peft"), onto: try await backbone()).save(to: folder("ours"))
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                #expect(
                    FileManager.default.contentsEqual(atPath: folder("ours/" + name), andPath: folder("peft/" + name)))
            }
            #expect(try folder.contents(of: "ours") == ["adapter_config.json", "adapter_model.safetensors"])
        }
    }

    @Test(
        "Saving replaces a folder whole, and loading gives the same bits", arguments: MethodCase.all
    )
    func roundTrip(method: MethodCase) async throws {
        let (model, other) = (try await backbone(), try await backbone())
        try withTemporaryFolder { folder in
            try folder.write("old", to: "adapter/old.txt")
            let adapter = try randomAdapter(model, method: method.name, settings: method.settings)
            try adapter.save(to: folder("adapter"), baseModel: "tiny")
            #expect(try folder.contents() == ["adapter"])
            #expect(try folder.contents(of: "adapter") == ["adapter_config.json", "adapter_model.safetensors"])
            let config = try JSON.read(path: folder("adapter/adapter_config.json"))
            #expect(config["base_model_name_or_path"] == "tiny" && config["task_type"] == "CAUSAL_LM")
            #expect(config["inference_mode"] == true && config["peft_type"]?.string != nil)

            let loaded = try Adapter.load(from: folder("adapter"), onto: other)
            let ids = try tokenTensor(exampleTokens)
            let (ours, theirs) = try withoutGrad { (try model.logits(ids), try other.logits(ids)) }
            #expect(try largestDifference(ours, theirs) < 1e-4)
            try loaded.save(to: folder("again"))
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                #expect(
                    FileManager.default.contentsEqual(
                        atPath: folder("adapter/" + name), andPath: folder("again/" + name)))
            }
        }
    }

    @Test(
        "PiSSA and OLoRA are saved as LoRA of twice the rank, which peft loads", arguments: ["pissa", "olora"],
        [false, true])
    func principalFactorsInPeft(method: String, isRankStabilised: Bool) async throws {
        let model = try await TinyModels.shared.folder("llama")
        let backbone = try await backbone()
        try await withTemporaryFolder { folder in
            let settings: KeyedList<JSON> = [
                "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj", "v_proj"],
                "use_rslora": JSON(isRankStabilised), "rank_pattern": ["down_proj": 5], "alpha_pattern": ["v_proj": 3],
            ]
            let ids = try tokenTensor(exampleTokens)
            let base = try withoutGrad { try backbone.logits(ids) }
            let adapter = try Adapter(
                AdapterConfiguration(method: method, settings: settings), on: backbone, seed: Seed(1))
            #expect(try largestDifference(withoutGrad { try backbone.logits(ids) }, base) < 1e-4)
            try randomise(adapter, seed: 5, by: 0.1)
            let ours = try withoutGrad { try backbone.logits(ids) }
            #expect(try largestDifference(ours, base) > 1e-2)
            try adapter.save(to: folder("adapter"))
            let report = try await Oracle.shared.call(
                "peft.logits",
                [
                    "model_folder": JSON(model), "adapter_folder": JSON(folder("adapter")),
                    "ids": JSON(tokens: exampleTokens), "output": JSON(folder("logits")),
                ])
            #expect(report["missing"] == [] && report["unexpected"] == [] && report["misshapen"] == [])
            #expect(report["details"]?["model.layers.0.self_attn.q_proj"]?["r"] == 8)
            #expect(report["details"]?["model.layers.2.mlp.down_proj"]?["r"] == 10)
            #expect(try largestDifference(ours, storedTensor(folder("logits"), "logits")) < 1e-4)
        }
    }

    // MARK: What is read

    @Test("Folders of old releases of peft load", arguments: OldConfigurations.all.indices)
    func oldReleases(index: Int) async throws {
        let (version, json) = OldConfigurations.all[index]
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            let adapter = try randomAdapter(backbone)
            let ids = try tokenTensor(exampleTokens)
            let ours = try withoutGrad { try backbone.logits(ids) }
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            try folder.write(json, to: "adapter/adapter_config.json")
            let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
            #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(ours), "\(version)")
            // Fields that Graft does not know survive.
            try loaded.save(to: folder("again"))
            let written = try JSON.read(path: folder("again/adapter_config.json"))
            let read = try JSON.parse(json)
            #expect(written["base_model_name_or_path"] == read["base_model_name_or_path"])
            for (key, value) in read.object ?? [:] where written[key] == nil {
                Issue.record("\(version): \(key) \(value.compact) is lost")
            }
        }
    }

    @Test("Unknown fields are written back unchanged")
    func unknownFields() async throws {
        let (backbone, other) = (try await backbone(), try await backbone())
        try withTemporaryFolder { folder in
            try randomAdapter(backbone).save(to: folder("adapter"))
            var json = try JSON.read(path: folder("adapter/adapter_config.json"))
            json["a_later_idea"] = ["x": [1, 2.5, nil], "ä": "ö"]
            json["eva_config"] = ["rho": 2.0]
            json["revision"] = "main"
            try folder.write(json.compact, to: "adapter/adapter_config.json")
            try Adapter.load(from: folder("adapter"), onto: other).save(to: folder("again"))
            #expect(try JSON.read(path: folder("again/adapter_config.json")) == json)
        }
    }

    @Test("A feature that is not supported is refused by its name", arguments: Refusals.all.indices)
    func unsupportedFeatures(index: Int) async throws {
        let (key, value) = Refusals.all[index]
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            let adapter = try randomAdapter(backbone)
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            var json = try JSON.read(path: folder("adapter/adapter_config.json"))
            json[key] = value
            try folder.write(json.compact, to: "adapter/adapter_config.json")
            let text = try #require(refusal { _ = try Adapter.load(from: folder("adapter"), onto: backbone) })
            #expect(text.contains("adapter_config.json") && text.contains(key), "\(text)")
            #expect(backbone.linears.allSatisfy { $0.adapter == nil })
        }
    }

    @Test("Adapters in bfloat16 and float16 are read as float32", arguments: [DType.bfloat16, .float16, .float64])
    func otherFloats(dtype: DType) async throws {
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            let adapter = try randomAdapter(backbone)
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            try rewrite(folder("adapter")) { tensors in
                for (name, tensor) in tensors { tensors[name] = try tensor.to(dtype: dtype) }
            }
            let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
            for (a, b) in zip(adapter.trainables, loaded.trainables) {
                #expect(b.tensor.dtype == .float32 && b.tensor.requiresGrad)
                let rounded = try a.tensor.detached().to(dtype: dtype).to(dtype: .float32)
                #expect(try bits(b.tensor) == bits(rounded))
            }
        }
    }

    @Test("Any key mismatch raises", arguments: KeyFaults.all.indices)
    func keyFaults(index: Int) async throws {
        let fault = KeyFaults.all[index]
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            let adapter = try randomAdapter(backbone)
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            try rewrite(folder("adapter"), fault.change)
            let text = try #require(refusal { _ = try Adapter.load(from: folder("adapter"), onto: backbone) })
            for part in fault.says { #expect(text.contains(part), "\(fault.name): \(part) is not in: \(text)") }
            #expect(text.contains(folder("adapter/adapter_model.safetensors")))
            #expect(!text.contains("\n"))
            #expect(backbone.linears.allSatisfy { $0.adapter == nil })
        }
    }

    @Test("An adapter of another model is refused in one clear sentence")
    func otherModels() async throws {
        let backbone = try await backbone()
        let deeper = try Checkpoint(
            try await TinyModels.shared.folder("llama", options: ["overrides": ["num_hidden_layers": 5]]))
        let wider = try Checkpoint(
            try await TinyModels.shared.folder("llama", options: ["overrides": ["hidden_size": 96]]))
        try withTemporaryFolder { folder in
            try randomAdapter(deeper.backbone(dtype: .float32)).save(to: folder("deeper"))
            try randomAdapter(wider.backbone(dtype: .float32)).save(to: folder("wider"))
            let deep = try #require(refusal { _ = try Adapter.load(from: folder("deeper"), onto: backbone) })
            #expect(deep.contains("a model of at least 5 blocks, this one has 3"))
            let wide = try #require(refusal { _ = try Adapter.load(from: folder("wider"), onto: backbone) })
            #expect(wide.contains("a model of other sizes") && wide.contains("[4, 96]") && wide.contains("[4, 48]"))
        }
    }

    @Test("Sizes that no file can hold are refused before anything is made", arguments: HostileSettings.all.indices)
    func hostileSettings(index: Int) async throws {
        let (name, key, value) = HostileSettings.all[index]
        let method = try #require(MethodCase.all.first { $0.name == name })
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            let adapter = try method.adapter(on: backbone)
            try adapter.randomise(seed: 4)
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            var json = try JSON.read(path: folder("adapter/adapter_config.json"))
            json[key] = value
            try folder.write(json.compact, to: "adapter/adapter_config.json")
            let text = try #require(refusal { _ = try Adapter.load(from: folder("adapter"), onto: backbone) })
            let reasons = ["more than there can be", key, "not a valid regular expression"]
            #expect(reasons.contains(where: text.contains) && text.contains(folder("adapter")), "\(text)")
            #expect(throws: PEFTError.self) {
                try Adapter(AdapterConfiguration(method: name, settings: [key: value]), on: backbone, seed: Seed(1))
            }
        }
    }

    @Test("The pretrained head that peft saves must be the model's own")
    func pretrainedHead() async throws {
        let model = try await TinyModels.shared.folder("llama")
        let backbone = try await backbone()
        try await withTemporaryFolder { folder in
            _ = try await Oracle.shared.call(
                "peft.make_adapter",
                [
                    "model_folder": JSON(model), "folder": JSON(folder("adapter")), "seed": 1,
                    "config": ["target_modules": ["q_proj", "lm_head"]],
                ])
            let name = "base_model.model.lm_head.base_layer.weight"
            try rewrite(folder("adapter")) { tensors in
                let weight = try #require(tensors[name])
                tensors[name] = try weight.to(dtype: .bfloat16)
            }
            let adapter = try Adapter.load(from: folder("adapter"), onto: backbone)
            #expect(!adapter.trainables.contains { $0.name == name })
            adapter.detach()
            try rewrite(folder("adapter")) { tensors in
                let weight = try #require(tensors[name])
                tensors[name] = try weight.to(dtype: .float32) * 1.1
            }
            let text = try #require(refusal { _ = try Adapter.load(from: folder("adapter"), onto: backbone) })
            #expect(text.contains(name) && text.contains("another base model"))
        }
    }

    @Test("Folders without the right files are refused with advice")
    func missingFiles() async throws {
        let backbone = try await backbone()
        try withTemporaryFolder { folder in
            func text(_ name: String) throws -> String {
                try #require(refusal { _ = try Adapter.load(from: folder(name), onto: backbone) })
            }
            #expect(try text("nowhere").contains("expected an adapter's folder"))
            let adapter = try randomAdapter(backbone)
            try adapter.save(to: folder("adapter"))
            adapter.detach()
            let (config, weights) = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
            try FileManager.default.moveItem(atPath: folder(weights), toPath: folder("adapter/adapter_model.bin"))
            #expect(try text("adapter").contains("is a pickle"))
            try folder.write("", to: weights)
            #expect(try text("adapter").contains(weights))
            try FileManager.default.removeItem(atPath: folder(config))
            #expect(try text("adapter").contains(config))
            for (json, part) in [
                ("[]", "expected an object"), ("{}", "peft_type"), ("{\"peft_type\": \"LOHA\"}", "LOHA"),
                ("{\"peft_type\": \"LORA\", \"r\": \"8\"}", "whole number"),
                ("{\"peft_type\": \"LORA\", \"r\": 0}", "positive"),
                ("{\"peft_type\": \"LORA\", \"task_type\": \"SEQ_CLS\"}", "task_type"),
            ] {
                try folder.write(json, to: config)
                #expect(try text("adapter").contains(part))
            }
        }
    }

    // MARK: State

    @Test("A state brings everything back, and nothing else fits", arguments: MethodCase.all)
    func state(method: MethodCase) async throws {
        let (backbone, other) = (try await backbone(), try await backbone())
        let ids = try tokenTensor(exampleTokens)
        let first = try randomAdapter(backbone, method: method.name, settings: method.settings)
        let second = try method.adapter(on: other, seed: 1)
        let state = first.state
        #expect(state.count == first.trainables.count + first.buffers.count + first.indices.count)
        try second.restore(state)
        #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(withoutGrad { try other.logits(ids) }))
        #expect(second.trainables.allSatisfy { $0.tensor.requiresGrad })
        #expect(!second.trainables[0].tensor.sharesStorage(with: first.trainables[0].tensor))

        var (less, more, misshapen) = (state, state, state)
        let name = first.trainables[0].name
        less[name] = nil
        more["other"] = try Tensor.zeros([1])
        misshapen[name] = try Tensor.zeros([1, 1])
        let nothing = state.count == 1 ? "holds no tensor" : "missing"
        for (changed, part) in [(less, nothing), (more, "\"other\""), (misshapen, "[1, 1]")] {
            let text = try #require(refusal { try second.restore(changed, origin: "checkpoint") })
            #expect(text.contains(part) && text.hasPrefix("checkpoint: "))
        }
    }

    // MARK: A live model

    @Test(
        "Merging into a live model and out of it", arguments: MethodCase.all,
        [DType.float32, .bfloat16])
    func liveMerge(method: MethodCase, dtype: DType) async throws {
        let backbone = try await backbone("qwen2", dtype: dtype)
        let ids = try tokenTensor(exampleTokens)
        let base = try withoutGrad { try backbone.logits(ids) }
        let frozen = try backbone.parameters.map { try bits($0.frozen) }
        var settings = method.settings
        for (key, value) in ["bias": "all", "modules_to_save": ["model.norm"]] as KeyedList<JSON> {
            settings[key] = value
        }
        let adapter = try randomAdapter(backbone, method: method.name, settings: settings)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        guard type(of: adapter.configuration.method).mergeRefusal == nil else {
            #expect(refusal { try adapter.mergeIntoBackbone() }?.contains("cannot be merged: ") == true)
            #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(adapted))
            return
        }
        try adapter.mergeIntoBackbone()
        #expect(adapter.isMerged && backbone.linears.allSatisfy { $0.adapter == nil })
        let merged = try withoutGrad { try backbone.logits(ids) }
        let size = Double(try adapted.to(dtype: .float32).absolute().maximum().item(as: Float.self))
        #expect(try largestDifference(merged, adapted) < size * (dtype == .float32 ? 1e-5 : 0.1))
        #expect(try largestDifference(merged, base) > 1e-2)
        try adapter.unmerge()
        #expect(!adapter.isMerged)
        #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(adapted))
        try adapter.mergeIntoBackbone()
        adapter.detach()
        #expect(try bits(withoutGrad { try backbone.logits(ids) }) == bits(base))
        #expect(try backbone.parameters.map { try bits($0.frozen) } == frozen)
        #expect(backbone.parameters.allSatisfy { $0.replacement == nil })
    }

    /// Changes the tensors of a folder's file.
    private func rewrite(_ folder: String, _ change: (inout KeyedList<Tensor>) throws -> Void) throws {
        let path = folder + "/adapter_model.safetensors"
        var tensors = KeyedList<Tensor>()
        for (name, tensor) in try SafetensorsFile(path: path).tensors {
            tensors.appendIfNew(key: name, value: try tensor.tensor().cloned())
        }
        try change(&tensors)
        try SafetensorsWriter.write(tensors, to: path)
    }
}
