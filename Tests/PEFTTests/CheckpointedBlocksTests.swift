import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Blocks that the backward pass computes again are to change nothing but what is kept.
@Suite struct CheckpointedBlocksTests {
    /// Methods that leave the blocks' execution alone.
    static let names = MethodRegistry.entries.map(\.name).filter { $0 != "meft" }

    /// The gradients of an adapter, dropout included, with so many blocks computed again; nil: without checkpoints.
    private func gradients(
        _ name: String, count: Int?, model: SmallModel = SmallModel(layers: 3), dtype: DType = .float32,
        context: Context? = nil, settings: KeyedList<JSON> = [:]
    ) throws -> (loss: Double, gradients: [Tensor]) {
        let backbone = try model.backbone(seed: 3, dtype: dtype)
        var settings = settings
        for (key, value) in MethodCase.all.first(where: { $0.name == name })?.settings ?? [:] {
            settings.appendIfNew(key: key, value: value)
        }
        let dropout = try AdapterConfiguration(method: name).keys.first { $0.hasSuffix("dropout") }
        // Where a dropout would do nothing, it is refused.
        if let dropout, refusal({ _ = try AdapterConfiguration(method: name, settings: [dropout: 0.25]) }).isEmpty {
            settings[dropout] = 0.25
        }
        let adapter = try adapter(name, settings, on: backbone)
        try adapter.randomise(seed: 5, by: 0.1)
        if let count {
            backbone.blockStack.execution = CheckpointedBlocks(count: count, trained: adapter.trainables.map(\.tensor))
        }
        let context = context ?? Context(dropout: DropoutSource(seed: Seed(4), pass: "2/0"))
        let rows = context.segments == nil ? 2 : 1
        let ids = try model.tokens(rows: rows, length: 12, seed: 9)
        let states = try backbone.hiddenStates(ids, context).to(dtype: .float32)
        let loss = try (states * states.detached().absolute()).mean()
        try loss.backward()
        return (try loss.item(), try adapter.trainables.map { try $0.tensor.grad ?? $0.tensor.zerosLike() })
    }

    @Test(arguments: names) func gradientsAreThoseOfKeptActivations(name: String) throws {
        let kept = try gradients(name, count: nil)
        for count in [1, 3] {
            let again = try gradients(name, count: count)
            // A mean of terms of size one, which cancel: it rounds as they do.
            #expect(abs(again.loss - kept.loss) <= 1e-6)
            for (found, expected) in zip(again.gradients, kept.gradients) {
                #expect(try relativeGap(found, expected) < 1e-5, "\(count) blocks")
            }
        }
    }

    /// Where every tensor belongs to one block, no sum has another order.
    @Test(arguments: [DType.float32, .bfloat16]) func loraIsEqualBitForBit(dtype: DType) throws {
        let settings: KeyedList<JSON> = ["target_modules": "all-linear"]
        let kept = try gradients("lora", count: 0, dtype: dtype, settings: settings)
        let again = try gradients("lora", count: 3, dtype: dtype, settings: settings)
        #expect(again.loss == kept.loss)
        for (found, expected) in zip(again.gradients, kept.gradients) { #expect(try found.isIdentical(to: expected)) }
    }

    @Test func packedRowsAreComputedAgainApart() throws {
        var context = Context(dropout: DropoutSource(seed: Seed(4), pass: "2/0"))
        context.segments = Segments([5, 1, 6])
        let kept = try gradients("lora", count: 0, context: context)
        let again = try gradients("lora", count: 3, context: context)
        #expect(again.loss == kept.loss)
        for (found, expected) in zip(again.gradients, kept.gradients) {
            #expect(try relativeGap(found, expected) < 1e-6)
        }
    }

    /// The bytes that a forward pass leaves for the backward pass, and the most that both hold.
    private func memory(layers: Int, count: Int, _ settings: KeyedList<JSON> = [:]) throws -> (kept: Int, peak: Int) {
        let model = SmallModel(layers: layers)
        let backbone = try model.backbone()
        let adapter = try adapter("lora", settings, on: backbone)
        let ids = try model.tokens(rows: 4, length: 48)
        backbone.blockStack.execution = CheckpointedBlocks(count: count, trained: adapter.trainables.map(\.tensor))
        return try Memory.watching { held in
            let states = try backbone.hiddenStates(ids, Context())
            let kept = try held().now
            try states.sum().backward()
            return (kept, try held().peak)
        }
    }

    @Test func onlyTheInputsOfBlocksAreKept() throws {
        let stream = 4 * 48 * 32 * 4
        let (few, many) = (try memory(layers: 2, count: 2), try memory(layers: 8, count: 8))
        #expect(abs(many.kept - few.kept - 6 * stream) < stream / 2, "\(few.kept) and \(many.kept) bytes")
        let all = try memory(layers: 8, count: 0)
        #expect(many.kept < all.kept / 4 && many.peak < all.peak / 2)
        let half = try memory(layers: 8, count: 4)
        #expect(half.peak < all.peak && half.peak > many.peak)
    }

    /// Blocks below the lowest adapted one keep nothing, and are not computed a second time either.
    @Test func blocksWithoutGradientAreLeftAlone() throws {
        let upper: KeyedList<JSON> = ["layers_to_transform": [6, 7]]
        let all = try memory(layers: 8, count: 0, upper)
        let again = try memory(layers: 8, count: 8, upper)
        let stream = 4 * 48 * 32 * 4
        #expect(again.kept < all.kept)
        #expect(again.kept < 6 * stream)
        let model = SmallModel(layers: 4)
        let backbone = try model.backbone()
        let adapter = try adapter("lora", ["layers_to_transform": [3]], on: backbone)
        backbone.blockStack.execution = CheckpointedBlocks(count: 4, trained: adapter.trainables.map(\.tensor))
        try nextTokenLoss(backbone, model.tokens()).backward()
        #expect(try adapter.trainables.allSatisfy { try #require($0.tensor.grad).isAllFinite() })
    }

    @Test func generationAndEvaluationAreAsWithout() throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        try adapter("lora", on: backbone).randomise(seed: 2)
        let ids = try model.tokens()
        let before = try withoutGrad { try backbone.logits(ids) }
        backbone.blockStack.execution = CheckpointedBlocks(count: 2, trained: [])
        // The plain run adds a sublayer's output within the norm that follows.
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, before) < 1e-6)
        let cache = KeyValueCache(layers: backbone.configuration.numHiddenLayers, capacity: 16)
        let parts = try [(0, 5), (5, 4)].map { start, length in
            try backbone.logits(ids.narrowed(1, start: start, length: length), Context(cache: cache))
        }
        #expect(try relativeGap(Tensor.concatenate(parts, dimension: 1), before) < 1e-5)
    }
}
