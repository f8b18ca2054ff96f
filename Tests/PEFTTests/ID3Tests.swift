import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of ID3 must show.
@Suite struct ID3Tests {
    private let model = SmallModel(layers: 1)

    /// A step of the method on a loss, and of plain gradient descent with decay where the method allows it.
    private func step(_ adapter: Adapter, _ step: Int, _ ids: Tensor, rate: Double = 0.1) throws {
        try adapter.stepBegins(step)
        try nextTokenLoss(adapter.backbone, ids).backward()
        try adapter.gradientsAreReady(step)
        try adapter.descend(rate)
        try adapter.stepEnded(step)
    }

    private func masks(_ adapter: Adapter) throws -> [[Bool]] {
        try adapter.trainables.map { trainable in
            try #require(adapter.buffers[trainable.name + ".unmasked"]).reshaped([-1]).values(as: Bool.self)
        }
    }

    private func unmasked(_ adapter: Adapter) throws -> Int {
        try masks(adapter).reduce(0) { $0 + $1.count { $0 } }
    }

    // MARK: - 1, 2 and 4. The schedule

    @Test(arguments: [(7, 40), (5, 40), (3, 2), (4, 1001)]) func theMaskGrowsByTheSchedule(steps: Int, budget: Int)
        throws
    {
        let adapter = try adapter("id3", ["budget": JSON(budget), "max_steps": JSON(steps)], on: model.backbone())
        let ids = try model.tokens()
        let start = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        var (before, updates) = (try masks(adapter), 0)
        for index in 0..<steps {
            try step(adapter, index, ids)
            let after = try masks(adapter)
            for (old, new) in zip(before, after) { #expect(zip(old, new).allSatisfy { !$0 || $1 }, "a scalar closed") }
            let expected = (0...index).reduce(0) { $0 + budget / steps + ($1 < budget % steps ? 1 : 0) }
            #expect(try unmasked(adapter) == expected, "step \(index)")
            (before, updates) = (after, updates + expected)
        }
        #expect(try unmasked(adapter) == budget && adapter.parameterCount == budget)
        if budget % steps == 0 { #expect(updates == budget * (steps + 1) / 2) }
        try step(adapter, steps, ids)
        #expect(try unmasked(adapter) == budget, "nothing is unmasked after the last step")
        for ((trainable, old), mask) in zip(zip(adapter.trainables, start), before) {
            let (now, then) = (try trainable.tensor.values(as: Float.self), try old.values(as: Float.self))
            for index in now.indices where !mask[index] { #expect(now[index] == then[index]) }
        }
    }

    @Test func tiedScoresGoToTheFirst() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("id3", ["budget": 100, "max_steps": 3, "exp": 0], on: backbone)
        for (index, expected) in [34, 67, 100].enumerated() {
            for trainable in adapter.trainables {
                try trainable.tensor.setGrad(Tensor.full(trainable.tensor.shape, 0.5))
            }
            try adapter.gradientsAreReady(index)
            let flat = try masks(adapter).flatMap { $0 }
            #expect(flat.prefix(expected).allSatisfy { $0 } && !flat.dropFirst(expected).contains(true))
        }
    }

    // MARK: - 3. The score

    @Test(arguments: [
        ("increment", 0.0), ("increment", 50), ("increment", 1), ("static", 2), ("pafi", 1), ("repeat", 1),
    ])
    func theLargestScoresAreChosen(rule: String, exponent: Double) async throws {
        let budget = 300
        let adapter = try adapter(
            "id3",
            ["budget": JSON(budget), "max_steps": 1, "exp": JSON(exponent), "eps": 1e-3, "selection": JSON(rule)],
            on: model.backbone())
        try nextTokenLoss(adapter.backbone, model.tokens()).backward()
        let folder = try TemporaryFolder.lasting("id3")
        var tensors = KeyedList<Tensor>()
        for (index, trainable) in adapter.trainables.enumerated() {
            tensors["w\(index)"] = try trainable.tensor.detached().reshaped([-1])
            tensors["g\(index)"] = try #require(trainable.tensor.grad).reshaped([-1])
        }
        try SafetensorsWriter.write(tensors, to: folder("scalars"))
        let chosen = try await Oracle.shared.call(
            "selected.largest_scores",
            [
                "tensors": JSON(folder("scalars")), "count": JSON(budget), "exponent": JSON(exponent), "epsilon": 1e-3,
                "rule": JSON(rule),
            ])
        try adapter.gradientsAreReady(0)
        let flat = try masks(adapter).flatMap { $0 }
        let found = flat.indices.filter { flat[$0] }
        #expect(found == chosen.array?.compactMap(\.int))
    }

    @Test func otherRulesChooseOnce() throws {
        let ids = try model.tokens()
        for rule in ["static", "pafi", "random"] {
            let adapter = try adapter(
                "id3", ["budget": 90, "selection": JSON(rule), "max_steps": 4], on: model.backbone())
            try step(adapter, 0, ids)
            let first = try masks(adapter)
            #expect(try unmasked(adapter) == 90)
            try step(adapter, 1, ids)
            #expect(try masks(adapter) == first, "\(rule)")
        }
        let anew = try adapter("id3", ["budget": 90, "selection": "repeat", "max_steps": 3], on: model.backbone())
        for index in 0..<3 {
            try step(anew, index, ids)
            #expect(try unmasked(anew) == 30)
        }
    }

    @Test func theScheduleMustBeKnown() throws {
        let adapter = try adapter("id3", ["budget": 10], on: model.backbone())
        #expect(refusal { try adapter.stepBegins(0) }.contains("has a schedule"))
        try adapter.trainingBegins(totalSteps: 5)
        try step(adapter, 0, model.tokens())
        #expect(try unmasked(adapter) == 2)
        adapter.detach()
        let sentence = refusal { _ = try PEFTTests.adapter("id3", ["budget": 10_000_000], on: adapter.backbone) }
        #expect(sentence.hasPrefix("budget: expected at most"))
    }

    // MARK: - 6. The folder

    @Test func theFolderHoldsTheScalarsAndTheirPlaces() throws {
        let backbone = try SmallModel(hidden: 64, headDim: 16, layers: 2).backbone()
        let ids = try model.tokens()
        let adapter = try adapter("id3", ["budget": 500, "max_steps": 3], on: backbone)
        for index in 0..<3 { try step(adapter, index, ids) }
        let adapted = try backbone.logits(ids)
        let values = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        let folder = try TemporaryFolder.lasting("id3")
        try adapter.save(to: folder("adapter"))
        let names = adapter.copies.map { ($0.parameter, $0.tensor) }
        adapter.detach()
        let file = try SafetensorsFile(path: folder("adapter/adapter_model.safetensors"))
        let stored = file.tensors.filter { $0.key.hasSuffix(".values") }.reduce(0) { $0 + $1.value.elementCount }
        #expect(stored == 500)
        // 12 bytes a scalar, and a header of two entries a tensor.
        #expect(file.file.bytes.count < 500 * 12 + 300 * 2 * names.count)
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        // Parameters that are trained and those that only stand in have different kernels.
        #expect(try relativeGap(backbone.logits(ids), adapted) < 1e-6)
        #expect(loaded.parameterCount == 500)
        for ((parameter, _), expected) in zip(names, values) {
            #expect(try parameter.value().isIdentical(to: expected), "\(parameter.path)")
        }
        loaded.detach()
        #expect(backbone.parameters.allSatisfy { $0.replacement == nil })
    }
}
