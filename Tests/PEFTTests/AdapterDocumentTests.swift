import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch

/// A section of docs/adapters.md, and an adapter that its program is run on.
private struct DocumentCase: Sendable {
    let section: String
    let method: String
    var kind = "llama"
    var settings: KeyedList<JSON> = [:]

    private static let patterns: KeyedList<JSON> = [
        "target_modules": ["q_proj", "up_proj"], "rank_pattern": ["layers.1.self_attn.q_proj": 4],
        "alpha_pattern": [".*[02]\\..*": 5, "up_proj": 3],
    ]

    static let all = [
        DocumentCase(section: "LORA", method: "lora", settings: patterns),
        DocumentCase(section: "LORA", method: "rslora", settings: ["target_modules": "all-linear"]),
        DocumentCase(section: "LORA", method: "dora", settings: patterns),
        DocumentCase(section: "LORA", method: "pissa", settings: patterns),
        DocumentCase(section: "LORA", method: "olora", settings: ["use_rslora": true]),
        DocumentCase(section: "LORTA", method: "lorta"),
        DocumentCase(section: "LORTA", method: "lorta", kind: "qwen3", settings: ["r": 5, "use_rslora": true]),
        DocumentCase(section: "LORTA", method: "lorta", settings: ["orientation": "lit", "lorta_alpha": 3]),
        DocumentCase(section: "LORTA", method: "lorta", kind: "llama-mha", settings: ["orientation": "peft"]),
        DocumentCase(section: "CAPABOOST_LORA", method: "capaboost-lora"),
        DocumentCase(
            section: "CAPABOOST_LORA", method: "capaboost-lora",
            settings: ["num_layer": 3, "density": 0.3, "mask_seed": -5, "use_rslora": true]),
        DocumentCase(
            section: "CAPABOOST_LORA", method: "capaboost-lora",
            settings: patterns.adding(["mask_type": "NM_structured", "mask_seed": 123_456_789_012])),
        DocumentCase(section: "MELORA", method: "melora", settings: ["l_num": 4, "use_rslora": true]),
        DocumentCase(section: "MELORA", method: "melora", settings: patterns.adding(["l_num": 3])),
        DocumentCase(section: "LORETTA_REP", method: "loretta-rep", settings: ["r": 6, "lora_alpha": 5]),
        DocumentCase(section: "MISS", method: "miss", settings: ["r": 7, "target_modules": "all-linear"]),
        DocumentCase(section: "MISS", method: "miss", settings: ["r": 5, "init_weights": "mini", "mini_r": 8]),
        DocumentCase(section: "MISS", method: "bone", settings: ["r": 4]),
        DocumentCase(section: "HUT", method: "hut", settings: ["r": 5]),
        DocumentCase(
            section: "HUT", method: "hut", settings: ["r": 3, "form": "power", "target_modules": "all-linear"]),
        DocumentCase(section: "HUT", method: "hut", settings: ["form": "one_plus", "scale": 2, "scale_shift": false]),
        DocumentCase(section: "ADALORA", method: "adalora", settings: ["init_r": 5, "target_r": 2, "lora_alpha": 3]),
    ]
}

extension KeyedList<JSON> {
    fileprivate func adding(_ other: KeyedList<JSON>) -> KeyedList<JSON> {
        var result = self
        for (key, value) in other { result[key] = value }
        return result
    }
}

@Suite("The document on adapter folders")
struct AdapterDocumentTests {
    @Test("Its programs rebuild the updates from the folders", arguments: DocumentCase.all.indices)
    func rebuildsUpdates(index: Int) async throws {
        let test = DocumentCase.all[index]
        let model = try await TinyModels.shared.folder(test.kind)
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        try await withTemporaryFolder { folder in
            let adapter = try Adapter(
                AdapterConfiguration(method: test.method, settings: test.settings), on: backbone, seed: Seed(41))
            try randomise(adapter, seed: UInt64(index) + 1, by: 0.2)
            try adapter.save(to: folder("adapter"))
            let shapes = try await Oracle.shared.call(
                "peft.documented_deltas",
                [
                    "document": JSON(RepositoryPaths.root + "/docs/adapters.md"), "heading": JSON(test.section),
                    "model_folder": JSON(model), "adapter_folder": JSON(folder("adapter")),
                    "output": JSON(folder("deltas")),
                ])
            #expect(shapes.object?.keys.sorted() == adapter.updates.map(\.linear.weight.path).sorted())
            let deltas = try SafetensorsFile(path: folder("deltas"))
            for (linear, update) in adapter.updates {
                let ours = try withoutGrad {
                    if let additive = update as? any AdditiveUpdate { return try additive.dense() }
                    let weight = try linear.weight.frozen.to(dtype: .float64)
                    return try #require(try adapter.merged(linear.weight)).to(dtype: .float64) - weight
                }
                let theirs = try deltas.tensor(linear.weight.path).tensor()
                #expect(theirs.shape == ours.shape)
                #expect(try largestDifference(ours, theirs) < 1e-6, "\(linear.path)")
                #expect(try ours.absolute().maximum().item(as: Double.self) > 1e-3)
            }
        }
    }

    @Test("It names every field and feature that folders have")
    func isComplete() throws {
        let text = try String(contentsOfFile: RepositoryPaths.root + "/docs/adapters.md", encoding: .utf8)
        let types: [any PEFT.Method.Type] = [
            LoRA.self, LoRTA.self, CapaBoost.self, MELoRA.self, LoRETTA.self, MiSS.self, HUT.self, AdaLoRA.self,
            IA3.self,
            BottleneckAdapter.self, CapaBoostAdapter.self, PrefixTuning.self, PromptTuning.self, PTuning.self,
            DePT.self,
        ]
        for type in types {
            #expect(text.contains("## \(type.peftType)\n"))
            for key in type.init().settings.keys { #expect(text.contains("`\(key)`"), "\(key)") }
            for (key, _) in type.folderFields.neutral where !type.folderFields.inert.contains(key) {
                #expect(text.contains("`\(key)`"), "\(key)")
            }
        }
        for field in Selection.fields { #expect(text.contains("`\(field.name)`"), "\(field.name)") }
    }
}
