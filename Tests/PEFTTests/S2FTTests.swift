import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of S2FT must show.
@Suite struct S2FTTests {
    private let model = SmallModel()
    /// Every structure, with shares at which a small model has units.
    private static let all: KeyedList<JSON> = ["ratio_o": 0.3, "ratio_d": 0.2, "ratio_v": 0.5, "ratio_u": 0.1]

    private func indices(_ adapter: Adapter, _ layer: Linear) throws -> [Int] {
        try #require(adapter.state["base_model.model.\(layer.path).s2ft_indices"]).values()
    }

    private func isInput(_ layer: Linear) -> Bool { layer.role == .output || layer.role == .down }

    private func changes(_ adapter: Adapter) throws -> [ParameterChange] {
        try .init(
            ParameterChange.slices(of: adapter, values: "s2ft_block", indices: "s2ft_indices") {
                isInput($0) ? 1 : 0
            })
    }

    // MARK: - 1. The permuted form

    @Test(arguments: ["llama", "llama-mha", "llama-biases", "qwen2"], [1, 2])
    func indicesAreTheCopermutedBlock(kind: String, seed: Int) async throws {
        let folder = try await TinyModels.shared.folder(kind)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let before = try withoutGrad { try backbone.logits(ids) }
        let adapter = try adapter("s2ft", ["ratio_o": 0.3, "ratio_d": 0.2], on: backbone, seed: UInt64(seed))
        try adapter.randomise(seed: 61, by: 0.1)
        let output = try TemporaryFolder.lasting("s2ft")
        _ = try DenseReference.write(changes(adapter), to: output("blocks"))
        _ = try await Oracle.shared.call(
            "selected.permuted",
            [
                "model_folder": JSON(folder), "tensors": JSON(output("blocks")), "ids": JSON(tokens: exampleTokens),
                "output": JSON(output("permuted")), "seed": JSON(seed),
            ])
        #expect(try relativeGap(before, storedTensor(output("permuted"), "plain")) < 1e-5)
        let adapted = try withoutGrad { try backbone.logits(ids) }
        #expect(try relativeGap(adapted, storedTensor(output("permuted"), "logits")) < 1e-5)
        #expect(try relativeGap(adapted, before) > 1e-2)
    }

    // MARK: - 2. What changes

    @Test func onlyTheChosenUnitsChange() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter("s2ft", Self.all, on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        for _ in 0..<2 {
            try nextTokenLoss(backbone, ids).backward()
            try adapter.descend(0.1)
        }
        for (layer, _) in adapter.updates {
            let chosen = try indices(adapter, layer)
            let merged = try #require(try adapter.merged(layer.weight))
            let change = try merged - layer.weight.frozen
            let axis = isInput(layer) ? 1 : 0
            for feature in 0..<change.size(axis) {
                let isChanged = try !isZero(change.selected(axis, feature))
                #expect(isChanged == chosen.contains(feature), "\(layer.path), feature \(feature)")
            }
            guard let heads = layer.heads else { continue }
            let units = Set(chosen.map { $0 / heads.dimension })
            #expect(chosen.count == units.count * heads.dimension, "whole heads")
        }
    }

    // MARK: - 3. Gradients

    @Test(arguments: ["llama", "llama-biases", "qwen2", "llama-head-dim", "llama-tied"])
    func everyValueIsThatOfTheDenseEvaluation(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let adapter = try adapter("s2ft", Self.all, on: backbone)
        try adapter.randomise(seed: 62, by: 0.1)
        let changes = try changes(adapter)
        let reference = try await DenseReference(model: folder, changes)
        let errors = try reference.check(backbone, changes)
        print("s2ft, \(kind): forward \(errors.forward), gradients \(errors.gradient)")
        #expect(Set(adapter.updates.map(\.linear.role)) == [.output, .down, .value, .up])
    }

    // MARK: - 4. What is kept for the backward pass

