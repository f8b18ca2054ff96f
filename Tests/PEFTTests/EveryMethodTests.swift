import Backbones
import Formats
import PEFT
import Testing
import Torch

/// What holds for every method; a new one joins by its line in the registry.
@Suite struct EveryMethodTests {
    static let names = MethodRegistry.entries.map(\.name)
    /// Methods whose first output equals the model's up to rounding; that of all others is equal bit for bit.
    static let startsWithinRounding: Set<String> = ["dora", "pissa", "olora"]

    private let model = SmallModel()

    @Test(arguments: names) func beginsAsThePretrainedModel(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter(name, on: backbone)
        let after = try backbone.logits(ids)
        if Self.startsWithinRounding.contains(name) {
            #expect(try relativeGap(after, before) < 1e-5)
        } else {
            #expect(try after.isIdentical(to: before))
        }
        #expect(adapter.updates.count >= 4)
    }

    @Test(arguments: names) func mergedModelAnswersAsTheAdaptedOne(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(name, on: backbone)
        try adapter.randomise(seed: 3)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged {
            #expect(backbone.linears.allSatisfy { $0.adapter == nil })
            return try backbone.logits(ids)
        }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        #expect(try backbone.logits(ids).isIdentical(to: adapted))
        let plain = try backbone.logits(ids, Context(usesAdapters: false))
        #expect(try relativeGap(adapted, plain) > 1e-2)
    }

    @Test(arguments: names) func detachingRestoresThePretrainedModel(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter(name, on: backbone)
        try adapter.randomise(seed: 3)
        #expect(try backbone.logits(ids, Context(usesAdapters: false)).isIdentical(to: before))
        #expect(try !backbone.logits(ids).isIdentical(to: before))
        adapter.detach()
        #expect(try backbone.logits(ids).isIdentical(to: before))
        #expect(backbone.linears.allSatisfy { $0.adapter == nil })
        #expect(backbone.parameters.allSatisfy { $0.replacement == nil })
    }

    @Test(arguments: names) func countsEveryTrainedValueOnce(name: String) throws {
        let adapter = try adapter(name, on: model.backbone())
        let shapes = adapter.trainables.map(\.tensor.shape)
        #expect(adapter.parameterCount == shapes.reduce(0) { $0 + $1.reduce(1, *) })
        #expect(Set(adapter.trainables.map(\.name)).count == adapter.trainables.count)
        #expect(adapter.trainables.allSatisfy { $0.tensor.dtype == .float32 && $0.tensor.requiresGrad })
        let exported = try adapter.exported().tensors
        #expect(exported.keys.allSatisfy { $0.hasPrefix("base_model.") })
        #expect(!exported.isEmpty)
    }

