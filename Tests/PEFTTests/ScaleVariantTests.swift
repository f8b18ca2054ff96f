import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// An adapter whose update is scaled in some way.
private struct ScaleVariant: Sendable {
    let name: String
    var method = "lora"
    var kind = "llama"
    var settings: KeyedList<JSON> = [:]
    /// Whether peft has the method.
    var isPeft = true
    /// Whether peft merges it rightly: into a head that is tied it merges into the embedding, too.
    var mergesInPeft = true

    private static let patterns: KeyedList<JSON> = [
        "target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 10,
        "rank_pattern": ["layers.1.self_attn.q_proj": 7, "v_proj": 2],
        "alpha_pattern": [".*[02].*q_proj": 3, "down_proj": 17],
    ]

    private static func with(_ settings: KeyedList<JSON>, _ more: KeyedList<JSON>) -> KeyedList<JSON> {
        var all = settings
        for (key, value) in more { all[key] = value }
        return all
    }

    static let all = [
        ScaleVariant(name: "alpha / r", settings: ["r": 3, "lora_alpha": 7, "target_modules": "all-linear"]),
        ScaleVariant(name: "rsLoRA", method: "rslora", settings: ["r": 5, "lora_alpha": 7]),
        ScaleVariant(name: "patterns", settings: patterns),
        ScaleVariant(name: "rsLoRA with patterns", kind: "qwen2", settings: with(patterns, ["use_rslora": true])),
        ScaleVariant(name: "DoRA", method: "dora", settings: ["r": 3, "lora_alpha": 9]),
        ScaleVariant(
            name: "DoRA of rsLoRA with patterns", method: "dora", kind: "qwen3",
            settings: with(patterns, ["use_rslora": true])),
        ScaleVariant(
            name: "LoRA+ with biases", kind: "qwen2",
            settings: ["r": 3, "lora_alpha": 5, "bias": "all", "loraplus_lr_ratio": 8, "lora_dropout": 0.1]),
        ScaleVariant(
            name: "own biases", kind: "llama-biases",
            settings: ["r": 3, "lora_alpha": 5, "bias": "lora_only", "target_modules": ["k_proj", "up_proj"]]),
        ScaleVariant(
            name: "tied head", kind: "llama-tied", settings: ["r": 2, "lora_alpha": 6, "target_modules": ["lm_head"]],
            mergesInPeft: false),
        ScaleVariant(name: "PiSSA", method: "pissa", settings: ["r": 4, "lora_alpha": 6]),
        ScaleVariant(name: "PiSSA with patterns", method: "pissa", settings: with(patterns, ["use_rslora": true])),
        ScaleVariant(name: "OLoRA", method: "olora", kind: "mistral", settings: ["r": 4, "lora_alpha": 6]),
        ScaleVariant(name: "OLoRA with patterns", method: "olora", settings: patterns),
        ScaleVariant(name: "LoRTA", method: "lorta", settings: ["r": 6, "lorta_alpha": 13], isPeft: false),
        ScaleVariant(
            name: "CapaBoost", method: "capaboost-lora", settings: ["r": 3, "lora_alpha": 8], isPeft: false),
    ]
}

@Suite(.serialized) struct ScaleVariantTests {
    @Test("All scale variants survive every export", arguments: ScaleVariant.all.indices)
    func everyExport(index: Int) async throws {
        let variant = ScaleVariant.all[index]
        let model = try await TinyModels.shared.folder(variant.kind)
        try await withTemporaryFolder { folder in
            let backbone = try Checkpoint(model).backbone(dtype: .float32)
            let ids = try tokenTensor(exampleTokens)
            func logits() throws -> Tensor { try withoutGrad { try backbone.logits(ids) } }
            let base = try logits()
            let adapter = try Adapter(
                AdapterConfiguration(method: variant.method, settings: variant.settings), on: backbone, seed: Seed(3))
            try randomise(adapter, seed: 8)
            let expected = try logits()
            let size = max(1, try expected.absolute().maximum().item(as: Double.self))
            #expect(try largestDifference(expected, base) > 1e-2 * size, "the adapter has no effect")
            func expectSame(_ found: Tensor, _ export: Comment) throws {
                let gap = try largestDifference(found, expected)
                #expect(gap < 1e-5 * size, export)
            }

            // Graft's own folder, read and written twice over.
            try adapter.save(to: folder("first"), baseModel: model)
            adapter.detach()
            let loaded = try Adapter.load(from: folder("first"), onto: backbone)
            try expectSame(logits(), "read back")
            try loaded.save(to: folder("second"), baseModel: model)
            loaded.detach()
            let again = try Adapter.load(from: folder("second"), onto: backbone)
            try expectSame(logits(), "read back twice")
            try again.mergeIntoBackbone()
            try expectSame(logits(), "merged in memory")
            again.detach()
            #expect(try bits(logits()) == bits(base))

            // A merged model in transformers.
            _ = try Merger(try Checkpoint(model), adapter: folder("second")).write(to: folder("merged"))
            let report = try await Oracle.shared.call(
                "models.check_folder",
                [
                    "folder": JSON(folder("merged")), "ids": JSON(tokens: exampleTokens),
                    "output": JSON(folder("logits")),
                ])
            for list in ["missing", "unexpected", "mismatched"] { #expect(report[list] == []) }
            try expectSame(storedTensor(folder("logits"), "logits"), "merged, in transformers")

            // The folder in peft, applied and merged there.
            guard variant.isPeft else { return }
            for isMerged in variant.mergesInPeft ? [false, true] : [false] {
                let report = try await Oracle.shared.call(
                    "peft.logits",
                    [
                        "model_folder": JSON(model), "adapter_folder": JSON(folder("first")),
                        "ids": JSON(tokens: exampleTokens), "output": JSON(folder("peft")), "merged": JSON(isMerged),
                    ])
                #expect(report["unexpected"] == [] && report["misshapen"] == [])
                try expectSame(storedTensor(folder("peft"), "logits"), isMerged ? "merged in peft" : "in peft")
            }
        }
    }
}
