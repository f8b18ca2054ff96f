import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Tokenizers
import Torch

/// A model and an adapter for it.
private struct MergeCase: Sendable {
    let name: String
    let kind: String
    var options: KeyedList<JSON> = [:]
    var method = "lora"
    var settings: KeyedList<JSON> = [:]
    var isUntied = false
    var shardBytes = 5_000_000_000

    static let all = [
        MergeCase(name: "all-linear", kind: "llama", settings: ["target_modules": "all-linear"]),
        MergeCase(
            name: "sharded", kind: "llama", options: ["max_shard_size": "40KB"],
            settings: ["target_modules": "all-linear"], shardBytes: 50_000),
        MergeCase(
            name: "DoRA", kind: "qwen3", method: "dora",
            settings: ["target_modules": ["q_proj", "down_proj", "lm_head"]]),
        MergeCase(
            name: "biases", kind: "qwen2", options: ["legacy_config": true],
            settings: ["bias": "all", "use_rslora": true, "modules_to_save": ["norm"]]),
        MergeCase(name: "tied", kind: "llama-tied"),
        MergeCase(
            name: "tied, head saved", kind: "llama-tied", settings: ["modules_to_save": ["lm_head"]], isUntied: true),
        MergeCase(
            name: "tied, embedding saved", kind: "qwen2-tied", settings: ["modules_to_save": ["embed_tokens"]],
            isUntied: true),
        MergeCase(
            name: "tied, both", kind: "qwen3-tied",
            settings: ["modules_to_save": ["embed_tokens"], "target_modules": ["lm_head"]], isUntied: true),
        MergeCase(name: "PiSSA", kind: "llama", method: "pissa", settings: ["target_modules": ["v_proj", "up_proj"]]),
        MergeCase(name: "LoRTA", kind: "llama", method: "lorta"),
        MergeCase(name: "CapaBoost", kind: "mistral", method: "capaboost-lora"),
    ]
}

@Suite("Merging", .serialized)
struct MergeTests {
    /// The base model's folder, and a folder with a random adapter for it; returns the logits of both together.
    private func prepare(_ test: MergeCase, dtype: String = "float32", in folder: TemporaryFolder) async throws
        -> (model: String, logits: Tensor)
    {
        let model = try await TinyModels.shared.folder(test.kind, dtype: dtype, options: test.options)
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let adapter = try Adapter(
            AdapterConfiguration(method: test.method, settings: test.settings), on: backbone, seed: Seed(1))
        try randomise(adapter, seed: 3)
        try adapter.save(to: folder("adapter"))
        // As it will be loaded: relative to the original weights, in the order of the file.
        adapter.detach()
        _ = try Adapter.load(from: folder("adapter"), onto: backbone)
        return (model, try withoutGrad { try backbone.logits(tokenTensor(exampleTokens)) })
    }

    private func logitsOfTransformers(_ folder: TemporaryFolder, _ name: String) async throws -> (JSON, Tensor) {
        let report = try await Oracle.shared.call(
            "models.check_folder",
            ["folder": JSON(folder(name)), "ids": JSON(tokens: exampleTokens), "output": JSON(folder("logits"))])
        return (report, try storedTensor(folder("logits"), "logits"))
    }