    /// A layer that kept its input would refuse to go backward after the input was overwritten.
    @Test(arguments: [LinearRole.output, .down]) func aLayerOfInputsKeepsTheChosenOnesAlone(role: LinearRole) throws {
        func gradients(overwriting: Bool) throws -> [Tensor] {
            let adapter = try adapter("s2ft", ["ratio_o": 0.5, "ratio_d": 0.5], on: model.backbone())
            try adapter.randomise(seed: 63)
            let layer = try #require(adapter.updates.first { $0.linear.role == role }?.linear)
            var stream = Seed(4).stream("input")
            let leaf = try Tensor.normal([2, 5, layer.inFeatures], from: &stream).requiringGrad()
            let input = try leaf * 2
            let output = try layer(input, Context())
            if overwriting { try withoutGrad { try input.fill(.nan) } }
            try output.sum().backward()
            let block = try #require(adapter.trainables.first { $0.name.contains(layer.path) })
            return [try #require(leaf.grad), try #require(block.tensor.grad)]
        }
        for (a, b) in try zip(gradients(overwriting: true), gradients(overwriting: false)) {
            #expect(try a.isIdentical(to: b))
        }
    }

    // MARK: - 5. Count

    @Test func countIsTheFloorOfTheShareOfAllLayersTogether() throws {
        func count(_ model: SmallModel, _ settings: KeyedList<JSON>) throws -> Int {
            try adapter("s2ft", settings, on: model.backbone()).parameterCount
        }
        var llama2 = SmallModel.llama2
        llama2.intermediate = 11008
        #expect(try count(llama2, [:]) == 56_643_584)
        // 8 query heads and 80 channels in all: 2 heads of 8 features and 16 channels of 32.
        #expect(try count(SmallModel(), ["ratio_o": 0.3, "ratio_d": 0.2]) == (2 * 8 + 16) * 32)
        // 4 key/value heads in all.
        #expect(try count(SmallModel(), Self.all) == (2 * 8 + 16 + 2 * 8 + 8) * 32)
        let deep = try adapter("s2ft", on: SmallModel(layers: 12).backbone())
        let widths = deep.trainables.filter { $0.name.contains("down_proj") }.map { $0.tensor.size(1) }
        #expect(widths.reduce(0, +) == 9 && (widths.count < 12 || Set(widths).count > 1), "\(widths)")
    }

    @Test func sharesThatChooseNothingAreRefused() throws {
        let backbone = try model.backbone()
        #expect(
            refusal { _ = try adapter("s2ft", ["ratio_o": 0.1, "ratio_d": 0.01], on: backbone) }
                .contains("come to less than one"))
        #expect(
            refusal { _ = try adapter("s2ft", ["target_modules": ["q_proj"]], on: backbone) }.contains("o_proj"))
        #expect(refusal { _ = try adapter("s2ft", ["ratio_v": 1.5], on: backbone) }.hasPrefix("ratio_v: expected"))
    }

    // MARK: - 6. Several adapters

    @Test func adaptersOfOtherUnitsAddUpAndSwitch() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        var adapters: [Adapter] = []
        for seed in [UInt64](1...2) {
            let adapter = try adapter("s2ft", ["ratio_o": 0, "ratio_d": 0.2], on: backbone, seed: seed)
            try adapter.randomise(seed: 64 + seed)
            adapter.detach()
            adapters.append(adapter)
        }
        func logits(_ adapter: Adapter) throws -> Tensor {
            try adapter.attach()
            defer { adapter.detach() }
            return try backbone.logits(ids)
        }
        let (first, second) = (try logits(adapters[0]), try logits(adapters[1]))
        #expect(try logits(adapters[0]).isIdentical(to: first) && !first.isIdentical(to: second))
        for layer in backbone.linears where layer.role == .down {
            let updates = adapters.compactMap { adapter in adapter.updates.first { $0.linear === layer }?.update }
            let zeros = try layer.weight.frozen.zerosLike()
            let apart = try updates.map { try $0.merged(into: zeros) }
            let together = try updates.reduce(layer.weight.frozen) { try $1.merged(into: $0) }
            let sum = try apart.reduce(layer.weight.frozen) { try $0 + $1 }
            #expect(try together.isIdentical(to: sum), "\(layer.path)")
        }
    }
}
