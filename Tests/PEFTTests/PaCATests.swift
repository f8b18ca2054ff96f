import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of PaCA must show.
@Suite struct PaCATests {
    private let model = SmallModel()

    private func indices(_ adapter: Adapter, _ layer: Linear) throws -> [Int] {
        try #require(adapter.state["base_model.model.\(layer.path).paca_indices"]).values()
    }

    // MARK: - 1. The start, and what changes

    @Test func onlyTheChosenColumnsChange() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter("paca", ["r": 5, "paca_alpha": 3], on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        for _ in 0..<2 {
            try nextTokenLoss(backbone, ids).backward()
            try adapter.descend(0.1)
        }
        #expect(adapter.updates.count == 14)
        for (layer, _) in adapter.updates {
            let merged = try #require(try adapter.merged(layer.weight))
            let change = try merged - layer.weight.frozen
            let chosen = try indices(adapter, layer)
            #expect(chosen.count == 5 && chosen == Set(chosen).sorted())
            for column in 0..<layer.inFeatures {
                let isChanged = try !isZero(change.selected(1, column))
                #expect(isChanged == chosen.contains(column), "\(layer.path), column \(column)")
            }
            #expect(try numericalRank(change) <= 5)
        }
    }

    // MARK: - 2. Gradients

    /// Kinds of models with ranks: grouped queries, biases, a tied head, heads wider than the stream.
    @Test(arguments: zip(["llama", "llama-biases", "qwen2", "llama-tied", "llama-head-dim"], [1, 7, 4, 3, 5]))
    func everyValueIsThatOfTheDenseEvaluation(kind: String, rank: Int) async throws {
        let folder = try await TinyModels.shared.folder(kind)
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let adapter = try adapter("paca", ["r": JSON(rank), "paca_alpha": 3], on: backbone, seed: UInt64(rank))
        try adapter.randomise(seed: 51, by: 0.1)
        let changes = try ParameterChange.slices(
            of: adapter, values: "paca_delta", indices: "paca_indices", scale: 3 / Double(rank), axis: { _ in 1 })
        let reference = try await DenseReference(model: folder, changes)
        let errors = try reference.check(backbone, changes)
        print("paca, \(kind): forward \(errors.forward), gradients \(errors.gradient)")
        try await checkSlicesOfDenseGradients(folder, changes, adapter)
    }

    /// `dL/d delta = s (dL/dW)[:, I]`.
    private func checkSlicesOfDenseGradients(
        _ model: String, _ changes: [ParameterChange], _ adapter: Adapter
    ) async throws {
        let folder = try TemporaryFolder.lasting("dense")
        let how = try DenseReference.write(changes, to: folder("changes"))
        _ = try await Oracle.shared.call(
            "selected.dense_gradients",
            [
                "model_folder": JSON(model), "tensors": JSON(folder("changes")), "how": how,
                "ids": JSON(tokens: exampleTokens), "output": JSON(folder("dense")),
                "names": .array(changes.map { JSON($0.name) }),
            ])
        let file = try SafetensorsFile(path: folder("dense"))
        for change in changes {
            let dense = try file.tensor("gradient|" + change.name).tensor()
            let slice = try dense.gathered(try #require(change.indices), dimension: 1) * change.scale
            #expect(try relativeGap(try #require(change.values.grad), slice) < 1e-5, "\(change.name)")
        }
    }

    @Test func theInputsGradientIsThatOfTheChangedWeight() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("paca", ["r": 5], on: backbone)
        try adapter.randomise(seed: 52)
        var stream = Seed(3).stream("input")
        for (layer, _) in adapter.updates {
            let values = try Tensor.normal([3, 4, layer.inFeatures], from: &stream)
            let outer = try Tensor.normal([3, 4, layer.outFeatures], from: &stream)
            let input = try values.cloned().requiringGrad()
            try layer(input, Context()).backward(gradient: outer)
            let weight = try #require(try adapter.merged(layer.weight))
            #expect(try relativeGap(try #require(input.grad), outer.matmul(weight)) < 1e-5, "\(layer.path)")
        }
    }

    // MARK: - 3. What is kept for the backward pass

