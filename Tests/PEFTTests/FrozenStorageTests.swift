import Backbones
import Formats
import Foundation
import PEFT
import Synchronization
import TestSupport
import Testing
import Torch

/// A storage that counts the values that are asked of it.
private final class CountingStorage: PackedStorage {
    let whole: any PackedStorage
    let written = Atomic<Int>(0)

    init(_ whole: any PackedStorage) { self.whole = whole }

    var form: String { whole.form }
    var shape: [Int] { whole.shape }
    var byteCount: Int { whole.byteCount }

    func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws {
        written.wrappingAdd(range.count, ordering: .relaxed)
        try whole.write(range, as: dtype, to: memory)
    }
}

@Suite struct FrozenStorageTests {
    static let forms: [WeightForm] = [.nf4(), .nf4(quantisesScales: false), .int8]
    static let methods = ["lora", "rslora", "dora", "pissa", "olora", "lorta", "capaboost-lora"]

    private let model = SmallModel()

    /// Losses and the gradients of trainable tensors with everything moved off its start.
    private func trained(_ name: String, _ settings: KeyedList<JSON> = [:], on backbone: any Backbone, _ ids: Tensor)
        throws -> (start: Tensor, logits: Tensor, gradients: [(String, Tensor)])
    {
        let adapter = try adapter(name, settings, on: backbone)
        let start = try backbone.logits(ids)
        try adapter.randomise(seed: 3)
        let logits = try backbone.logits(ids)
        try nextTokenLoss(backbone, ids).backward()
        return (start, logits, try adapter.trainables.map { ($0.name, try #require($0.tensor.grad, "\($0.name)")) })
    }

    private func requireEqual(
        _ name: String, _ settings: KeyedList<JSON> = [:], _ packed: any Backbone, _ plain: any Backbone, _ ids: Tensor
    ) throws {
        #expect(packed.linears.dropLast().allSatisfy { $0.weight.packed != nil })
        #expect(plain.parameters.allSatisfy { $0.packed == nil })
        let before = try packed.linears.dropLast().map { try $0.weight.values(dtype: .float32) }
        let (mine, expected) = (
            try trained(name, settings, on: packed, ids), try trained(name, settings, on: plain, ids)
        )
        #expect(try relativeGap(mine.start, expected.start) <= 1e-6)
        #expect(try relativeGap(mine.logits, expected.logits) <= 1e-6)
        #expect(try relativeGap(mine.logits, mine.start) > 1e-2)
        #expect(mine.gradients.map(\.0) == expected.gradients.map(\.0))
        for ((name, mine), (_, expected)) in zip(mine.gradients, expected.gradients) {
            #expect(try relativeGap(mine, expected) <= 1e-6, "\(name)")
        }
        for (linear, values) in zip(packed.linears, before) {
            #expect(try linear.weight.values(dtype: .float32).isIdentical(to: values), "\(linear.path)")
        }
    }

    /// Every method trains over quantised weights as over the same weights in plain numbers, by the same code.
    @Test(arguments: methods, forms) func trainsAsOverTheUnpackedModel(name: String, form: WeightForm) throws {
        let packed = try model.backbone(form: form)
        try requireEqual(name, [:], packed, unpacked(packed), model.tokens())
    }

    /// Biases that are trained beside leave the weights packed; dropout and all layers do not matter either.
    @Test(arguments: forms) func trainsBiasesAndAllLayers(form: WeightForm) throws {
        let packed = try model.backbone(form: form)
        let settings: KeyedList<JSON> = ["bias": "all", "target_modules": "all-linear", "modules_to_save": ["norm"]]
        try requireEqual("lora", settings, packed, unpacked(packed), model.tokens())
        try requireEqual(
            "dora", ["bias": "lora_only", "target_modules": "all-linear"], model.backbone(form: form), unpacked(packed),
            model.tokens())
    }

    /// Straight over the blocks of a GGUF file, whose queries and keys lie in another order.
    @Test(arguments: ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
    func trainsOverBlocks(quantisation: String) async throws {
        let sizes: JSON = [
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        ]
        let folder = try await TinyModels.shared.folder("llama", seed: 71, options: ["overrides": sizes])
        let file = try TemporaryFolder.lasting("blocks")("model.gguf")
        _ = try await Oracle.shared.call(
            "backbones.make_gguf", ["folder": JSON(folder), "path": JSON(file), "quantisation": JSON(quantisation)])
        let checkpoint = try Checkpoint(file)
        let ids = try model.tokens(rows: 2, length: 12)
        let plain = try checkpoint.backbone(dtype: .float32)
        for name in ["lora", "dora", "lorta", "capaboost-lora", "pissa"] {
            let packed = try checkpoint.backbone(dtype: .float32, form: .blocks)
            #expect(packed.heldWeights == "blocks" && packed.heldBytes < plain.heldBytes / 2)
            try requireEqual(name, [:], packed, plain, ids)
            for linear in plain.linears { linear.adapter = nil }
        }
    }

    /// In bf16 products take the same rounded values.
    @Test(arguments: forms) func computesInHalfPrecision(form: WeightForm) throws {
        let packed = try model.backbone(dtype: .bfloat16, form: form)
        let plain = try unpacked(packed)
        let ids = try model.tokens()
        let (mine, expected) = (try trained("lora", on: packed, ids), try trained("lora", on: plain, ids))
        #expect(mine.start.dtype == .bfloat16)
        #expect(try mine.start.isIdentical(to: expected.start) && mine.logits.isIdentical(to: expected.logits))
        for ((name, mine), (_, expected)) in zip(mine.gradients, expected.gradients) {
            #expect(try mine.isIdentical(to: expected), "\(name)")
        }
    }

    /// A layer's gradient of its input is that through the unpacked weight.
    @Test(arguments: forms) func passesGradientsToInputs(form: WeightForm) throws {
        let layer = try model.backbone(form: form).linears[6]
        var stream = Seed(4).stream("input")
        let values = try Tensor.normal([5, layer.inFeatures], from: &stream)
        let (input, twin) = (try values.cloned().requiringGrad(), try values.cloned().requiringGrad())
        try layer.base(input).squared().sum().backward()
        let weight = try layer.weight.values(dtype: .float32)
        try linear(twin, weight).squared().sum().backward()
        let (found, expected) = (try #require(input.grad), try #require(twin.grad))
        #expect(try relativeGap(found, expected) < 1e-6)
    }

    /// A weight is unpacked for the forward pass and again for the backward pass: nothing keeps it in between.
    @Test(arguments: methods) func unpacksForOneProductOnly(name: String) throws {
        let plain = try model.backbone(form: .nf4())
        let storages = try plain.linears.map { linear in
            CountingStorage(try linear.weight.packed ?? NF4Matrix(linear.weight.frozen))
        }
        let linears = try zip(plain.linears, storages).map { linear, storage in
            Linear(
                path: linear.path, weight: try Parameter(path: linear.weight.path, packed: storage),
                role: linear.role, layer: linear.layer, heads: linear.heads)
        }
        let settings: KeyedList<JSON> = name == "lorta" ? [:] : ["target_modules": ["down_proj", "q_proj"]]
        let adapter = try adapter(name, settings, on: plain)
        let place = try #require(plain.linears.firstIndex { $0 === adapter.updates[0].linear })
        let (linear, storage) = (linears[place], storages[place])
        linear.adapter = plain.linears[place].adapter
        var stream = Seed(4).stream("input")
        let input = try Tensor.normal([3, linear.inFeatures], from: &stream).requiringGrad()
        storage.written.store(0, ordering: .relaxed)
        let output = try linear(input, Context())
        let forward = storage.written.load(ordering: .relaxed)
        #expect(forward >= linear.outFeatures)
        try output.sum().backward()
        #expect(storage.written.load(ordering: .relaxed) == forward + linear.outFeatures)
        #expect(try input.grad?.isAllFinite() == true)
    }

    /// Merged in plain numbers the model answers the same; quantised again it does not.
    @Test(arguments: ["lora", "dora"]) func mergesInPlainNumbers(name: String) throws {
        let backbone = try model.backbone(form: .nf4())
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter(name, on: backbone)
        try adapter.randomise(seed: 3)
        let adapted = try backbone.logits(ids)
        let (merged, again) = try adapter.whileMerged {
            let merged = try backbone.logits(ids)
            for linear in backbone.linears {
                guard let weight = linear.weight.replacement else { continue }
                try weight.copy(from: NF4Matrix(weight).values(dtype: .float32))
            }
            return (merged, try backbone.logits(ids))
        }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        #expect(try relativeGap(again, adapted) > 1e-3)
        adapter.detach()
        #expect(try backbone.logits(ids).isIdentical(to: before))
    }

    /// The weights take what the formula says, and below 0.3 of 16 bits where layers are large.
    @Test func holdsWhatTheFormulaSays() throws {
        let large = SmallModel(hidden: 256, heads: 4, headDim: 64, intermediate: 640, vocabulary: 5)
        let (packed, plain) = (try large.backbone(form: .nf4()), try large.backbone(dtype: .bfloat16))
        var bytes = 0
        for linear in packed.linears.dropLast() {
            let count = linear.inFeatures * linear.outFeatures
            let blocks = count / 64
            #expect(linear.weight.storage.byteCount == count / 2 + blocks + 4 * ((blocks + 255) / 256) + 4)
            bytes += linear.weight.storage.byteCount
        }
        let whole = plain.linears.dropLast().reduce(0) { $0 + $1.weight.storage.byteCount }
        #expect(Double(bytes) < 0.3 * Double(whole))
        #expect(packed.heldWeights == "nf4" && plain.heldWeights == "bfloat16")
        #expect(packed.heldBytes < plain.heldBytes)
        #expect(packed.parameterCount == plain.parameterCount)
    }

    /// SmolLM2's linear layers in NF4: 4.127 bits a weight; all else as it was.
    @Test func smolLM2TakesWhatTheFormulaSays() throws {
        let checkpoint = try Checkpoint(RepositoryPaths.required(RepositoryPaths.smolLM2))
        let backbone = try checkpoint.backbone(dtype: .bfloat16, form: .nf4())
        let count = backbone.linears.dropLast().reduce(0) { $0 + $1.inFeatures * $1.outFeatures }
        #expect(count == 106_168_320)
        let blocks = count / 64
        let outer = backbone.linears.dropLast().reduce(0) { $0 + ($1.inFeatures * $1.outFeatures / 64 + 255) / 256 }
        let quantised = count / 2 + blocks + 4 * outer + 4 * 210
        let rest = backbone.parameterCount - count
        #expect(backbone.heldBytes == quantised + 2 * rest)
        #expect(abs(Double(quantised) * 8 / Double(count) - 4.127) < 2e-3)
    }

    @Test func refusesWhatCannotBeHeldSo() async throws {
        let folder = try await TinyModels.shared.folder("llama", seed: 71)
        let checkpoint = try Checkpoint(folder)
        #expect(refusal { _ = try checkpoint.backbone(dtype: .float32, form: .blocks) }.contains("no quantised blocks"))
        #expect(
            refusal { _ = try checkpoint.backbone(dtype: .float32, device: .cuda(0), form: .int8) }.contains(
                "on the CPU"))
    }
}

extension WeightForm: CustomTestStringConvertible {
    /// The case with its settings.
    public var testDescription: String { "\(self)" }
}
