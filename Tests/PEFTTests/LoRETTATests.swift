import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of LoRETTA-rep must show; the contraction itself is in `WeightParityTests`.
@Suite struct LoRETTATests {
    private let model = SmallModel()

    private func cores(_ adapter: Adapter, _ path: String, _ name: String) -> [Tensor] {
        adapter.trainables.filter { $0.name.contains("\(path).\(name).") }.map(\.tensor)
    }

    // MARK: - 1. Modes

    @Test func modesMultiplyToTheSizes() throws {
        let settings: KeyedList<JSON> = ["r": 6, "target_modules": "all-linear"]
        let adapter = try adapter("loretta-rep", settings, on: SmallModel(hidden: 36, intermediate: 52).backbone())
        for (layer, _) in adapter.updates {
            for (name, size) in [("loretta_A", 6 * layer.inFeatures), ("loretta_B", 6 * layer.outFeatures)] {
                let cores = cores(adapter, layer.path, name)
                #expect(cores.reduce(1) { $0 * $1.size(1) } == size, "\(layer.path)")
                #expect(cores.allSatisfy { $0.size(1) <= 16 && $0.size(1) > 1 })
                #expect(cores.first?.size(0) == 1 && cores.last?.size(2) == 1)
                #expect(zip(cores, cores.dropFirst()).allSatisfy { $0.size(2) == 5 && $1.size(0) == 5 })
            }
        }
    }

    @Test func theAuthorsModesAreTheirs() throws {
        let adapter = try adapter("loretta-rep", on: SmallModel.robertaBase.backbone())
        let path = "model.layers.0.self_attn.q_proj"
        for name in ["loretta_A", "loretta_B"] {
            #expect(cores(adapter, path, name).map { $0.size(1) } == [8, 8, 12, 8])
        }
    }

    // MARK: - 2. The start

    @Test func entriesHaveTheirVariance() throws {
        // A layer of 768 inputs; 200 draws, of which each scatters by a quarter.
        let model = SmallModel(
            hidden: 768, heads: 1, keyValueHeads: 1, headDim: 8, layers: 1, intermediate: 2,
            vocabulary: 2, isHollow: true)
        let backbone = try model.backbone()
        var sum = 0.0
        for seed in 0..<250 {
            let adapter = try adapter(
                "loretta-rep", ["init_weights": "random", "target_modules": ["q_proj"]], on: backbone,
                seed: UInt64(seed))
            let down = try #require(try adapter.lowRankUpdates().first).update.factors().down
            sum += try down.squared().mean().item(as: Double.self)
            adapter.detach()
        }
        let rootMeanSquare = (sum / 250).squareRoot()
        #expect(abs(rootMeanSquare / (1.0 / 776).squareRoot() - 1) < 0.05, "\(rootMeanSquare)")
    }

    @Test func onlyTheRandomStartChangesTheOutput() throws {
        let ids = try model.tokens()
        // Norms that are trained are computed by other operators, which round differently.
        func gap(_ start: String, trainsNorms: Bool = true) throws -> Double {
            let backbone = try model.backbone()
            let before = try backbone.logits(ids)
            _ = try adapter(
                "loretta-rep", ["init_weights": JSON(start), "train_norms": JSON(trainsNorms)], on: backbone)
            return try relativeGap(backbone.logits(ids), before)
        }
        #expect(try gap("zero", trainsNorms: false) == 0)
        #expect(try gap("zero") < 1e-6)
        #expect(try gap("subtract") < 1e-6)
        #expect(try gap("random") > 1e-3)
    }

    /// What was taken off the base is known to whoever reads the folder.
    @Test func aStartThatIsTakenOffIsReadBack() throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            let ids = try model.tokens()
            let trained = try adapter("loretta-rep", ["init_weights": "subtract"], on: backbone, seed: UInt64.max - 8)
            try trained.randomise(seed: 51)
            let adapted = try bits(backbone.logits(ids))
            try trained.save(to: folder("adapter"))
            trained.detach()
            _ = try Adapter.load(from: folder("adapter"), onto: backbone)
            #expect(try bits(backbone.logits(ids)) == adapted)
        }
    }

    // MARK: - 3. Counts

    @Test func countsAreThePapers() throws {
        func count(_ model: SmallModel, _ settings: KeyedList<JSON>) throws -> Int {
            let adapter = try adapter("loretta-rep", settings, on: model.backbone())
            return adapter.trainables.filter { $0.name.contains("loretta_") }.reduce(0) { $0 + $1.tensor.count }
        }
        let q: JSON = ["q_proj"]
        // A train of 580 values a factor.
        #expect(try count(.robertaBase, ["target_modules": q]) == 12 * 1_160)
        #expect(try count(.llama2, [:]) == 102_400)
        #expect(try count(.llama2, ["tensor_rank": 8]) == 249_856)
        // 4096 by 64: 1,100 values.
        #expect(try count(.llama2, ["r": 64, "target_modules": q, "layers_to_transform": 0]) == 2 * 1_100)
    }

    // MARK: - 4. Rank

    @Test(arguments: ["zero", "random"]) func theUpdateHasTheRankAtMost(start: String) throws {
        let adapter = try adapter("loretta-rep", ["r": 3, "init_weights": JSON(start)], on: model.backbone())
        try adapter.randomise(seed: 52)
        for (_, update) in try adapter.lowRankUpdates() {
            let rank = try numericalRank(update.dense())
            #expect(rank > 0 && rank <= 3)
        }
    }

    // MARK: - 5. Norms

    @Test func normsAreTrainedBeside() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter("loretta-rep", on: backbone)
        let norms = backbone.parameters.filter { $0.path.hasSuffix("norm.weight") }
        #expect(norms.count == 5 && adapter.copies.map(\.parameter.path) == norms.map(\.path))
        try nextTokenLoss(backbone, ids).backward()
        for copy in adapter.copies { #expect(try !isZero(#require(copy.tensor.grad)), "\(copy.parameter.path)") }
        #expect(backbone.parameters.allSatisfy { $0.frozen.grad == nil })
        let other = try PEFTTests.adapter("loretta-rep", ["train_norms": false], on: model.backbone())
        #expect(other.copies.isEmpty && adapter.parameterCount == other.parameterCount + 5 * 32)
    }

    // MARK: - 7. Size

    @Test func theFileIsAnEighthOfLoRAs() throws {
        func bytes(_ name: String) throws -> Int {
            try withTemporaryFolder { folder in
                let adapter = try adapter(
                    name, ["target_modules": ["q_proj", "v_proj"]], on: SmallModel.robertaBase.backbone())
                try SafetensorsWriter.write(
                    adapter.exported().tensors.filtered { $0.contains("_proj.") }, to: folder("tensors"))
                return try MappedFile(path: folder("tensors")).bytes.count
            }
        }
        #expect(try bytes("lora") > 8 * bytes("loretta-rep"))
    }

    @Test func badSettingsAreRefused() throws {
        func sentence(_ settings: KeyedList<JSON>) -> String {
            refusal { _ = try adapter("loretta-rep", settings, on: model.backbone()) }
        }
        #expect(sentence(["tensor_rank": 0]).hasPrefix("tensor_rank: expected a positive whole number"))
        #expect(
            sentence(["init_weights": "ones"]) == "init_weights: expected one of zero, subtract, random, found \"ones\""
        )
        #expect(sentence(["lora_dropout": 1]).hasPrefix("lora_dropout: expected"))
    }
}

extension KeyedList<Tensor> {
    fileprivate func filtered(_ isKept: (String) -> Bool) -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (key, value) in self where isKept(key) { result[key] = value }
        return result
    }
}
