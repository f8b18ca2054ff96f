import Backbones
import Formats
import PEFT
import Testing
import Torch

/// Which layers and parameters `target_modules` and its companions select.
@Suite struct SelectionTests {
    private let model = SmallModel(layers: 3)

    /// The selected layers, without `model.layers.` and the name of their module.
    private func layers(_ settings: KeyedList<JSON>) throws -> [String] {
        let adapter = try PEFTTests.adapter("lora", settings, on: model.backbone())
        return adapter.updates.map { $0.linear.path.replacing("model.layers.", with: "") }
            .map { $0.replacing("self_attn.", with: "").replacing("mlp.", with: "") }
    }

    @Test func queriesAndValuesByDefault() throws {
        let expected = ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj", "2.q_proj", "2.v_proj"]
        #expect(try layers([:]) == expected)
        #expect(try layers(["target_modules": nil]) == expected)
    }

    @Test func namesMatchWholePartsAtTheEnd() throws {
        #expect(try layers(["target_modules": ["o_proj"]]) == ["0.o_proj", "1.o_proj", "2.o_proj"])
        #expect(try layers(["target_modules": ["1.self_attn.o_proj", "0.mlp.up_proj"]]) == ["0.up_proj", "1.o_proj"])
        #expect(try layers(["target_modules": ["model.layers.2.mlp.down_proj"]]) == ["2.down_proj"])
        let sentence = refusal { _ = try layers(["target_modules": ["proj", "elf_attn.q_proj"]]) }
        #expect(sentence.contains("matches no linear layer") && sentence.contains("down_proj, gate_proj, k_proj"))
    }

    @Test func expressionsMatchWholePaths() throws {
        #expect(
            try layers(["target_modules": #".*\.[12]\..*(k|up)_proj"#]) == [
                "1.k_proj", "1.up_proj", "2.k_proj", "2.up_proj",
            ])
        #expect(refusal { _ = try layers(["target_modules": "k_proj"]) }.contains("matches no linear layer"))
        #expect(refusal { _ = try layers(["target_modules": "(k_proj"]) }.contains("not a valid regular expression"))
    }

    @Test func allLinearLeavesTheHeadOut() throws {
        let backbone = try model.backbone()
        let adapter = try PEFTTests.adapter("lora", ["target_modules": "all-linear"], on: backbone)
        #expect(adapter.updates.map(\.linear.path) == backbone.linears.filter { $0.role != .head }.map(\.path))
        #expect(adapter.updates.count == 21)
        adapter.detach()
        let named = try PEFTTests.adapter("lora", ["target_modules": ["lm_head"]], on: backbone)
        #expect(named.updates.map(\.linear.path) == ["lm_head"])
    }

    @Test func excludedModulesAreLeftOut() throws {
        #expect(try layers(["exclude_modules": ["v_proj", "1.self_attn.q_proj"]]) == ["0.q_proj", "2.q_proj"])
        #expect(try layers(["exclude_modules": #".*\.(0|2)\..*"#]) == ["1.q_proj", "1.v_proj"])
        #expect(
            refusal { _ = try layers(["exclude_modules": ["v_proj", "q_proj"]]) }.contains("matches no linear layer"))
    }

    @Test func blocksAreSelectedByIndex() throws {
        #expect(try layers(["layers_to_transform": 1]) == ["1.q_proj", "1.v_proj"])
        #expect(
            try layers(["layers_to_transform": [0, 2], "target_modules": ["q_proj"]]) == ["0.q_proj", "2.q_proj"])
        let named: KeyedList<JSON> = ["layers_to_transform": 2, "layers_pattern": "layers"]
        #expect(try layers(named) == ["2.q_proj", "2.v_proj"])
        #expect(refusal { _ = try layers(["layers_to_transform": 3]) }.contains("matches no linear layer"))
        #expect(refusal { _ = try layers(["layers_to_transform": "first"]) }.hasPrefix("layers_to_transform: expected"))
    }

    @Test func modulesToSaveAreTrainedWhole() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try PEFTTests.adapter(
            "lora", ["modules_to_save": ["lm_head", "1.self_attn.q_proj"]], on: backbone)
        #expect(!adapter.updates.contains { $0.linear.path == "model.layers.1.self_attn.q_proj" })
        #expect(adapter.updates.count == 5)
        #expect(
            adapter.copies.map(\.parameter.path) == [
                "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias", "lm_head.weight",
            ])
        #expect(adapter.trainables.last?.name == "base_model.model.lm_head.weight")
        #expect(try backbone.logits(ids).isIdentical(to: before))
        let head = try #require(adapter.trainables.last?.tensor)
        try nextTokenLoss(backbone, ids).backward()
        #expect(try !isZero(#require(head.grad)))
        try adapter.descend(1)
        #expect(
            try adapter.merged(backbone.head.weight, pretrained: backbone.head.weight.frozen)?.isIdentical(
                to: head.detached()) == true)
        let adapted = try backbone.logits(ids)
        #expect(try relativeGap(adapted, before) > 1e-3)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        adapter.detach()
        #expect(try backbone.logits(ids).isIdentical(to: before))
        let sentence = refusal { _ = try layers(["modules_to_save": ["score"]]) }
        #expect(sentence.contains("modules_to_save") && sentence.contains("\"score\""))
    }

    @Test func biasesAreTrainedOnRequest() throws {
        func names(_ bias: String) throws -> [String] {
            let adapter = try PEFTTests.adapter(
                "lora", ["layers_to_transform": 0, "bias": JSON(bias)], on: model.backbone())
            return adapter.trainables.map(\.name).filter { $0.hasSuffix("bias") }
        }
        #expect(try names("none") == [])
        let path = "base_model.model.model.layers.0.self_attn"
        let adapted = ["\(path).q_proj.base_layer.bias", "\(path).v_proj.base_layer.bias"]
        #expect(try names("lora_only") == adapted)
        #expect(try names("adapted_only") == adapted)
        let all = try names("all")
        #expect(all.count == 12 && Set(all).isSuperset(of: adapted) && all.contains("\(path).k_proj.bias"))
        #expect(refusal { _ = try names("some") }.hasPrefix("bias: expected one of none, all"))
    }

    @Test func namesAreWrittenInOrder() throws {
        var selection = Selection()
        selection.targetModules = .names(["v_proj", "k_proj"])
        #expect(
            Selection.fields.map(\.name) == [
                "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
            ])
        #expect(selection.targetModules?.json == ["k_proj", "v_proj"])
        #expect(Selection.Modules.expression("all-linear").json == "all-linear")
    }

    @Test func unknownKeysAreRefusedWithTheNearest() throws {
        let sentence = refusal { _ = try layers(["target_module": ["q_proj"]]) }
        #expect(sentence.contains("\"target_module\"") && sentence.contains("Did you mean \"target_modules\"?"))
        #expect(refusal { _ = try layers(["target_modules": 3]) }.hasPrefix("target_modules: expected a list of"))
    }
}
