import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct PTuningTests {
    private let model = SmallModel()
    private static let small: KeyedList<JSON> = ["num_virtual_tokens": 4, "encoder_hidden_size": 7]

    @Test func theNetworkEqualsItsFormula() async throws {
        let backbone = try model.backbone()
        let adapter = try adapter("p-tuning", Self.small, on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "prompt").check(adapter, on: backbone)
    }

    /// peft's network gets Graft's tensors by their names, and has to make the table that Graft saves.
    @Test(arguments: ["MLP", "LSTM"]) func makesPeftsTable(network: String) async throws {
        let backbone = try model.backbone()
        let folder = try TemporaryFolder.lasting("p-tuning")
        var settings = Self.small
        settings["encoder_reparameterization_type"] = JSON(network)
        let adapter = try adapter("p-tuning", settings, on: backbone)
        try adapter.randomise(seed: 4)
        var tensors = KeyedList<Tensor>()
        for trainable in adapter.trainables {
            let name = String(trainable.name.dropFirst("base_model.prompt_encoder.".count))
            tensors[name] = try trainable.tensor.detached()
        }
        try SafetensorsWriter.write(tensors, to: folder("network"))
        settings["token_dim"] = JSON(model.hidden)
        let count = try await Oracle.shared.call(
            "slots.encoded",
            ["config": .object(settings), "tensors": JSON(folder("network")), "output": JSON(folder("table"))])
        #expect(count.int == adapter.parameterCount)
        let table = try #require(try adapter.exported().tensors["prompt_embeddings"])
        #expect(try relativeGap(table, storedTensor(folder("table"), "prompt_embeddings")) < 1e-5)
        try nextTokenLoss(backbone, model.tokens()).backward()
        for trainable in adapter.trainables {
            #expect(try !isZero(#require(trainable.tensor.grad)), "\(trainable.name)")
        }
    }

    @Test func aSavedTableIsTrainedDirectly() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let folder = try TemporaryFolder.lasting("p-tuning")
        let trained = try adapter("p-tuning", Self.small, on: backbone)
        let before = try backbone.logits(ids)
        try trained.save(to: folder("adapter"))
        trained.detach()
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        #expect(loaded.trainables.map(\.name) == ["prompt_embeddings"])
        try loaded.save(to: folder("again"))
        loaded.detach()
        _ = try Adapter.load(from: folder("again"), onto: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        try expectGenerationAgrees(backbone, vocabulary: model.vocabulary)
    }

    @Test(arguments: ["MLP", "LSTM"]) func foldersGoBothWays(network: String) async throws {
        try await PromptExchange(
            kind: "llama", peftType: "P_TUNING", method: "p-tuning",
            config: [
                "num_virtual_tokens": 5, "encoder_hidden_size": 9, "encoder_reparameterization_type": JSON(network),
            ], forgotten: ["encoder_reparameterization_type"]
        ).check()
    }
}
