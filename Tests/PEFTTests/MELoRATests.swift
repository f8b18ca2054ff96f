import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of MELoRA must show.
@Suite struct MELoRATests {
    private let model = SmallModel()
    /// One square matrix of 64 features a role.
    private let square = SmallModel(hidden: 64, heads: 4, keyValueHeads: 4, headDim: 16, layers: 1)

    @Test(arguments: [0, 0.3]) func oneMiniIsLoRABitForBit(dropout: Double) throws {
        let ids = try model.tokens()
        let settings: KeyedList<JSON> = ["lora_dropout": JSON(dropout), "lora_alpha": 16]
        var alone = settings
        alone["l_num"] = 1
        let (mini, plain) = (try model.backbone(), try model.backbone())
        let adapters = [try adapter("melora", alone, on: mini), try adapter("lora", settings, on: plain)]
        #expect(adapters[0].trainables.map(\.name) == adapters[1].trainables.map(\.name))
        for (a, b) in zip(adapters[0].trainables, adapters[1].trainables) {
            #expect(try a.tensor.isIdentical(to: b.tensor))
        }
        for adapter in adapters { try adapter.randomise(seed: 41) }
        let context = Context(dropout: DropoutSource(seed: Seed(1), pass: "1"))
        #expect(try mini.logits(ids, context).isIdentical(to: plain.logits(ids, context)))
        for backbone in [mini, plain] { try nextTokenLoss(backbone, ids).backward() }
        for (a, b) in zip(adapters[0].trainables, adapters[1].trainables) {
            #expect(try #require(a.tensor.grad).isIdentical(to: #require(b.tensor.grad)))
        }
    }

    @Test(arguments: [2, 4, 8]) func theUpdateIsBlockDiagonal(minis: Int) throws {
        let adapter = try adapter(
            "melora", ["l_num": JSON(minis), "r": 3, "lora_alpha": 5, "target_modules": "all-linear"],
            on: model.backbone())
        try adapter.randomise(seed: 42)
        for (layer, update) in try adapter.lowRankUpdates() {
            let (a, b) = (
                try adapter.tensor(layer.path + ".lora_A.weight"), try adapter.tensor(layer.path + ".lora_B.weight")
            )
            let (inputs, outputs) = (layer.inFeatures / minis, layer.outFeatures / minis)
            let dense = try update.dense()
            for i in 0..<minis {
                for j in 0..<minis {
                    let block = try dense.narrowed(0, start: i * outputs, length: outputs)
                        .narrowed(1, start: j * inputs, length: inputs)
                    if i == j {
                        let mini = try b.narrowed(0, start: i * outputs, length: outputs)
                            .matmul(a.narrowed(0, start: i * 3, length: 3))
                        #expect(try relativeGap(block, mini * (5.0 / 3)) < 1e-6)
                    } else {
                        #expect(try isZero(block), "\(layer.path) \(i) \(j)")
                    }
                }
            }
        }
    }

    @Test func ranksAddUpAndTheCountStays() throws {
        for (minis, rank) in [(8, 2), (4, 2), (2, 5)] {
            let adapter = try adapter(
                "melora", ["l_num": JSON(minis), "r": JSON(rank), "target_modules": ["q_proj"]], on: square.backbone())
            try adapter.randomise(seed: 43)
            #expect(adapter.parameterCount == rank * 128)
            for (_, update) in try adapter.lowRankUpdates() {
                #expect(try numericalRank(update.dense()) == minis * rank)
            }
        }
        func count(_ model: SmallModel, _ rank: Int, _ minis: Int) throws -> Int {
            try adapter("melora", ["r": JSON(rank), "l_num": JSON(minis)], on: model.backbone()).parameterCount
        }
        #expect(try count(.llama2, 1, 8) == 524_288)
        #expect(try count(.robertaBase, 8, 2) == 294_912)
        #expect(try count(.robertaBase, 1, 8) == 36_864)
    }

    @Test func aChunkOfTheInputsReachesItsChunkOfTheOutputsOnly() throws {
        let adapter = try adapter("melora", ["l_num": 4], on: model.backbone())
        try adapter.randomise(seed: 44)
        for (layer, update) in try adapter.lowRankUpdates() {
            var stream = Seed(45).stream(layer.path)
            let x = try Tensor.normal([2, 3, layer.inFeatures], from: &stream)
            let before = try update(x)
            let (inputs, outputs) = (layer.inFeatures / 4, layer.outFeatures / 4)
            for chunk in 0..<4 {
                let changed = try x.cloned()
                try changed.narrowed(2, start: chunk * inputs, length: inputs).fill(0.5)
                let after = try update(changed)
                for place in 0..<4 {
                    let (a, b) = (
                        try before.narrowed(2, start: place * outputs, length: outputs),
                        try after.narrowed(2, start: place * outputs, length: outputs)
                    )
                    if place == chunk {
                        #expect(try relativeGap(b, a) > 1e-2)
                    } else {
                        #expect(try relativeGap(b, a) < 1e-6)
                    }
                }
            }
        }
    }

    /// One mini after the other on its own chunk, with dropout of its own, is what all together compute.
    @Test(arguments: [0, 0.4]) func minisOneByOneComputeTheSame(dropout: Double) throws {
        let adapter = try adapter("melora", ["l_num": 4, "lora_dropout": JSON(dropout)], on: model.backbone())
        try adapter.randomise(seed: 46)
        let source = DropoutSource(seed: Seed(47), pass: "1")
        for (layer, _) in adapter.updates {
            var stream = Seed(48).stream(layer.path)
            let x = try Tensor.normal([6, layer.inFeatures], from: &stream)
            let kept = try source.apply(x, probability: dropout, name: layer.path).split(
                [layer.inFeatures / 4].repeated(4))
            let a = try adapter.tensor(layer.path + ".lora_A.weight").split([8, 8, 8, 8], dimension: 0)
            let b = try adapter.tensor(layer.path + ".lora_B.weight")
                .split([layer.outFeatures / 4].repeated(4), dimension: 0)
            let parts = try (0..<4).map { try linear(linear(kept[$0], a[$0]), b[$0]) * 2.0 }
            let expected = try layer.base(x) + Tensor.concatenate(parts, dimension: 1)
            #expect(try relativeGap(layer(x, Context(dropout: source)), expected) < 1e-5)
        }
    }

    @Test func theStartHasTheBoundOfAChunk() throws {
        let adapter = try adapter("melora", ["l_num": 4, "r": 16], on: square.backbone())
        let largest: Double = try adapter.tensor("lora_A.weight").absolute().maximum().item()
        #expect(largest <= 0.25 && largest > 0.24)
        #expect(try isZero(adapter.tensor("lora_B.weight")))
    }

    @Test func chunksThatDoNotFitAreRefused() throws {
        let sentence = refusal { _ = try adapter("melora", ["l_num": 3], on: model.backbone()) }
        #expect(sentence.hasPrefix("l_num: expected a divisor of 32 and 32, sizes of model.layers.0.self_attn.q_proj"))
        #expect(sentence.hasSuffix("found 3; what divides those of all selected layers is 1, 2, 4, 8, 16"))
        let none = refusal { _ = try adapter("melora", ["l_num": 0], on: model.backbone()) }
        #expect(none.hasPrefix("l_num: expected a positive whole number"))
    }
}

extension Array {
    fileprivate func repeated(_ count: Int) -> [Element] { (0..<count).flatMap { _ in self } }
}
