import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What holds for every method while it is trained; a new one joins by its line in the registry.
@Suite struct EveryMethodTrainingTests {
    private let model = SmallModel()

    @Test(arguments: MethodCase.all) func gradientsReachTheTrainableTensorsAndNoOthers(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try method.adapter(on: backbone)
        // A factor behind one that begins at zero has no gradient before that one has moved.
        try adapter.takeSteps(0..<1, on: ids, learningRate: 0.5)
        try adapter.stepBegins(1)
        try nextTokenLoss(backbone, ids).backward()
        var silent = 0
        for trainable in adapter.trainables {
            guard let gradient = trainable.tensor.grad, try !isZero(gradient) else {
                silent += 1
                #expect(method.trainsParts, "\(trainable.name)")
                continue
            }
            #expect(try gradient.isAllFinite() && gradient.shape == trainable.tensor.shape, "\(trainable.name)")
        }
        #expect(silent < adapter.trainables.count)
        for parameter in backbone.parameters {
            #expect(!parameter.frozen.requiresGrad && parameter.frozen.grad == nil, "\(parameter.path)")
        }
        for (name, buffer) in adapter.buffers { #expect(!buffer.requiresGrad, "\(name)") }
    }

    @Test(arguments: MethodCase.all) func stepsLowerTheLossAndChangeNothingElse(method: MethodCase) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try method.adapter(on: backbone)
        let frozen = try backbone.frozenBits()
        let occupants = backbone.attachPoints.map { $0.occupant.map(ObjectIdentifier.init) }
        let before: Double = try nextTokenLoss(backbone, ids).item()
        try adapter.takeSteps(0..<methodSteps, on: ids, learningRate: 0.05)
        #expect(try nextTokenLoss(backbone, ids).item(as: Double.self) < before)
        #expect(try backbone.frozenBits() == frozen)
        #expect(backbone.attachPoints.map { $0.occupant.map(ObjectIdentifier.init) } == occupants)
    }

    @Test(arguments: MethodCase.all) func aResumedRunLearnsTheSameBits(method: MethodCase) throws {
        let ids = try model.tokens()
        let whole = try method.adapter(on: model.backbone())
        try whole.takeSteps(0..<methodSteps, on: ids)
        let begun = try method.adapter(on: model.backbone())
        try begun.takeSteps(0..<3, on: ids)
        let state = try begun.copiedState()
        let resumed = try method.adapter(on: model.backbone())
        try resumed.restore(state)
        try resumed.takeSteps(3..<methodSteps, on: ids)
        #expect(whole.state.keys == resumed.state.keys)
        for (name, tensor) in whole.state {
            #expect(try tensor.isIdentical(to: #require(resumed.state[name])), "\(name)")
        }
    }

    @Test(arguments: MethodCase.all) func adaptsModelsInHalfPrecision(method: MethodCase) throws {
        let (wide, half) = (try model.backbone(), try model.backbone(dtype: .bfloat16))
        let ids = try model.tokens()
        let before = try half.logits(ids)
        let adapters = [try method.adapter(on: wide), try method.adapter(on: half)]
        let start = try half.logits(ids)
        #expect(start.dtype == .bfloat16)
        switch method.start {
        case .identical: #expect(try start.isIdentical(to: before))
        case .withinRounding: #expect(try relativeGap(start, before) < 0.05)
        case .elsewhere: break
        }
        try adapters[0].randomise(seed: 3, by: 0.1)
        try adapters[1].restore(adapters[0].copiedState())
        let adapted = try half.logits(ids)
        #expect(try relativeGap(adapted, wide.logits(ids)) < 0.1)
        if method.mergeRefusal(adapters[1]).isEmpty {
            #expect(try relativeGap(adapters[1].whileMerged { try half.logits(ids) }, adapted) < 0.1)
        }
        try nextTokenLoss(half, ids).backward()
        for trainable in adapters[1].trainables {
            guard let gradient = trainable.tensor.grad else {
                #expect(method.trainsParts, "\(trainable.name)")
                continue
            }
            #expect(try gradient.dtype == .float32 && gradient.isAllFinite(), "\(trainable.name)")
        }
    }