    @Test("transformers gets base and adapter from a merged folder", arguments: MergeCase.all.indices)
    func transformersReadsMergedFolders(index: Int) async throws {
        let test = MergeCase.all[index]
        try await withTemporaryFolder { folder in
            let (model, logits) = try await prepare(test, in: folder)
            var merger = Merger(try Checkpoint(model), adapter: folder("adapter"))
            merger.maxShardBytes = test.shardBytes
            let merged = try merger.write(to: folder("merged"))
            #expect(merged.isUntied == test.isUntied && merged.relativeLoss == 0 && !merged.changes.isEmpty)
            #expect(merged.changes.allSatisfy { $0.update > 0 && $0.dtype == .float32 })

            let (report, theirs) = try await logitsOfTransformers(folder, "merged")
            for list in ["missing", "unexpected", "mismatched"] { #expect(report[list] == [], "\(test.name)") }
            let isTied = try JSON.read(path: model + "/config.json")["tie_word_embeddings"] == true
            #expect(report["tied"]?.bool == (isTied && !test.isUntied))
            #expect(try largestDifference(logits, theirs) < 1e-4)

            let comparison = try merger.verify(folder("merged"), prompts: exampleTokens + [[3]])
            #expect(comparison.largestDifference < 1e-4 && comparison.argmaxAgreement == 1)
            #expect(comparison.positions == 15 && comparison.largestLogit > 0.1)

            let names = try folder.contents(of: "merged")
            let hasIndex = names.contains("model.safetensors.index.json")
            #expect(hasIndex == (test.shardBytes < 1_000_000))
            #expect(names.contains("generation_config.json") && names.contains("config.json"))
        }
    }

    @Test(
        "Tensors that the adapter leaves alone are the same bits, the others rounded once",
        arguments: ["bfloat16", "float16"])
    func roundsOnce(stored: String) async throws {
        let test = MergeCase(name: stored, kind: "llama", settings: ["target_modules": ["q_proj", "down_proj"]])
        try await withTemporaryFolder { folder in
            let (model, logits) = try await prepare(test, dtype: stored, in: folder)
            let merger = Merger(try Checkpoint(model), adapter: folder("adapter"))
            let report = try merger.write(to: folder("merged"))
            let (base, merged) = (
                try SafetensorsCheckpoint(path: model), try SafetensorsCheckpoint(path: folder("merged"))
            )
            #expect(Set(base.tensors.keys) == Set(merged.tensors.keys))
            let file = try SafetensorsFile(path: folder("adapter/adapter_model.safetensors"))
            var (losses, updates) = (0.0, 0.0)
            for (name, tensor) in base.tensors {
                let before = try tensor.tensor()
                let after = try merged.tensor(name).tensor()
                #expect(after.dtype == before.dtype && after.dtype == DType(name: stored))
                let key = "base_model.model." + name.dropLast(".weight".count)
                guard let change = report.changes.first(where: { $0.name == name }) else {
                    #expect(try bits(before) == bits(after))
                    continue
                }
                let (a, b) = (
                    try file.tensor(key + ".lora_A.weight").tensor(), try file.tensor(key + ".lora_B.weight").tensor()
                )
                let update = try b.matmul(a)
                let exact = try before.to(dtype: .float32) + update
                #expect(try largestDifference(after, exact.to(dtype: after.dtype)) == 0)
                let loss = try (after.to(dtype: .float64) - exact.to(dtype: .float64)).norm().item(as: Double.self)
                let size = try update.norm().item(as: Double.self)
                #expect(abs(change.loss - loss) < 1e-5 * loss && abs(change.update - size) < 1e-5 * size)
                losses += loss * loss
                updates += size * size
            }
            #expect(report.changes.count == 6)
            #expect(abs(report.relativeLoss - (losses / updates).squareRoot()) < 1e-5)
            #expect(report.relativeLoss > 1e-4 && report.relativeLoss < 0.1)

            let (_, theirs) = try await logitsOfTransformers(folder, "merged")
            let comparison = try merger.verify(folder("merged"), prompts: exampleTokens)
            // Both see the same rounded weights, so they are off by the same amount.
            #expect(try abs(largestDifference(logits, theirs) - comparison.largestDifference) < 1e-4)
            #expect(
                comparison.largestDifference > 1e-5 && comparison.largestDifference < 0.05 * comparison.largestLogit)
        }
    }

    @Test("The dtype can be chosen")
    func chosenDType() async throws {
        try await withTemporaryFolder { folder in
            let (model, _) = try await prepare(MergeCase.all[0], in: folder)
            var merger = Merger(try Checkpoint(model), adapter: folder("adapter"))
            merger.dtype = .bfloat16
            let report = try merger.write(to: folder("merged"))
            #expect(report.changes.allSatisfy { $0.dtype == .bfloat16 } && report.relativeLoss > 0)
            let merged = try SafetensorsCheckpoint(path: folder("merged"))
            #expect(merged.tensors.values.allSatisfy { $0.type == .bf16 })
            #expect(try JSON.read(path: folder("merged/config.json"))["dtype"] == "bfloat16")
            merger.dtype = .int8
            #expect(throws: PEFTError.self) { try merger.write(to: folder("other")) }
            #expect(try folder.contents() == ["adapter", "merged"])
        }
    }

