import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of LoRTA must show.
@Suite struct LoRTATests {
    private static let factorNames = ["lorta_A", "lorta_B", "lorta_C_H", "lorta_C_L", "lorta_C_M"]

    // MARK: - 1. The updates

    @Test func everyUpdateIsZeroAtTheStart() throws {
        let adapter = try adapter("lorta", on: SmallModel(layers: 3).backbone())
        let updates = try adapter.lowRankUpdates()
        #expect(updates.count == 12)
        for (layer, update) in updates { #expect(try isZero(update.dense()), "\(layer.path)") }
        #expect(adapter.trainables.map(\.name) == Self.factorNames.map { "base_model." + $0 })
    }

    /// Models with what they are called and the orientations that they allow.
    private static let cases: [(model: SmallModel, orientation: String)] = [
        (.multiHead, "natural"), (.multiHead, "lit"), (.multiHead, "peft"), (SmallModel(), "natural"),
        (SmallModel(), "lit"), (.wideHeads, "natural"), (SmallModel(keyValueHeads: 1), "natural"),
    ]

    @Test(arguments: cases.indices) func everyUpdateIsTheSumOverComponents(index: Int) async throws {
        let (model, orientation) = Self.cases[index]
        let adapter = try adapter(
            "lorta", ["r": 5, "lorta_alpha": 3, "orientation": JSON(orientation)], on: model.backbone())
        try adapter.randomise(seed: 31, by: 0.7)
        let folder = try TemporaryFolder.lasting("lorta")
        try SafetensorsWriter.write(adapter.exported().tensors, to: folder("factors"))
        _ = try await Oracle.shared.call(
            "lorta.updates",
            [
                "factors": JSON(folder("factors")), "output": JSON(folder("updates")), "scale": JSON(3.0 / 5),
                "orientation": JSON(orientation), "kv_heads": JSON(model.keyValueHeads),
            ])
        let expected = try SafetensorsFile(path: folder("updates"))
        #expect(expected.tensors.count == 8)
        for (layer, update) in try adapter.lowRankUpdates() {
            let matrix = try #require([LinearRole.query, .key, .value, .output].firstIndex(of: layer.role))
            let dense = try update.dense()
            #expect(dense.shape == [layer.outFeatures, layer.inFeatures])
            let block = try #require(layer.layer)
            let reference = try expected.tensor("\(block).\(matrix)").tensor()
            #expect(try relativeGap(dense, reference) < 1e-5, "\(layer.path)")
        }
    }

    // MARK: - 2. Merging

    @Test(arguments: cases.indices) func mergedAndFactoredFormsAgree(index: Int) throws {
        let (model, orientation) = Self.cases[index]
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(
            "lorta", ["orientation": JSON(orientation), "use_rslora": true, "lorta_alpha": 20], on: backbone)
        try adapter.randomise(seed: 32)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        let scales = try Set(adapter.lowRankUpdates().map(\.update.scale))
        #expect(scales == [20 / 8.0.squareRoot()])
    }

    // MARK: - 3. Count

    @Test func countGrowsWithTheSumOfTheSizes() throws {
        func count(_ model: SmallModel, _ rank: Int) throws -> Int {
            try adapter("lorta", ["r": JSON(rank)], on: model.backbone()).parameterCount
        }
        #expect(try count(.robertaBase, 1) == 860)
        #expect(try count(.robertaBase, 8) == 6_880)
        #expect(try count(.llama2, 8) == 34_336)
        #expect(try count(.llama2, 128) == 549_376)
        // Fewer key/value heads change nothing, heads wider than the stream only the size of B.
        #expect(try count(SmallModel(), 3) == 3 * (32 + 8 + 4 + 2 + 4))
        #expect(try count(.wideHeads, 3) == 3 * (32 + 12 + 4 + 2 + 4))
    }

    // MARK: - 4. Rank

    @Test func allUpdatesTogetherHaveTheRank() throws {
        let (rank, dim) = (5, 4)
        let backbone = try SmallModel(heads: 8, keyValueHeads: 4, headDim: dim, layers: 3).backbone()
        let adapter = try adapter("lorta", ["r": JSON(rank)], on: backbone)
        try adapter.randomise(seed: 33)
        // With the features of the stream as columns.
        func tall(_ adapter: Adapter) throws -> [Tensor] {
            try adapter.lowRankUpdates().map {
                try $0.linear.role == .output ? $0.update.dense().transposed() : $0.update.dense()
            }
        }
        let updates = try tall(adapter)
        for update in updates {
            #expect(try numericalRank(update) <= rank)
            for head in stride(from: 0, to: update.size(0), by: dim) {
                #expect(try numericalRank(update.narrowed(0, start: head, length: dim)) <= min(rank, dim))
            }
        }
        #expect(try numericalRank(Tensor.concatenate(updates)) == rank)
        adapter.detach()
        let separate = try PEFTTests.adapter(
            "lora", ["r": JSON(rank), "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]], on: backbone)
        try separate.randomise(seed: 33)
        #expect(try numericalRank(Tensor.concatenate(tall(separate))) > rank)
    }

    // MARK: - 5. What rows stand for

    /// Updates before and after one row of a factor is set to zero.
    private func updates(
        _ model: SmallModel, zeroing row: Int, of name: String
    ) throws -> [(layer: Linear, before: Tensor, after: Tensor)] {
        let adapter = try adapter("lorta", on: model.backbone())
        try adapter.randomise(seed: 34)
        let before = try adapter.lowRankUpdates().map { try $0.update.dense().detached() }
        try withoutGrad { try adapter.tensor(name).selected(0, row).fill(0) }
        return try zip(adapter.lowRankUpdates(), before).map { ($0.linear, $1, try $0.update.dense().detached()) }
    }

    @Test func aRowOfLayersIsOneBlock() throws {
        for (layer, before, after) in try updates(SmallModel(layers: 3), zeroing: 1, of: "lorta_C_L") {
            if layer.layer == 1 {
                #expect(try isZero(after) && !isZero(before))
            } else {
                #expect(try after.isIdentical(to: before))
            }
        }
    }

    @Test(arguments: [4, 2, 1], [0, 2]) func aRowOfHeadsIsOneHead(keyValueHeads: Int, row: Int) throws {
        let model = SmallModel(keyValueHeads: keyValueHeads)
        for (layer, before, after) in try updates(model, zeroing: row, of: "lorta_C_H") {
            let heads = try #require(layer.heads)
            let group = 4 / heads.count
            let axis = layer.role == .output ? 1 : 0
            for head in 0..<heads.count {
                let part = try after.narrowed(axis, start: head * 8, length: 8)
                if head * group == row {
                    #expect(try isZero(part), "\(layer.path) head \(head)")
                } else {
                    let kept = try before.narrowed(axis, start: head * 8, length: 8)
                    #expect(try relativeGap(part, kept) < 1e-6 && !isZero(part), "\(layer.path) head \(head)")
                }
            }
        }
    }

    @Test(arguments: [LinearRole.query, .key, .value, .output]) func aRowOfMatricesIsOneRole(role: LinearRole) throws {
        let row = try #require([LinearRole.query, .key, .value, .output].firstIndex(of: role))
        for (layer, before, after) in try updates(SmallModel(), zeroing: row, of: "lorta_C_M") {
            if layer.role == role {
                #expect(try isZero(after) && !isZero(before))
            } else {
                #expect(try after.isIdentical(to: before))
            }
        }
    }

    // MARK: - 6. The first gradients

    @Test func onlyTheSecondFactorHasAGradientAtFirst() throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        let adapter = try adapter("lorta", on: backbone)
        try nextTokenLoss(backbone, model.tokens()).backward()
        for name in Self.factorNames {
            #expect(try isZero(#require(adapter.tensor(name).grad)) == (name != "lorta_B"), "\(name)")
        }
        try adapter.descend(0.1)
        try nextTokenLoss(backbone, model.tokens()).backward()
        for name in Self.factorNames { #expect(try !isZero(#require(adapter.tensor(name).grad)), "\(name)") }
    }

    // MARK: - 7. The start

    @Test(arguments: [4, 16]) func theStartHasItsBounds(rank: Int) throws {
        let model = SmallModel(hidden: 256, heads: 32, keyValueHeads: 32, layers: 24, intermediate: 4, isHollow: true)
        func largest(_ name: String, initScale: Double = 0) throws -> Double {
            let adapter = try adapter("lorta", ["r": JSON(rank), "init_scale": JSON(initScale)], on: model.backbone())
            return try adapter.tensor(name).absolute().maximum().item()
        }
        let root = Double(rank).squareRoot()
        let wide = 6.0.squareRoot() / root
        #expect(try largest("lorta_A") <= 1 / root && largest("lorta_A") > 0.99 / root)
        for name in ["lorta_C_H", "lorta_C_L", "lorta_C_M"] {
            #expect(try largest(name) <= wide && largest(name) > 1 / root, "\(name)")
            #expect(try largest(name, initScale: 1) <= 1 / root, "\(name)")
        }
        #expect(try largest("lorta_C_H", initScale: 1) > 0.9 / root)
        #expect(try largest("lorta_B") == 0)
    }

    // MARK: - 8. Size of the file

    @Test func fileIsSmallerThanLoRAsByTheRatioOfCounts() throws {
        func dataBytes(_ name: String, _ settings: KeyedList<JSON>) throws -> Int {
            try withTemporaryFolder { folder in
                let adapter = try adapter(name, settings, on: SmallModel.robertaBase.backbone())
                try SafetensorsWriter.write(adapter.exported().tensors, to: folder("adapter_model.safetensors"))
                let file = try SafetensorsFile(path: folder("adapter_model.safetensors"))
                return file.tensors.values.reduce(0) { $0 + $1.bytes.count }
            }
        }
        let attention: JSON = ["q_proj", "k_proj", "v_proj", "o_proj"]
        let lora = try dataBytes("lora", ["r": 1, "target_modules": attention])
        let lorta = try dataBytes("lorta", ["r": 1])
        #expect(lora == 4 * 73_728 && lorta == 4 * 860)
        #expect(lora / lorta >= 85)
    }

    // MARK: - 9. Preconditioning

    @Test(arguments: [1e-6, 1e-2]) func preconditionersAreTheSumsOverTheModel(epsilon: Double) async throws {
        let adapter = try adapter(
            "lorta", ["r": 4, "precondition": true, "precondition_eps": JSON(epsilon)],
            on: SmallModel(layers: 3).backbone())
        try adapter.randomise(seed: 35)
        let folder = try TemporaryFolder.lasting("lorta")
        try SafetensorsWriter.write(adapter.exported().tensors, to: folder("factors"))
        _ = try await Oracle.shared.call(
            "lorta.preconditioners",
            ["factors": JSON(folder("factors")), "output": JSON(folder("matrices")), "epsilon": JSON(epsilon)])
        let matrices = try SafetensorsFile(path: folder("matrices"))
        var expected: [(Tensor, Tensor)] = []
        for (index, name) in ["A", "B", "C_H", "C_L", "C_M"].enumerated() {
            let tensor = try adapter.tensor(Self.factorNames[index])
            var stream = Seed(36).stream(name)
            let gradient = try Tensor.normal(tensor.shape, from: &stream)
            try tensor.setGrad(gradient)
            let matrix = try matrices.tensor(name).tensor()
            let wide = try gradient.to(dtype: .float64)
            expected.append((tensor, try name == "B" ? matrix.matmul(wide) : wide.matmul(matrix)))
        }
        try adapter.gradientsAreReady(0)
        for (tensor, gradient) in expected { #expect(try relativeGap(#require(tensor.grad), gradient) < 1e-5) }
    }

    /// To first order, what a step of plain descent changes in the tensor: the sum over factors of the tensor with the
    /// factor's gradient in its place.
    private func firstOrderChange(precondition: Bool, sharing factor: Double) throws -> [Tensor] {
        let model = SmallModel()
        let backbone = try model.backbone()
        let adapter = try adapter(
            "lorta", ["r": 3, "precondition": JSON(precondition), "precondition_eps": 1e-12], on: backbone)
        try adapter.randomise(seed: 37, by: 0.5)
        try withoutGrad {
            try adapter.tensor("lorta_A").multiply(by: factor)
            try adapter.tensor("lorta_B").multiply(by: 1 / factor)
        }
        try nextTokenLoss(backbone, model.tokens()).backward()
        try adapter.gradientsAreReady(0)
        return try withoutGrad {
            var change = try adapter.lowRankUpdates().map { try $0.update.dense().zerosLike() }
            for name in Self.factorNames {
                let tensor = try adapter.tensor(name)
                let values = try tensor.cloned()
                try tensor.copy(from: #require(tensor.grad))
                change = try zip(change, adapter.lowRankUpdates()).map { try $0 + $1.update.dense() }
                try tensor.copy(from: values)
            }
            return change
        }
    }

    @Test func preconditionedStepsDoNotDependOnHowFactorsShareTheirSize() throws {
        for precondition in [true, false] {
            let even = try firstOrderChange(precondition: precondition, sharing: 1)
            let uneven = try firstOrderChange(precondition: precondition, sharing: 4)
            for (a, b) in zip(even, uneven) {
                let gap = try relativeGap(b, a)
                if precondition { #expect(gap < 1e-4) } else { #expect(gap > 0.1) }
            }
        }
    }

    @Test(arguments: [false, true]) func preconditioningWaitsUntilTheSecondFactorMoves(isRelative: Bool) throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        let adapter = try adapter(
            "lorta", ["precondition": true, "precondition_relative_eps": JSON(isRelative)], on: backbone)
        try nextTokenLoss(backbone, model.tokens()).backward()
        let before = try adapter.trainables.map { try #require($0.tensor.grad).cloned() }
        try adapter.gradientsAreReady(0)
        for (trainable, old) in zip(adapter.trainables, before) {
            #expect(try #require(trainable.tensor.grad).isIdentical(to: old))
        }
        try adapter.descend(0.1)
        try nextTokenLoss(backbone, model.tokens()).backward()
        let plain = try #require(adapter.tensor("lorta_B").grad).cloned()
        try adapter.gradientsAreReady(0)
        for trainable in adapter.trainables { #expect(try #require(trainable.tensor.grad).isAllFinite()) }
        #expect(try relativeGap(#require(adapter.tensor("lorta_B").grad), plain) > 0.01)
    }

    @Test func relativeEpsilonCountsInMeansOfTheDiagonal() throws {
        // With one component every Gram matrix is a number and P is one over (1 + eps) times their product.
        let adapter = try adapter(
            "lorta", ["r": 1, "precondition": true, "precondition_relative_eps": true, "precondition_eps": 0.25],
            on: SmallModel().backbone())
        try adapter.randomise(seed: 38)
        let a = try adapter.tensor("lorta_A")
        try a.setGrad(Tensor.ones(a.shape))
        try adapter.gradientsAreReady(0)
        var product = 1.25
        for name in Self.factorNames.dropFirst() {
            product *= try adapter.tensor(name).squared().sum().item(as: Double.self)
        }
        #expect(try relativeGap(#require(a.grad), Tensor.full(a.shape, 1 / product)) < 1e-5)
    }

    // MARK: - What does not fit

    @Test func selectionsThatLeaveMatricesOutAreRefused() throws {
        let backbone = try SmallModel().backbone()
        let settings: [(String, JSON)] = [
            ("target_modules", ["q_proj", "v_proj"]), ("target_modules", "all-linear"),
            ("exclude_modules", ["layers.0.self_attn.k_proj"]), ("layers_to_transform", 1),
        ]
        for (key, value) in settings {
            let sentence = refusal { _ = try adapter("lorta", [key: value], on: backbone) }
            #expect(sentence.hasPrefix("target_modules: LoRTA adapts the q, k, v and o projections"), "\(key)")
            #expect(sentence.contains(key))
        }
        let named: JSON = ["o_proj", "v_proj", "k_proj", "q_proj"]
        #expect(try adapter("lorta", ["target_modules": named], on: backbone).updates.count == 8)
    }

    @Test func orientationsThatDoNotFitAreRefused() throws {
        let grouped = refusal { _ = try adapter("lorta", ["orientation": "peft"], on: SmallModel().backbone()) }
        #expect(grouped.hasPrefix("orientation: peft does not fit model.layers.0.self_attn.k_proj"))
        for name in ["lit", "peft"] {
            let wide = SmallModel(keyValueHeads: 4, headDim: 12)
            let sentence = refusal { _ = try adapter("lorta", ["orientation": JSON(name)], on: wide.backbone()) }
            #expect(sentence.hasPrefix("orientation: \(name) does not fit"))
        }
        let unknown = refusal { _ = try AdapterConfiguration(method: "lorta", settings: ["orientation": "left"]) }
        #expect(unknown == "orientation: expected one of natural, lit, peft, found \"left\"")
        let zero = refusal { _ = try AdapterConfiguration(method: "lorta", settings: ["precondition_eps": 0]) }
        #expect(zero.hasPrefix("precondition_eps: expected a positive number"))
    }

    @Test func theDefaultTargetsAreWrittenDown() throws {
        let adapter = try adapter("lorta", on: SmallModel().backbone())
        let written = adapter.configuration.selection.targetModules?.json
        #expect(written == ["k_proj", "o_proj", "q_proj", "v_proj"])
    }
}
