import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Merging into a model in memory and taking it back: what is restored are the saved bits, not a difference.
@Suite struct UnmergeTests {
    /// Those that can be merged.
    private static let methods = MethodCase.all.filter(\.canBeMerged)
    private static let dtypes: [DType] = [.float32, .bfloat16, .float16]

    private func frozenBits(_ backbone: any Backbone) throws -> [[UInt8]] {
        try backbone.parameters.map { try bits($0.frozen) }
    }

    /// Many times over, as in training by reinforcement, and each time with other values.
    private func check(_ adapter: Adapter, _ backbone: any Backbone, _ ids: Tensor) throws {
        let frozen = try frozenBits(backbone)
        let plain = try bits(backbone.logits(ids, Context(usesAdapters: false)))
        var seen: Set<[UInt8]> = []
        for round in 0..<3 {
            try adapter.randomise(seed: UInt64(round), by: 0.1)
            let adapted = try bits(backbone.logits(ids))
            try adapter.mergeIntoBackbone()
            let merged = try bits(backbone.logits(ids))
            #expect(merged != plain && seen.insert(merged).inserted)
            try adapter.unmerge()
            #expect(try bits(backbone.logits(ids)) == adapted)
            #expect(try bits(backbone.logits(ids, Context(usesAdapters: false))) == plain)
        }
        try adapter.mergeIntoBackbone()
        adapter.detach()
        #expect(try bits(backbone.logits(ids)) == plain)
        #expect(try frozenBits(backbone) == frozen)
    }

    @Test("merge -> unmerge bit-equal; merge --verify", arguments: methods, dtypes)
    func bitEqual(method: MethodCase, dtype: DType) async throws {
        let model = SmallModel()
        let backbone = try model.backbone(dtype: dtype)
        try withoutGrad { try check(method.adapter(on: backbone), backbone, model.tokens()) }

        // The same on disk: `merge --verify` runs base with adapter and the merged model side by side.
        guard dtype != .float16 else { return }
        let folder = try await TinyModels.shared.folder("llama", dtype: "\(dtype)")
        try withTemporaryFolder { temporary in
            let base = try Checkpoint(folder).backbone(dtype: .float32)
            let trained = try method.adapter(on: base)
            try trained.randomise(seed: 5, by: 0.05)
            try trained.save(to: temporary("adapter"))
            let merger = Merger(try Checkpoint(folder), adapter: temporary("adapter"))
            let report = try merger.write(to: temporary("merged"))
            let comparison = try merger.verify(temporary("merged"), prompts: exampleTokens)
            #expect(comparison.largestLogit > 0.1 && comparison.positions == 14)
            // Biases that a model gets with a merge are zero in the layers that are not adapted.
            let changesWeights = !["bitfit", "hut"].contains(method.name)
            #expect(method.name == "bitfit" || report.changes.contains { $0.update > 0 })
            #expect(report.changes.allSatisfy { $0.update > 0 } == changesWeights)
            if dtype == .float32 {
                #expect(report.relativeLoss == 0 && comparison.argmaxAgreement == 1)
                #expect(comparison.largestDifference < 1e-4 * max(1, comparison.largestLogit))
            } else {
                // Every layer's share of the update that rounding took is told.
                #expect(report.changes.allSatisfy { $0.relativeLoss > 0 && $0.relativeLoss < 1 } == changesWeights)
                #expect(comparison.largestDifference > 0)
                #expect(comparison.largestDifference < 0.1 * max(1, comparison.largestLogit))
            }
        }
    }