    @Test("A merge replaces nothing unasked, never what it reads, and leaves nothing behind when it fails")
    func destinations() async throws {
        try await withTemporaryFolder { folder in
            let (model, _) = try await prepare(MergeCase.all[0], in: folder)
            try FileManager.default.copyItem(atPath: model, toPath: folder("base"))
            try FileManager.default.createSymbolicLink(atPath: folder("link"), withDestinationPath: folder("base"))
            try folder.write("{\"a\": 1}", to: "base/tokenizer.json")
            try folder.write("linked", to: "cache/blob")
            try FileManager.default.createSymbolicLink(
                atPath: folder("base/merges.txt"), withDestinationPath: "../cache/blob")
            try folder.write("weights of another kind", to: "base/pytorch_model.bin")
            let merger = Merger(try Checkpoint(folder("base")), adapter: folder("adapter"))
            for name in ["base", "adapter", "link", ""] {
                #expect(throws: PEFTError.self) { try merger.write(to: folder(name), replacing: true) }
            }
            try folder.write("old", to: "merged/old.txt")
            #expect(throws: FormatError.self) { try merger.write(to: folder("merged")) }
            #expect(try folder.contents(of: "merged") == ["old.txt"])
            _ = try merger.write(to: folder("merged"), replacing: true)
            #expect(
                try folder.contents(of: "merged") == [
                    "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json",
                ])
            #expect(try String(contentsOfFile: folder("merged/merges.txt"), encoding: .utf8) == "linked")
            try FileManager.default.removeItem(atPath: folder("cache"))
            #expect(throws: (any Error).self) { try merger.verify(folder("merged"), prompts: [[]]) }

            // An adapter with a value that is not a number must not become a model.
            let backbone = try merger.checkpoint.backbone(dtype: .float32)
            let adapter = try Adapter.load(from: folder("adapter"), onto: backbone)
            try withoutGrad {
                _ = try callTensor("aten::fill_.Scalar", adapter.trainables[0].tensor, Double.nan)
            }
            try adapter.save(to: folder("broken"))
            let broken = Merger(merger.checkpoint, adapter: folder("broken"))
            #expect(throws: PEFTError.self) { try broken.write(to: folder("failed")) }
            #expect(try folder.contents() == ["adapter", "base", "broken", "link", "merged"])
        }
    }

    @Test("Merging a GGUF file takes memory for its largest tensors, not for the model")
    func streams() throws {
        let checkpoint = try Checkpoint(RepositoryPaths.required(RepositoryPaths.smolLM2))
        try withTemporaryFolder { folder in
            let adapter = try Adapter(
                AdapterConfiguration(method: "lora", settings: ["target_modules": "all-linear"]),
                on: checkpoint.outline(), seed: Seed(1))
            try adapter.save(to: folder("adapter"))
            let before = try memory("VmRSS")
            // Makes the peak count from here.
            try Data("5".utf8).write(to: URL(fileURLWithPath: "/proc/self/clear_refs"))
            _ = try Merger(checkpoint, adapter: folder("adapter")).write(to: folder("merged"))
            let growth = try memory("VmHWM") - before
            // The mapped file has 93 MB, the embedding in float32 113 MB, the model 538 MB.
            #expect(growth < 300_000, "\(growth) KB")
        }
    }

    /// A figure of this process from /proc, in KB.
    private func memory(_ name: String) throws -> Int {
        let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
        let line = try #require(status.split(separator: "\n").first { $0.hasPrefix(name + ":") })
        return try #require(line.split(separator: " ").compactMap { Int($0) }.first)
    }

    @Test("A GGUF file becomes a folder with its tokenizer")
    func ggufFile() async throws {
        let path = try RepositoryPaths.required(RepositoryPaths.smolLM2)
        let text = "The capital of Sweden is Stockholm, and it's been so for 500 years.\n"
        try await withTemporaryFolder { folder in
            let checkpoint = try Checkpoint(path)
            let gguf = try GGUFFile(path: path)
            let ids = try Tokenizer(gguf: gguf).encode(text)
            let logits = try withoutGrad {
                let backbone = try checkpoint.backbone(dtype: .float32)
                let adapter = try Adapter(
                    AdapterConfiguration(
                        method: "lora", settings: ["target_modules": ["q_proj", "k_proj", "down_proj"]]),
                    on: backbone, seed: Seed(1))
                try randomise(adapter, seed: 2, by: 0.02)
                try adapter.save(to: folder("adapter"), baseModel: "smollm2-135m")
                return try backbone.logits(tokenTensor([ids])).to(dtype: .float32)
            }
            var merger = Merger(checkpoint, adapter: folder("adapter"))
            let report = try merger.write(to: folder("merged"))
            #expect(!report.isUntied && report.changes.count == 90 && report.relativeLoss == 0)
            #expect(report.base == "the quantised blocks of the GGUF file, unpacked")
            let theirs = try await Oracle.shared.call(
                "peft.merged_text",
                ["folder": JSON(folder("merged")), "text": JSON(text), "output": JSON(folder("logits"))])
            #expect(theirs["ids"]?.array?.compactMap(\.int) == ids)
            #expect(theirs["missing"] == [] && theirs["unexpected"] == [])
            #expect(theirs["generation"]?["eos_token_id"] != nil)
            let difference = try largestDifference(logits, storedTensor(folder("logits"), "logits"))
            let size = Double(try logits.absolute().maximum().item(as: Float.self))
            #expect(difference < 1e-4 * max(1, size), "\(difference) of \(size)")

            merger.dtype = .bfloat16
            let narrow = try merger.write(to: folder("narrow"))
            #expect(narrow.relativeLoss > 0 && narrow.relativeLoss < 1)
            let (wide, rounded) = (
                try SafetensorsCheckpoint(path: folder("merged")), try SafetensorsCheckpoint(path: folder("narrow"))
            )
            #expect(wide.tensors.keys.sorted() == rounded.tensors.keys.sorted())
            for (name, tensor) in rounded.tensors {
                #expect(try bits(tensor.tensor()) == bits(wide.tensor(name).tensor().to(dtype: .bfloat16)), "\(name)")
            }
        }
    }
}
