import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Several adapters on one model: every row as if it were alone, and none in another's way.
@Suite struct AdapterBankTests {
    private let model = SmallModel()

    /// Folders of adapters of noise by name.
    private func save(
        _ adapters: KeyedList<(String, KeyedList<JSON>)>, on backbone: any Backbone, _ folder: TemporaryFolder
    ) throws {
        for (name, (method, settings)) in adapters {
            let adapter = try adapter(method, settings, on: backbone)
            try adapter.randomise(seed: UInt64(name.utf8.reduce(0) { $0 + Int($1) }))
            try adapter.save(to: folder(name))
            adapter.detach()
        }
    }

    /// Adapters of several ranks and kinds, in other layers each.
    private static let kinds: KeyedList<(String, KeyedList<JSON>)> = [
        "two": ("lora", ["r": 2, "target_modules": "all-linear"]),
        "four": ("rslora", ["r": 4, "target_modules": ["q_proj", "v_proj", "lm_head"]]),
        "eight": ("lora", ["r": 8, "layers_to_transform": [1], "target_modules": ["k_proj", "down_proj"]]),
    ]
    private static let shuffled: [String?] = ["four", nil, "two", "eight", "two", nil, "four", "two"]

    /// The logits of one row with one adapter, or none, by itself on the model.
    private func alone(
        _ name: String?, _ ids: Tensor, _ folder: TemporaryFolder, merged: Bool = false, dtype: DType = .float32
    ) throws -> Tensor {
        let backbone = try model.backbone(dtype: dtype)
        guard let name else { return try backbone.logits(ids) }
        let adapter = try Adapter.load(from: folder(name), onto: backbone)
        if merged { try adapter.mergeIntoBackbone() }
        return try backbone.logits(ids)
    }

    private func row(_ tensor: Tensor, _ index: Int) throws -> Tensor {
        try tensor.narrowed(0, start: index, length: 1)
    }

    /// In fp64 there is no doubt; in fp32 products of other shapes round otherwise.
    @Test(arguments: [Routing.Form.automatic, .gathered, .grouped], [(DType.float64, 1e-12), (.float32, 5e-6)])
    func aMixedBatchIsEachRowAlone(form: Routing.Form, precision: (dtype: DType, tolerance: Double)) throws {
        let (dtype, tolerance) = precision
        try withTemporaryFolder { folder in
            let backbone = try model.backbone(dtype: dtype)
            try save(Self.kinds, on: backbone, folder)
            let bank = AdapterBank(on: backbone)
            for name in Self.kinds.keys { try bank.load(folder(name), as: name) }
            #expect(bank.names == Self.kinds.keys)
            // One row, rows of one adapter, rows of none, and all mixed.
            for rows: [String?] in [["eight"], ["two", "two"], [nil, nil], Self.shuffled] {
                for length in [1, 7] {
                    let ids = try model.tokens(rows: rows.count, length: length, seed: 4)
                    var context = Context()
                    context.routing = try bank.routing(rows)
                    context.routing?.form = form
                    // Without gradients factors are remembered; twice, for what is remembered.
                    _ = try withoutGrad { try backbone.logits(ids, context) }
                    let mixed = try withoutGrad { try backbone.logits(ids, context) }
                    for (index, name) in rows.enumerated() {
                        let own = try alone(name, row(ids, index), folder, dtype: dtype)
                        #expect(try relativeGap(row(mixed, index), own) < tolerance, "row \(index), \(name ?? "none")")
                        let merged = try alone(name, row(ids, index), folder, merged: true, dtype: dtype)
                        #expect(try relativeGap(row(mixed, index), merged) < 1e-5, "row \(index), \(name ?? "none")")
                    }
                }
            }
        }
    }

