import Backbones
import Formats
import Torch

/// P-tuning: vectors in front of the tokens that a small network makes of trained ones. arXiv 2103.10385
///
/// The network is three linear layers with ReLU between them, `d -> h -> h -> d`, or a bidirectional LSTM over the
/// vectors and two linear layers, `d -> 2 h -> 2 h -> d`. What is saved is the result, with which the network is
/// done: a loaded folder is a table, and training goes on with it directly.
public struct PTuning: Method {
    /// The value of `peft_type`.
    public static let peftType = "P_TUNING"
    /// The hyper-parameters.
    public static let fields: [Field<PTuning>] = [
        Field("num_virtual_tokens", \.virtualTokens, "vectors in front of every row"),
        Field("encoder_reparameterization_type", \.network, "the network; NONE: the vectors are trained directly"),
        Field("encoder_hidden_size", \.hiddenSize, "width inside the network; null: the model's hidden size"),
        Field("encoder_num_layers", \.layers, "layers of the LSTM"),
        Field("encoder_dropout", \.dropout, "probability of zeroing an element between the LSTM's layers"),
    ]
    /// What peft 0.21.2 writes for `P_TUNING`.
    public static let folderFields = FolderFields.virtualTokens(
        decimals: ["encoder_dropout"], width: \.hiddenSize, heads: \.numAttentionHeads)
    /// The token table is adapted, not layers.
    public static let usesLinears = false
    /// Why no merged weight does the same.
    public static let mergeRefusal = PromptTuning.mergeRefusal

    /// What makes the vectors.
    public enum Network: String, FieldValue, CaseIterable {
        case mlp = "MLP"
        case lstm = "LSTM"
        case none = "NONE"
    }

    /// The vectors in front.
    public var virtualTokens = 20
    /// What makes them.
    public var network = Network.mlp
    /// The width inside; nil: the hidden size.
    public var hiddenSize: Int?
    /// The layers of the LSTM.
    public var layers = 2
    /// The probability of zeroing an element between them.
    public var dropout = 0.0

    /// Makes the method with its defaults.
    public init() {}

    /// A saved table needs no network any more.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON {
        field == "encoder_reparameterization_type" ? "NONE" : value
    }

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(virtualTokens, "num_virtual_tokens")
        try requirePositive(layers, "encoder_num_layers")
        if let hiddenSize { try requirePositive(hiddenSize, "encoder_hidden_size") }
        // Sizes are multiplied before anything is made, and a damaged folder must not ask for any.
        guard (hiddenSize ?? 0) <= 1 << 40, layers <= 1000 else {
            throw PEFTError(
                "encoder_hidden_size \(hiddenSize ?? 0), encoder_num_layers \(layers): more than there can be")
        }
        try requireProbability(dropout, "encoder_dropout")
        guard dropout == 0 || network != .mlp else {
            throw PEFTError(
                "encoder_dropout: it acts between the layers of an LSTM; expected 0 for MLP, found \(dropout)")
        }
    }

    /// The values of the vectors and the network.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let width = points.configuration.hiddenSize
        return encoder(width).shapes.reduce(Double(virtualTokens) * Double(width)) { sum, entry in
            sum + entry.shape.reduce(1) { $0 * Double($1) }
        }
    }

    /// Makes the vectors and the network.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let width = points.configuration.hiddenSize
        let encoder = encoder(width)
        var attachment = Attachment(trainables: [])
        let key = network == .none ? "prompt_embeddings" : "base_model.prompt_encoder.embedding.weight"
        var parts = [
            try attachment.train(
                key, from: seed.normal("p_tuning.embedding", [virtualTokens, width]), on: points.device)
        ]
        for (name, shape, bound) in encoder.shapes {
            parts.append(
                try attachment.train(
                    "base_model.prompt_encoder.\(name)", from: seed.uniform("p_tuning.\(name)", shape, within: bound),
                    on: points.device))
        }
        let slot = PromptSlot(virtualTokens: virtualTokens, dtype: points.backbone.dtype) { [parts] context in
            try encoder.vectors(parts, context)
        }
        attachment.others = [Attached(points.embedding, slot)]
        if network != .none {
            var plain = self
            plain.network = .none
            attachment.export = { [plain, parts] in
                (plain, ["prompt_embeddings": try encoder.vectors(parts, nil).detached()])
            }
        }
        return attachment
    }

    private func encoder(_ width: Int) -> PromptEncoder {
        PromptEncoder(network: network, width: width, inner: hiddenSize ?? width, layers: layers, dropout: dropout)
    }
}
