import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What holds for every method before and after it is trained; a new one joins by its line in the registry.
@Suite struct EveryMethodTests {
    private let model = SmallModel()

    @Test(arguments: MethodCase.all) func beginsAsThePretrainedModel(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try method.adapter(on: backbone)
        let after = try backbone.logits(ids)
        switch method.start {
        case .identical: #expect(try after.isIdentical(to: before))
        case .withinRounding: #expect(try relativeGap(after, before) < 1e-5)
        case .elsewhere: #expect(try after.shape == before.shape && after.isAllFinite())
        }
        #expect(!adapter.trainables.isEmpty && backbone.attachPoints.contains { $0.occupant != nil })
    }

    @Test(arguments: MethodCase.all) func mergedModelAnswersAsTheAdaptedOne(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try method.adapter(on: backbone)
        try adapter.randomise(seed: 3)
        let adapted = try backbone.logits(ids)
        let plain = try backbone.logits(ids, Context(usesAdapters: false))
        let reason = method.mergeRefusal(adapter)
        if reason.isEmpty {
            let merged = try adapter.whileMerged {
                #expect(backbone.linears.allSatisfy { $0.adapter == nil })
                return try backbone.logits(ids)
            }
            #expect(try relativeGap(merged, adapted) < 1e-5)
        } else {
            #expect(reason.contains("cannot be merged: "))
            #expect(refusal { try adapter.mergeIntoBackbone() } == reason)
            #expect(!adapter.isMerged)
        }
        #expect(try backbone.logits(ids).isIdentical(to: adapted))
        #expect(try backbone.logits(ids, Context(usesAdapters: false)).isIdentical(to: plain))
        #expect(try relativeGap(adapted, plain) > 1e-2)
    }

    @Test(arguments: MethodCase.all) func detachingRestoresThePretrainedModel(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let frozen = try backbone.frozenBits()
        let adapter = try method.adapter(on: backbone)
        try adapter.randomise(seed: 3)
        #expect(try !backbone.logits(ids).isIdentical(to: before))
        if method.mergeRefusal(adapter).isEmpty { try adapter.mergeIntoBackbone() }
        adapter.detach()
        #expect(try backbone.logits(ids).isIdentical(to: before))
        #expect(backbone.attachPoints.allSatisfy { $0.occupant == nil })
        #expect(try backbone.frozenBits() == frozen)
    }

    @Test(arguments: MethodCase.all) func countsEveryTrainedValueOnce(method: MethodCase) throws {
        let adapter = try method.adapter(on: model.backbone())
        let shapes = adapter.trainables.map(\.tensor.shape)
        let whole = shapes.reduce(0) { $0 + $1.reduce(1, *) }
        #expect(method.isSparse ? adapter.parameterCount < whole : adapter.parameterCount == whole)
        var configuration = adapter.configuration
        let points = try configuration.points(of: model.backbone())
        // The formula of the method, which sees sizes only.
        #expect(try configuration.method.trainedCount(in: points) == Double(adapter.parameterCount))
        #expect(Set(adapter.trainables.map(\.name)).count == adapter.trainables.count)
        #expect(adapter.trainables.allSatisfy { $0.tensor.dtype == .float32 && $0.tensor.requiresGrad })
        let saved = try adapter.exported().tensors
        #expect(method.isSparse || !saved.isEmpty)
    }

