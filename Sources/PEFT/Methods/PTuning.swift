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
        return shapes(width).reduce(Double(virtualTokens) * Double(width)) { sum, entry in
            sum + entry.shape.reduce(1) { $0 * Double($1) }
        }
    }

    /// Makes the vectors and the network.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let width = points.configuration.hiddenSize
        var stream = seed.stream("p_tuning.embedding")
        let key = network == .none ? "prompt_embeddings" : "base_model.prompt_encoder.embedding.weight"
        let embedding = try Trainable(key, Tensor.normal([virtualTokens, width], from: &stream), device: points.device)
        var attachment = Attachment(trainables: [embedding])
        for (name, shape, bound) in shapes(width) {
            var stream = seed.stream("p_tuning.\(name)")
            attachment.trainables.append(
                try Trainable(
                    "base_model.prompt_encoder.\(name)", Tensor.uniform(shape, in: -bound..<bound, from: &stream),
                    device: points.device))
        }
        let parts = attachment.trainables.map(\.tensor)
        let slot = PromptSlot(virtualTokens: virtualTokens, dtype: points.backbone.dtype) { context in
            try vectors(parts, context)
        }
        attachment.others = [Attached(points.embedding, slot)]
        if network != .none {
            var plain = self
            plain.network = .none
            attachment.export = { [plain] in
                (plain, ["prompt_embeddings": try vectors(parts, nil).detached()])
            }
        }
        return attachment
    }

    /// The network's tensors as in torch: names, shapes and how far from zero they start, without the vectors.
    private func shapes(_ width: Int) -> [(name: String, shape: [Int], bound: Double)] {
        let inner = hiddenSize ?? width
        func linears(_ sizes: [Int]) -> [(name: String, shape: [Int], bound: Double)] {
            zip(sizes, sizes.dropFirst()).enumerated().flatMap { index, size in
                let bound = 1 / Double(size.0).squareRoot()
                return [
                    ("mlp_head.\(2 * index).weight", [size.1, size.0], bound),
                    ("mlp_head.\(2 * index).bias", [size.1], bound),
                ]
            }
        }
        switch network {
        case .none: return []
        case .mlp: return linears([width, inner, inner, width])
        case .lstm:
            let bound = 1 / Double(inner).squareRoot()
            var list: [(name: String, shape: [Int], bound: Double)] = []
            for layer in 0..<layers {
                let inputs = layer == 0 ? width : 2 * inner
                for place in ["l\(layer)", "l\(layer)_reverse"] {
                    list.append(("lstm_head.weight_ih_\(place)", [4 * inner, inputs], bound))
                    list.append(("lstm_head.weight_hh_\(place)", [4 * inner, inner], bound))
                    list.append(("lstm_head.bias_ih_\(place)", [4 * inner], bound))
                    list.append(("lstm_head.bias_hh_\(place)", [4 * inner], bound))
                }
            }
            return list + linears([2 * inner, 2 * inner, width])
        }
    }

    /// The vectors in front, `[n, d]`, of those that are trained and the network's tensors.
    private func vectors(_ parts: [Tensor], _ context: Context?) throws -> Tensor {
        var values = parts[0]
        var linears = parts[1...]
        for layer in 0..<(network == .lstm ? layers : 0) {
            let inner = linears[linears.startIndex + 1].size(1)
            if layer > 0 {
                values =
                    try context?.dropout?.apply(values, probability: dropout, name: "p_tuning.lstm.\(layer)") ?? values
            }
            let state = try Tensor.zeros([2, 1, inner], device: values.device)
            let (hasBiases, isTraining, isBidirectional, isBatchFirst) = (true, false, true, true)
            values = try callTensors(
                "aten::lstm.input", values.unsqueezed(0), [state, state], Array(linears.prefix(8)), hasBiases, 1, 0.0,
                isTraining, isBidirectional, isBatchFirst)[0].squeezed(0)
            linears = linears.dropFirst(8)
        }
        for (index, position) in stride(from: linears.startIndex, to: linears.endIndex, by: 2).enumerated() {
            values = try linear(index > 0 ? relu(values) : values, linears[position], linears[position + 1])
        }
        return values
    }
}