    /// Logits and gradients of rows on their own, and of the same rows behind each other in one sequence.
    @Test(arguments: MethodCase.all) func packedRowsAreApart(method: MethodCase) throws {
        let backbone = try model.backbone()
        let adapter = try method.adapter(on: backbone)
        try adapter.randomise(seed: 3, by: 0.2)
        let lengths = [5, 9, 1, 4]
        let rows = try lengths.enumerated().map { try model.tokens(rows: 1, length: $1, seed: UInt64($0) + 20) }
        var stream = Seed(21).stream("weights of the logits")
        let weights = try Tensor.normal([1, 19, model.vocabulary], from: &stream)

        let apart = try Tensor.concatenate(rows.map { try backbone.logits($0) }, dimension: 1)
        try (apart * weights).sum().backward()
        let expected = try adapter.trainables.map { try $0.tensor.grad?.cloned() }
        try adapter.clearGradients()

        var context = Context()
        context.segments = Segments(lengths)
        let packed = try backbone.logits(Tensor.concatenate(rows, dimension: 1), context)
        #expect(try relativeGap(packed, apart) < 1e-5)
        try (packed * weights).sum().backward()
        for (trainable, expected) in zip(adapter.trainables, expected) {
            guard let gradient = trainable.tensor.grad, let expected else {
                #expect(expected == nil && trainable.tensor.grad == nil, "\(trainable.name)")
                continue
            }
            let isNoise = try isZero(expected) && isZero(gradient)
            #expect(try isNoise || relativeGap(gradient, expected) < 1e-4, "\(trainable.name)")
        }
    }

    /// Over quantised weights a method computes what it does over the values that they stand for.
    @Test(arguments: MethodCase.all, QuantisedBase.allCases)
    func trainsOverQuantisedWeights(method: MethodCase, base: QuantisedBase) async throws {
        let (packed, plain, ids) = try await base.models()
        #expect(packed.heldWeights == base.rawValue)
        #expect(packed.linears.dropLast().allSatisfy { $0.weight.packed != nil })
        #expect(plain.parameters.allSatisfy { $0.packed == nil })
        let adapters = [try method.adapter(on: packed), try method.adapter(on: plain)]
        for (a, b) in zip(adapters[0].trainables, adapters[1].trainables) {
            #expect(a.name == b.name && a.tensor.shape == b.tensor.shape)
            #expect(try relativeGap(a.tensor, b.tensor) < 1e-5, "\(a.name)")
        }
        for adapter in adapters { try adapter.randomise(seed: 3, by: 0.1) }
        #expect(try relativeGap(withoutGrad { try packed.logits(ids) }, plain.logits(ids)) < 1e-5)
        for (adapter, backbone) in zip(adapters, [packed, plain]) {
            try adapter.clearGradients()
            try nextTokenLoss(backbone, ids).backward()
        }
        for (a, b) in zip(adapters[0].trainables, adapters[1].trainables) {
            guard let gradient = a.tensor.grad, let expected = b.tensor.grad else {
                #expect(a.tensor.grad == nil && b.tensor.grad == nil, "\(a.name)")
                continue
            }
            #expect(try relativeGap(gradient, expected) < 1e-4, "\(a.name)")
        }
        let frozen = try packed.frozenBits()
        try adapters[0].takeSteps(0..<2, on: ids)
        #expect(try packed.frozenBits() == frozen)
        if method.mergeRefusal(adapters[0]).isEmpty {
            let adapted = try packed.logits(ids)
            #expect(try relativeGap(adapters[0].whileMerged { try packed.logits(ids) }, adapted) < 1e-5)
        }
    }
}