    @Test func packedRowsChooseTheirAdapters() throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            try save(Self.kinds, on: backbone, folder)
            let bank = AdapterBank(on: backbone)
            for name in Self.kinds.keys { try bank.load(folder(name), as: name) }
            let (names, lengths): ([String?], [Int]) = (["eight", "two", nil, "eight", "four"], [3, 1, 6, 4, 2])
            let ids = try model.tokens(rows: 1, length: lengths.reduce(0, +), seed: 6)
            var context = Context()
            context.segments = Segments(lengths)
            context.routing = try bank.routing(names)
            let packed = try backbone.logits(ids, context).split(lengths, dimension: 1)
            let parts = try ids.split(lengths, dimension: 1)
            for (index, name) in names.enumerated() {
                #expect(try relativeGap(packed[index], alone(name, parts[index], folder)) < 1e-6, "row \(index)")
            }
        }
    }

    @Test func gradientsReachTheAdaptersOfTheirRows() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens(rows: 4, length: 6)
        let rows: [String?] = ["a", "b", nil, "a"]
        var adapters: [String: Adapter] = [:]
        for (index, name) in ["a", "b", "unused"].enumerated() {
            let made = try adapter("lora", ["r": JSON(index + 2)], on: backbone, seed: UInt64(index))
            try made.randomise(seed: UInt64(index))
            made.detach()
            adapters[name] = made
        }
        func loss(_ ids: Tensor, _ context: Context = Context()) throws -> Tensor {
            try backbone.logits(ids, context).squared().sum()
        }
        var expected = KeyedList<Tensor>()
        for name in ["a", "b"] {
            let adapter = try #require(adapters[name])
            try adapter.attach()
            for (index, row) in rows.enumerated() where row == name { try loss(self.row(ids, index)).backward() }
            for trainable in adapter.trainables { expected["\(name) \(trainable.name)"] = trainable.tensor.grad }
            try adapter.clearGradients()
            adapter.detach()
        }
        let bank = AdapterBank(on: backbone)
        for name in ["a", "b", "unused"] { try bank.add(#require(adapters[name]), as: name) }
        for form in [Routing.Form.gathered, .grouped] {
            var context = Context()
            context.routing = try bank.routing(rows)
            context.routing?.form = form
            try loss(ids, context).backward()
            for name in ["a", "b"] {
                for trainable in try #require(adapters[name]).trainables {
                    let gradient = try #require(trainable.tensor.grad)
                    #expect(try relativeGap(gradient, #require(expected["\(name) \(trainable.name)"])) < 1e-5)
                }
                try adapters[name]?.clearGradients()
            }
            #expect(try #require(adapters["unused"]).trainables.allSatisfy { $0.tensor.grad == nil })
        }
    }

    @Test func textsThatAreWrittenTogetherAreThoseOfEachAlone() throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            try save(Self.kinds, on: backbone, folder)
            var generator = SeededGenerator(seed: 12)
            let prompts = Self.shuffled.indices.map { index in
                generator.tokens(rows: 1, length: 3 + index % 4, vocabulary: model.vocabulary)[0]
            }
            var settings = GenerationSettings(maxTokens: 12)
            func single(_ index: Int) throws -> GeneratedTokens {
                let own = try model.backbone()
                if let name = Self.shuffled[index] { _ = try Adapter.load(from: folder(name), onto: own) }
                return try own.generateBatch(prompts: [prompts[index]], settings: settings)[0]
            }
            // Tokens at which rows stop at different times, so that the batch becomes smaller on the way.
            let free = try Self.shuffled.indices.map(single)
            settings.stopTokenIDs = Set(free.enumerated().filter { $0.offset % 2 == 0 }.map { $0.element.tokens[5] })
            let expected = try Self.shuffled.indices.map(single)
            #expect(Set(expected.map(\.tokens.count)).count > 2)

            let bank = AdapterBank(on: backbone)
            for name in Self.kinds.keys { try bank.load(folder(name), as: name) }
            let routing = try bank.routing(Self.shuffled)
            #expect(try backbone.generateBatch(prompts: prompts, settings: settings, routing: routing) == expected)
            #expect(
                refusal {
                    _ = try backbone.generateBatch(
                        prompts: Array(prompts.dropLast()), settings: settings, routing: routing)
                }.contains("chosen for 8"))
        }
    }

    /// Adapters come, change and go while a text is being written; the model stays.
    @Test func whatIsUnderWayFinishesOnTheOldAdapter() throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            try save(Self.kinds, on: backbone, folder)
            let ids = try model.tokens(rows: 2, length: 8, seed: 3)
            let frozen = try backbone.frozenBits()
            let expected = try [alone("two", row(ids, 0), folder), alone(nil, row(ids, 1), folder)]
            let replaced = try alone("eight", row(ids, 0), folder)
            do {
                let bank = AdapterBank(on: backbone)
                try bank.load(folder("two"), as: "chosen")
                var context = Context(cache: backbone.makeCache(capacity: 8))
                context.routing = try bank.routing(["chosen", nil])
                func next(_ range: Range<Int>) throws -> Tensor {
                    try withoutGrad {
                        try backbone.logits(ids.narrowed(1, start: range.lowerBound, length: range.count), context)
                    }
                }
                var parts = [try next(0..<3)]
                try bank.load(folder("eight"), as: "chosen")
                parts.append(try next(3..<5))
                try bank.remove("chosen")
                #expect(bank.names.isEmpty)
                parts.append(try next(5..<8))
                let whole = try Tensor.concatenate(parts, dimension: 1)
                for index in 0..<2 { #expect(try relativeGap(row(whole, index), expected[index]) < 5e-6) }

                try bank.load(folder("eight"), as: "chosen")
                context = Context()
                context.routing = try bank.routing(["chosen", nil])
                let now = try backbone.logits(ids, context)
                #expect(try relativeGap(row(now, 0), replaced) < 1e-6)
                #expect(try relativeGap(row(now, 1), expected[1]) < 1e-6)
                // A folder that does not load changes nothing.
                #expect(!refusal { try bank.load(folder("none"), as: "chosen") }.isEmpty)
                #expect(try backbone.logits(ids, context).isIdentical(to: now))
                #expect(refusal { try bank.remove("two") }.contains("loaded are chosen"))
            }
            #expect(backbone.attachPoints.allSatisfy { $0.occupant == nil })
            #expect(try backbone.frozenBits() == frozen)
            #expect(try backbone.logits(ids).isIdentical(to: model.backbone().logits(ids)))
        }
    }

    @Test("two at once in a batch", arguments: MethodCase.all) func twoOfAKindAndNone(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens(rows: 5, length: 6, seed: 8)
        let rows: [String?] = ["b", "a", nil, "b", "a"]
        var expected: [String: Tensor] = [:]
        var made: [Adapter] = []
        let bank = AdapterBank(on: backbone)
        let plain = try backbone.logits(ids)
        // Made while the model is free: the bank takes its places.
        for (seed, name) in ["a", "b"].enumerated() {
            let own = try model.backbone()
            let adapter = try method.adapter(on: own)
            try adapter.randomise(seed: UInt64(seed + 1))
            expected[name] = try own.logits(ids)
            let other = try method.adapter(on: backbone)
            try other.restore(adapter.state)
            other.detach()
            made.append(other)
        }
        for (name, adapter) in zip(["a", "b"], made) {
            do {
                try bank.add(adapter, as: name)
            } catch let error as PEFTError {
                #expect("\(error)".contains("for all rows or for none"), "\(error)")
                #expect(try backbone.logits(ids).isIdentical(to: plain))
                return
            }
        }
        for batch in try bank.batches(rows) {
            var context = Context()
            context.routing = try bank.routing(batch.map { rows[$0] })
            let part = try backbone.logits(ids.gathered(Tensor(batch)), context)
            for (place, index) in batch.enumerated() {
                let own = try rows[index].map { try #require(expected[$0]) } ?? plain
                #expect(try relativeGap(row(part, place), row(own, index)) < 2e-6, "row \(index)")
            }
        }
        guard try bank.batches(rows).count > 1 else { return }
        var context = Context()
        context.routing = try bank.routing(rows)
        #expect(refusal { _ = try backbone.logits(ids, context) }.contains("need a pass without others"))
    }

    @Test func whatCannotBeToldIsRefused() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens(rows: 2)
        let bank = AdapterBank(on: backbone)
        func made(_ settings: KeyedList<JSON> = [:]) throws -> Adapter {
            let adapter = try adapter("lora", settings, on: backbone)
            adapter.detach()
            return adapter
        }
        let (first, nameless) = (try made(), try made())
        try bank.add(first, as: "a")
        #expect(refusal { _ = try backbone.logits(ids) }.contains("routing which row uses which"))
        #expect(try backbone.logits(ids, Context(usesAdapters: false)).isAllFinite())
        var context = Context()
        context.routing = try bank.routing(["a", nil, "a"])
        #expect(refusal { _ = try backbone.logits(ids, context) }.contains("chosen for 3 rows, but the pass has 2"))
        #expect(refusal { _ = try bank.routing(["b"]) }.contains("\"b\""))
        #expect(refusal { try bank.add(nameless, as: "") }.contains("needs a name"))
        for settings: KeyedList<JSON> in [["modules_to_save": ["lm_head"]], ["bias": "all"]] {
            let other = try model.backbone()
            let whole = try adapter("lora", settings, on: other)
            let sentence = refusal { try AdapterBank(on: other).add(whole, as: "x") }
            #expect(sentence.contains("for all rows or for none"), "\(sentence)")
        }
        #expect(refusal { try bank.add(adapter("lora", on: model.backbone()), as: "x") }.contains("another model"))
        let other = try model.backbone()
        let foreign = try adapter("lora", ["target_modules": ["o_proj"]], on: other)
        let second = try adapter("lora", ["target_modules": ["q_proj"]], on: other)
        second.detach()
        foreign.detach()
        let apart = AdapterBank(on: other)
        try foreign.attach()
        try apart.add(second, as: "second")
        foreign.detach()
        let third = try adapter("lora", ["target_modules": ["o_proj"]], on: other)
        third.detach()
        try foreign.attach()
        #expect(refusal { try apart.add(third, as: "third") }.contains("not the bank's"))
        #expect(apart.names == ["second"])
    }
}