    /// The blocks of a GGUF file are expanded when they are loaded; the expanded bits come back.
    @Test(arguments: dtypes) func blocksOfGGUF(dtype: DType) throws {
        let backbone = try Checkpoint(RepositoryPaths.required(RepositoryPaths.smolLM2)).backbone(dtype: dtype)
        let settings: KeyedList<JSON> = ["target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 29]]
        let adapter = try adapter("lora", settings, on: backbone)
        let touched = Set(adapter.updates.map { $0.linear.weight.path })
        try withoutGrad {
            let weights = backbone.parameters.filter { touched.contains($0.path) }
            let before = try weights.map { try bits($0.frozen) }
            let ids = try Tensor([3, 14, 15, 92, 65], shape: [1, 5])
            let plain = try bits(backbone.logits(ids))
            try adapter.randomise(seed: 2, by: 0.1)
            try adapter.mergeIntoBackbone()
            #expect(try bits(backbone.logits(ids)) != plain)
            adapter.detach()
            #expect(try bits(backbone.logits(ids)) == plain)
            #expect(try weights.map { try bits($0.frozen) } == before)
        }
    }

    /// Adapters on different layers are merged and taken off in any order.
    @Test(arguments: [[0, 1, 2], [2, 1, 0], [1, 2, 0]]) func severalInAnyOrder(order: [Int]) throws {
        let model = SmallModel()
        let backbone = try model.backbone(dtype: .bfloat16)
        let ids = try model.tokens()
        try withoutGrad {
            let plain = try bits(backbone.logits(ids))
            let frozen = try frozenBits(backbone)
            let adapters = try [["q_proj", "up_proj"], ["v_proj"], ["down_proj", "lm_head"]].map { modules in
                let settings: KeyedList<JSON> = ["target_modules": JSON(modules.map { JSON($0) })]
                return try adapter(modules.count == 1 ? "dora" : "lora", settings, on: backbone)
            }
            for adapter in adapters { try adapter.randomise(seed: 4, by: 0.1) }
            let adapted = try bits(backbone.logits(ids))
            for adapter in adapters { try adapter.mergeIntoBackbone() }
            let merged = try bits(backbone.logits(ids))
            for index in order { try adapters[index].unmerge() }
            #expect(try bits(backbone.logits(ids)) == adapted)
            for index in order { try adapters[index].mergeIntoBackbone() }
            #expect(try bits(backbone.logits(ids)) == merged)
            for index in order { adapters[index].detach() }
            #expect(try bits(backbone.logits(ids)) == plain)
            #expect(try frozenBits(backbone) == frozen)
            #expect(backbone.parameters.allSatisfy { $0.replacement == nil })
        }
    }

    /// Two adapters on one layer would be one: the second is refused, whatever the first one's state.
    @Test func oneLayerHasOneAdapter() throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let settings: KeyedList<JSON> = ["target_modules": ["q_proj"], "modules_to_save": ["norm"]]
        let first = try adapter("lora", settings, on: backbone)
        try first.randomise(seed: 1)
        let adapted = try bits(withoutGrad { try backbone.logits(ids) })
        func second() throws -> Adapter { try adapter("lora", ["target_modules": ["q_proj"]], on: backbone) }
        #expect(refusal { _ = try second() }.contains("already has an adapter"))
        try first.mergeIntoBackbone()
        #expect(refusal { _ = try second() }.contains("unmerge or detach that adapter first"))
        #expect(
            refusal {
                _ = try adapter("lora", ["target_modules": ["v_proj"], "modules_to_save": ["norm"]], on: backbone)
            }
            .contains("already trained by another adapter"))
        // What was refused has changed nothing.
        try first.unmerge()
        #expect(try bits(withoutGrad { try backbone.logits(ids) }) == adapted)

        first.detach()
        let other = try second()
        #expect(refusal { try first.attach() }.contains("already has an adapter"))
        #expect(refusal { try first.mergeIntoBackbone() }.contains("already has an adapter"))
        first.detach()
        #expect(backbone.linears.count { $0.adapter != nil } == other.updates.count)
        try other.mergeIntoBackbone()
        #expect(refusal { try first.attach() }.contains("unmerge or detach that adapter first"))
        other.detach()
        try first.attach()
        #expect(try bits(withoutGrad { try backbone.logits(ids) }) == adapted)
    }
}