    /// A layer that kept its input would refuse to go backward after the input was overwritten.
    @Test func nothingOfTheInputIsKeptButTheChosenFeatures() throws {
        func gradients(_ name: String, overwriting: Bool) throws -> [Tensor] {
            let backbone = try SmallModel(hidden: 256, headDim: 64, layers: 1).backbone()
            let adapter = try adapter(name, ["target_modules": ["q_proj"]], on: backbone)
            try adapter.randomise(seed: 53)
            let layer = try #require(adapter.updates.first?.linear)
            var stream = Seed(4).stream("input")
            let leaf = try Tensor.normal([2, 5, 256], from: &stream).requiringGrad()
            let input = try leaf * 2
            let output = try layer(input, Context())
            if overwriting { try withoutGrad { try input.fill(.nan) } }
            try output.backward(gradient: Tensor.ones([2, 5, 256]))
            return try [#require(leaf.grad)] + adapter.trainables.map { try #require($0.tensor.grad) }
        }
        let (kept, expected) = (
            try gradients("paca", overwriting: true), try gradients("paca", overwriting: false)
        )
        for (a, b) in zip(kept, expected) { #expect(try a.isIdentical(to: b)) }
        #expect(!refusal { _ = try gradients("lora", overwriting: true) }.isEmpty, "LoRA needs all of it")
    }

    /// Memory that one layer's forward pass leaves in use, of which 4 MiB are its output.
    private static func bytesKept(_ name: String) throws -> Int {
        let rows = 1 << 17
        let weight = try Tensor.full([8, 256], 0.01)
        let layer = Linear(path: "layer", weight: weight, role: .query)
        let points = AttachPoints(linears: [layer], of: try SmallModel().backbone())
        let method = try MethodRegistry.entry(name).make()
        let attachment = try method.attach(to: points, seed: Seed(1))
        let leaf = try Tensor.full([rows, 256], 0.5).requiringGrad()
        let before = Memory.resident()
        var input: Tensor? = try leaf * 2
        let update = try #require(attachment.updates.first).update
        let output = try input.map { try update.output(for: $0, of: layer, in: Context()) }
        input = nil
        return withExtendedLifetime(output) { Memory.resident() - before }
    }

    #if compiler(>=6.3)
    @Test func aLayerKeepsRankTimesTokensAndNotTheInput() async throws {
        // In a process of its own, whose memory no other test moves.
        await #expect(processExitsWith: .success) {
            // What is loaded once does not count.
            _ = (try Self.bytesKept("paca"), try Self.bytesKept("lora"))
            let (paca, lora) = (try Self.bytesKept("paca"), try Self.bytesKept("lora"))
            // LoRA keeps its input of 128 MiB, PaCA 4 MiB of it; small pieces may come from what was freed before.
            #expect(lora > 120 << 20 && paca < 12 << 20, "\(paca) bytes, LoRA \(lora)")
        }
    }
    #endif

    // MARK: - 4. Other forms

    @Test func theFolderOfLoRAComputesTheSame() async throws {
        let model = try await TinyModels.shared.folder("llama-biases")
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let adapter = try adapter("paca", ["r": 3, "paca_alpha": 5, "save_as_lora": true], on: backbone)
        try randomise(adapter, seed: 54)
        let expected = try withoutGrad { try backbone.logits(ids) }
        let folder = try TemporaryFolder.lasting("paca")
        try adapter.save(to: folder("lora"), baseModel: model)
        adapter.detach()
        let lora = try Adapter.load(from: folder("lora"), onto: backbone)
        #expect(type(of: lora.configuration.method).peftType == "LORA")
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, expected) < 1e-5)
        let report = try await Oracle.shared.call(
            "peft.logits",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(folder("lora")),
                "ids": JSON(tokens: exampleTokens), "output": JSON(folder("peft")),
            ])
        #expect(report["unexpected"] == [] && report["missing"] == [] && report["misshapen"] == [])
        #expect(try relativeGap(expected, storedTensor(folder("peft"), "logits")) < 1e-5)
    }

    @Test func mergingChangesNoOtherBit() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("paca", ["r": 5], on: backbone)
        try adapter.randomise(seed: 55)
        for (layer, _) in adapter.updates {
            let merged = try #require(try adapter.merged(layer.weight))
            let chosen = try indices(adapter, layer)
            let others = (0..<layer.inFeatures).filter { !chosen.contains($0) }
            let rest = try Tensor(others, shape: [others.count])
            #expect(
                try merged.gathered(rest, dimension: 1).isIdentical(
                    to: layer.weight.frozen.gathered(rest, dimension: 1)), "\(layer.path)")
        }
    }

    // MARK: - 6. Count and choice

    @Test func countIsTheOutputsTimesTheRank() throws {
        func count(_ model: SmallModel, _ settings: KeyedList<JSON>) throws -> Int {
            try adapter("paca", settings, on: model.backbone()).parameterCount
        }
        var llama2 = SmallModel.llama2
        llama2.intermediate = 11008
        #expect(try count(llama2, [:]) == 10_878_976)
        #expect(try count(SmallModel(), ["r": 3]) == 3 * 2 * (32 + 16 + 16 + 32 + 40 + 40 + 32))
        let sentence = refusal { _ = try adapter("paca", ["r": 33], on: model.backbone()) }
        #expect(sentence.contains("the 32 columns") && sentence.contains("found 33"))
    }

    @Test func theSeedDecidesTheColumns() throws {
        func chosen(_ settings: KeyedList<JSON>, seed: UInt64) throws -> [[Int]] {
            let adapter = try adapter("paca", settings, on: model.backbone(), seed: seed)
            return try adapter.updates.map { try indices(adapter, $0.linear) }
        }
        let first = try chosen([:], seed: 1)
        #expect(try first == chosen([:], seed: 1) && first != chosen([:], seed: 2))
        #expect(try chosen(["random_seed": 1], seed: 9) == first)
        #expect(Set(first).count > 10, "layers choose for themselves")
    }
}