    @Test(arguments: names) func gradientsReachTheTrainableTensorsAndNoOthers(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(name, on: backbone)
        for _ in 0..<2 {
            try adapter.descend(0.5)
            try nextTokenLoss(backbone, ids).backward()
        }
        for trainable in adapter.trainables {
            let gradient = try #require(trainable.tensor.grad, "\(trainable.name)")
            #expect(try gradient.isAllFinite() && !isZero(gradient), "\(trainable.name)")
        }
        for parameter in backbone.parameters {
            #expect(!parameter.frozen.requiresGrad && parameter.frozen.grad == nil, "\(parameter.path)")
        }
        for (name, buffer) in adapter.buffers { #expect(!buffer.requiresGrad, "\(name)") }
    }

    @Test(arguments: names) func stepsLowerTheLossAndLeaveFrozenWeightsAlone(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(name, on: backbone)
        let before = try backbone.parameters.map { try $0.frozen.cloned() }
        let first: Double = try nextTokenLoss(backbone, ids).item()
        for _ in 0..<3 {
            try nextTokenLoss(backbone, ids).backward()
            try adapter.gradientsAreReady(0)
            try adapter.descend(0.05)
        }
        #expect(try nextTokenLoss(backbone, ids).item(as: Double.self) < first)
        for (parameter, old) in zip(backbone.parameters, before) {
            #expect(try parameter.frozen.isIdentical(to: old), "\(parameter.path)")
        }
    }

    @Test(arguments: names) func theSeedAloneDecidesTheStart(name: String) throws {
        let first = try adapter(name, on: model.backbone()).trainables
        // Whatever is made and drawn before must not matter.
        var stream = Seed(7).stream("another")
        _ = try Tensor.normal([5], from: &stream)
        _ = try adapter("lora", ["target_modules": "all-linear"], on: SmallModel.multiHead.backbone())
        let again = try adapter(name, on: model.backbone()).trainables
        #expect(first.map(\.name) == again.map(\.name))
        for (a, b) in zip(first, again) { #expect(try a.tensor.isIdentical(to: b.tensor), "\(a.name)") }
        guard name != "pissa", name != "olora" else { return }  // The weights decide there.
        let other = try adapter(name, on: model.backbone(), seed: 8).trainables
        #expect(try zip(first, other).contains { try !$0.tensor.isIdentical(to: $1.tensor) })
    }

    @Test(arguments: names) func adaptsModelsInHalfPrecision(name: String) throws {
        let backbone = try model.backbone(dtype: .bfloat16)
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter(name, on: backbone)
        let start = try backbone.logits(ids)
        #expect(start.dtype == .bfloat16)
        let tolerance = Self.startsWithinRounding.contains(name) ? 0.05 : 0
        #expect(try relativeGap(start, before) <= tolerance)
        try adapter.randomise(seed: 3, by: 0.1)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 0.1)
        try nextTokenLoss(backbone, ids).backward()
        for trainable in adapter.trainables {
            let gradient = try #require(trainable.tensor.grad, "\(trainable.name)")
            #expect(try gradient.dtype == .float32 && gradient.isAllFinite(), "\(trainable.name)")
        }
    }

    @Test(arguments: names) func dropoutIsNamedAndActsInTrainingOnly(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let setting = try #require(
            try MethodRegistry.entry(name).make().settings.keys.first { $0.hasSuffix("_dropout") })
        let adapter = try adapter(name, [setting: 0.5], on: backbone)
        try adapter.randomise(seed: 3)
        func logits(_ pass: String) throws -> Tensor {
            try backbone.logits(ids, Context(dropout: DropoutSource(seed: Seed(1), pass: pass)))
        }
        let evaluated = try backbone.logits(ids)
        #expect(try evaluated.isIdentical(to: backbone.logits(ids)))
        #expect(try logits("1").isIdentical(to: logits("1")))
        #expect(try relativeGap(logits("1"), logits("2")) > 1e-3)
        #expect(try relativeGap(logits("1"), evaluated) > 1e-3)
    }

    @Test(arguments: names) func refusesSettingsOfTheWrongForm(name: String) throws {
        let entry = try MethodRegistry.entry(name)
        for key in try entry.make().settings.keys {
            // No setting is a list.
            let sentence = refusal { _ = try AdapterConfiguration(method: name, settings: [key: [[1]]]) }
            #expect(sentence.hasPrefix("\(key): expected") && sentence.hasSuffix("found [[1]]"), "\(sentence)")
        }
        for (key, value) in [("r", 0), ("r", -4)] as [(String, JSON)] {
            #expect(refusal { _ = try AdapterConfiguration(method: name, settings: [key: value]) }.hasPrefix("r: "))
        }
        let sentence = refusal { _ = try AdapterConfiguration(method: name, settings: ["rr": 4]) }
        #expect(sentence.contains("\"rr\"") && sentence.contains("Did you mean \"r\"?"))
    }

    @Test(arguments: names) func settingsSurviveTheirFile(name: String) throws {
        let method = try MethodRegistry.entry(name).make().resolved(seed: Seed(5))
        let type = try MethodRegistry.type(peftType: Swift.type(of: method).peftType)
        var read: any PEFT.Method = type.init()
        for (key, value) in method.settings {
            let text = try JSON.parse(value.compact)
            read = try #require(try read.setting(key, to: text), "\(key)")
        }
        #expect(read.settings == method.settings)
    }

    @Test(arguments: names) func aSecondAdapterIsRefused(name: String) throws {
        let backbone = try model.backbone()
        let first = try adapter(name, on: backbone)
        #expect(refusal { _ = try adapter(name, on: backbone) }.contains("already has an adapter"))
        first.detach()
        _ = try adapter(name, on: backbone)
    }

    @Test func namesAndPapersAreDistinct() throws {
        #expect(Set(Self.names).count == Self.names.count)
        for entry in MethodRegistry.entries {
            #expect(entry.paper.wholeMatch(of: #/\d{4}\.\d{5}/#) != nil)
            #expect(!entry.title.isEmpty && entry.summary.hasSuffix("."))
        }
        #expect(refusal { _ = try MethodRegistry.entry("lorat") }.contains("Did you mean \"lora\"?"))
        #expect(refusal { _ = try MethodRegistry.type(peftType: "LOHA") }.contains("LORTA"))
    }
}