    @Test(arguments: MethodCase.all) func theSeedAloneDecidesTheStart(method: MethodCase) throws {
        let first = try method.adapter(on: model.backbone()).trainables
        // Whatever is made and drawn before must not matter.
        var stream = Seed(7).stream("another")
        _ = try Tensor.normal([5], from: &stream)
        _ = try adapter("lora", ["target_modules": "all-linear"], on: SmallModel.multiHead.backbone())
        let again = try method.adapter(on: model.backbone()).trainables
        #expect(first.map(\.name) == again.map(\.name))
        for (a, b) in zip(first, again) { #expect(try a.tensor.isIdentical(to: b.tensor), "\(a.name)") }
        let other = try method.adapter(on: model.backbone(), seed: 8).trainables
        let differs = try zip(first, other).contains { try !$0.tensor.isIdentical(to: $1.tensor) }
        #expect(differs == method.isSeeded)
    }

    @Test(arguments: MethodCase.all) func whatIsSavedIsReadBackBitForBit(method: MethodCase) throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            let ids = try model.tokens()
            let adapter = try method.adapter(on: backbone)
            try adapter.takeSteps(0..<2, on: ids)
            try adapter.randomise(seed: 4, by: 0.1)
            let adapted = try backbone.logits(ids)
            try adapter.save(to: folder("first"))
            let other = try model.backbone()
            let loaded = try Adapter.load(from: folder("first"), onto: other)
            // Scalars are put into the model once and have no gradient there, for which there are other kernels.
            #expect(try relativeGap(other.logits(ids), adapted) <= (method.isSparse ? 1e-6 : 0))
            let (saved, read) = (try adapter.exported().tensors, try loaded.exported().tensors)
            #expect(saved.keys == read.keys)
            for (name, tensor) in saved {
                #expect(try bits(tensor) == bits(#require(read[name])), "\(name)")
            }
            try loaded.save(to: folder("second"))
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let files = try ["first", "second"].map { try MappedFile(path: folder($0) + "/" + file) }
                let areEqual = withExtendedLifetime(files) { files[0].bytes.elementsEqual(files[1].bytes) }
                #expect(areEqual, "\(file)")
            }
        }
    }

    @Test(arguments: MethodCase.all) func dropoutIsNamedAndActsInTrainingOnly(method: MethodCase) throws {
        let keys = try MethodRegistry.entry(method.name).make().settings.keys
        guard let setting = keys.first(where: { $0.hasSuffix("dropout") }) else { return }
        let backbone = try model.backbone()
        let ids = try model.tokens()
        // A setting that would do nothing is refused.
        guard let adapter = try? method.adapter(on: backbone, [setting: 0.5]) else {
            #expect(refusal { _ = try method.adapter(on: backbone, [setting: 0.5]) }.hasPrefix("\(setting): "))
            return
        }
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

    @Test(arguments: MethodCase.all) func refusesSettingsOfTheWrongForm(method: MethodCase) throws {
        let settings = try MethodRegistry.entry(method.name).make().settings
        for (key, value) in settings {
            let sentence = refusal { _ = try AdapterConfiguration(method: method.name, settings: [key: [[1]]]) }
            #expect(sentence.hasPrefix("\(key): expected") && sentence.hasSuffix("found [[1]]"), "\(sentence)")
            // Sizes and probabilities have a range.
            let isSize = key == "r" || key.hasSuffix("_r") || key.hasSuffix("_rank") || key.contains("num")
            let wrong: [JSON] = key.hasSuffix("dropout") ? [-4, 1] : isSize && value.int != nil ? [-4, 0] : []
            for wrong in wrong {
                let sentence = refusal { _ = try AdapterConfiguration(method: method.name, settings: [key: wrong]) }
                #expect(sentence.hasPrefix("\(key): expected"), "\(key) \(wrong.compact): \(sentence)")
            }
        }
        guard let key = settings.keys.first else { return }
        let sentence = refusal { _ = try AdapterConfiguration(method: method.name, settings: [key + "x": 4]) }
        #expect(sentence.contains("\"\(key)x\"") && sentence.contains("Did you mean \"\(key)\"?"), "\(sentence)")
    }

    @Test(arguments: MethodCase.all) func settingsSurviveTheirFile(method: MethodCase) throws {
        let method = try MethodRegistry.entry(method.name).make().resolved(seed: Seed(5))
        let type = try MethodRegistry.type(peftType: Swift.type(of: method).peftType)
        var read: any PEFT.Method = type.init()
        for (key, value) in method.settings {
            let text = try JSON.parse(value.compact)
            read = try #require(try read.setting(key, to: text), "\(key)")
        }
        #expect(read.settings == method.settings)
    }

    @Test(arguments: MethodCase.all) func aSecondAdapterInTheSamePlaceIsRefused(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let first = try method.adapter(on: backbone)
        try first.randomise(seed: 3)
        let adapted = try backbone.logits(ids)
        #expect(refusal { _ = try method.adapter(on: backbone) }.contains(" already "))
        #expect(try backbone.logits(ids).isIdentical(to: adapted))
        first.detach()
        _ = try method.adapter(on: backbone)
    }

    /// Rows of one batch with one of two adapters or with none, each as if it were alone.
    @Test(arguments: MethodCase.all) func rowsOfABatchChooseTheirAdapter(method: MethodCase) throws {
        let rows: [String?] = ["first", nil, "second"]
        let ids = try model.tokens(rows: 3)
        let plain = try model.backbone().logits(ids)
        try withTemporaryFolder { folder in
            var alone: [String: Tensor] = [:]
            for (name, seed) in [("first", 3), ("second", 4)] as [(String, UInt64)] {
                let backbone = try model.backbone()
                let adapter = try method.adapter(on: backbone)
                try adapter.randomise(seed: seed, by: 0.1)
                try adapter.save(to: folder(name))
                alone[name] = try withoutGrad { try backbone.logits(ids) }
            }
            let backbone = try model.backbone()
            let bank = AdapterBank(on: backbone)
            let sentence = refusal { for name in ["first", "second"] { try bank.load(folder(name), as: name) } }
            guard sentence.isEmpty else {
                #expect(sentence.contains("cannot") && sentence.hasPrefix(folder("first")), "\(sentence)")
                return
            }
            for batch in try bank.batches(rows) {
                var context = Context()
                context.routing = try bank.routing(batch.map { rows[$0] })
                let some = try ids.gathered(Tensor(batch, shape: [batch.count]))
                let logits = try withoutGrad { try backbone.logits(some, context) }
                for (place, row) in batch.enumerated() {
                    let expected = try (rows[row].flatMap { alone[$0] } ?? plain).narrowed(0, start: row, length: 1)
                    let gap = try relativeGap(logits.narrowed(0, start: place, length: 1), expected)
                    #expect(gap < 1e-5, "\(rows[row] ?? "none"): \(gap)")
                }
            }
        }
    }

    @Test func namesAndPapersAreDistinct() throws {
        let names = MethodRegistry.entries.map(\.name)
        #expect(Set(names).count == names.count)
        for entry in MethodRegistry.entries {
            #expect(entry.paper.wholeMatch(of: #/\d{4}\.\d{5}/#) != nil)
            #expect(!entry.title.isEmpty && entry.summary.hasSuffix("."))
        }
        #expect(refusal { _ = try MethodRegistry.entry("lorat") }.contains("Did you mean \"lora\"?"))
        #expect(refusal { _ = try MethodRegistry.type(peftType: "LOHA") }.contains("LORTA"))
    }
}
