import Backbones
import Formats
import Torch

/// Prefix tuning: trained keys and values in front of those of the tokens, in every block. arXiv 2101.00190, and with
/// the table trained directly P-tuning v2, 2110.07602
///
/// The table `[n, 2 L d]`, `d` the features of all key/value heads, holds for each of `n` virtual tokens the keys and the
/// values of block 0, then those of block 1, and so on; they take part in attention as they are, behind the rotation by
/// positions. With `prefix_projection` the table is `tanh(E D + c) U + b` in training, and what is saved is the table.
///
/// With `prefix_gate` each block's attention is `(1 - g) Attn(q, K, V) + g Attn(q, [P_K; K], [P_V; V])`: `g` starts at 0,
/// where the model is the pretrained one, and 1 is plain prefix tuning.
public struct PrefixTuning: Method {
    /// The value of `peft_type`.
    public static let peftType = "PREFIX_TUNING"
    /// The hyper-parameters.
    public static let fields: [Field<PrefixTuning>] = [
        Field("num_virtual_tokens", \.virtualTokens, "keys and values in front of every row"),
        Field("prefix_projection", \.hasProjection, "whether a small network makes the table in training"),
        Field("encoder_hidden_size", \.hiddenSize, "width inside that network; null: as a token's keys"),
        Field("init_weights", \.start, "\"zero\", or null: random"),
        Field("prefix_dropout", \.dropout, "probability of zeroing an element of the prefix"),
        Field("prefix_gate", \.hasGate, "whether a trained gate a block, at first 0, lets the prefix in"),
    ]
    /// What peft 0.21.2 writes for `PREFIX_TUNING`.
    public static let folderFields = FolderFields.virtualTokens(
        own: ["prefix_dropout", "prefix_gate"], width: { $0.numKeyValueHeads * $0.headDim },
        heads: \.numKeyValueHeads)
    /// Attention is adapted, not layers.
    public static let usesLinears = false
    /// Why no merged weight does the same.
    public static let mergeRefusal: String? =
        "a prefix adds keys and values to attention, which no weight of the model computes"

    /// How the table starts.
    public enum Start: String, FieldValue, CaseIterable { case zero }

    /// The keys and values in front.
    public var virtualTokens = 20
    /// Whether a network makes the table.
    public var hasProjection = false
    /// The width inside the network; nil: that of a token's keys.
    public var hiddenSize: Int?
    /// How the table starts; nil: random.
    public var start: Start?
    /// The probability of zeroing an element of the prefix.
    public var dropout = 0.0
    /// Whether the prefix has gates.
    public var hasGate = false

    /// Makes the method with its defaults.
    public init() {}

    /// A saved table needs no network any more.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON {
        field == "prefix_projection" ? false : value
    }

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(virtualTokens, "num_virtual_tokens")
        if let hiddenSize { try requirePositive(hiddenSize, "encoder_hidden_size") }
        try requireProbability(dropout, "prefix_dropout")
    }

    /// The values of the table, or of the network, and the gates.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let layers = Double(points.attentionStates.count)
        let width = points.attentionStates.first.map { Double($0.heads * $0.dimension) } ?? 0
        let (tokens, inner) = (Double(virtualTokens), hiddenSize.map(Double.init) ?? width)
        let network = tokens * width + inner * (width + 1) + layers * 2 * width * (inner + 1)
        return (hasProjection ? network : tokens * layers * 2 * width) + (hasGate ? layers : 0)
    }

    /// Makes the table or the network, and the gates.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        func trained(_ name: String, _ values: Tensor) throws -> Tensor {
            try attachment.train(name, from: values, on: points.device)
        }
        let tables = try hasProjection ? network(points, seed, trained) : table(points, seed, trained)
        let gates = try hasGate ? trained(Self.gateKey, Tensor.zeros([tables.count])) : nil
        for (index, (state, table)) in zip(points.attentionStates, tables).enumerated() {
            let prefix = LayerPrefix(
                length: virtualTokens, dtype: points.backbone.dtype, dropout: dropout, table: table,
                gate: gates.map { gates in { try gates.selected(0, index) } })
            attachment.others.append(Attached(state, prefix))
        }
        if hasProjection { attachment.export = { [self] in try exported(tables, gates) } }
        return attachment
    }

    private typealias Make = (String, Tensor) throws -> Tensor
    /// The part of one block, `[n, 2 d]`.
    private typealias Part = () throws -> Tensor

    private static let gateKey = "base_model.prefix_gate"
    /// Other programs know no gate: they must not find the table by the name that they know.
    private var tableKey: String { hasGate ? "base_model.prefix_embeddings" : "prompt_embeddings" }

    private func table(_ points: AttachPoints, _ seed: Seed, _ trained: Make) throws -> [Part] {
        let widths = points.attentionStates.map { 2 * $0.heads * $0.dimension }
        let shape = [virtualTokens, widths.reduce(0, +)]
        let values = try start == .zero ? Tensor.zeros(shape) : seed.normal("prefix.embedding", shape)
        let table = try trained(tableKey, values)
        return widths.enumerated().map { index, width in
            { try table.narrowed(1, start: index * width, length: width) }
        }
    }

    /// The upper layer is kept block by block, so that each makes its own part alone.
    private func network(_ points: AttachPoints, _ seed: Seed, _ trained: Make) throws -> [Part] {
        let width = points.attentionStates.first.map { $0.heads * $0.dimension } ?? 0
        let inner = hiddenSize ?? width
        func linear(_ name: String, _ sizes: (out: Int, in: Int), zero: Bool = false) throws -> (Tensor, Tensor) {
            let bound = zero ? 0 : 1 / Double(sizes.in).squareRoot()
            func part(_ kind: String, _ shape: [Int]) throws -> Tensor {
                let values = try seed.uniform("prefix.\(name).\(kind)", shape, within: bound)
                return try trained("base_model.prompt_encoder.\(name).\(kind)", values)
            }
            return (try part("weight", [sizes.out, sizes.in]), try part("bias", [sizes.out]))
        }
        let tokens = try trained(
            "base_model.prompt_encoder.embedding.weight", seed.normal("prefix.embedding", [virtualTokens, width]))
        let lower = try linear("transform.0", (inner, width))
        return try points.attentionStates.map { state in
            let upper = try linear("transform.2.\(state.layer)", (2 * width, inner), zero: start == .zero)
            return {
                let hidden = try callTensor("aten::tanh", Torch.linear(tokens, lower.0, lower.1))
                return try Torch.linear(hidden, upper.0, upper.1)
            }
        }
    }

    private func exported(_ tables: [Part], _ gates: Tensor?) throws -> (any Method, KeyedList<Tensor>) {
        var plain = self
        plain.hasProjection = false
        plain.hiddenSize = nil
        let table = try withoutGrad { try Tensor.concatenate(tables.map { try $0() }, dimension: 1) }
        var tensors: KeyedList<Tensor> = [tableKey: table]
        if let gates { tensors[Self.gateKey] = gates }
        return (plain, tensors)
    }
}

/// The prefix of one block.
private final class LayerPrefix: AttentionPrefix {
    let length: Int
    private let dtype: DType
    private let dropout: Double
    private let table: () throws -> Tensor
    private let makeGate: (() throws -> Tensor)?

    init(
        length: Int, dtype: DType, dropout: Double, table: @escaping () throws -> Tensor,
        gate: (() throws -> Tensor)?
    ) {
        (self.length, self.dtype, self.dropout, self.table, makeGate) = (length, dtype, dropout, table, gate)
    }

    func keysAndValues(of state: AttentionState, in context: Context) throws -> (keys: Tensor, values: Tensor) {
        let part = try table()
        let kept = try context.dropout?.apply(part, probability: dropout, name: state.path + ".prefix") ?? part
        // [n, 2 heads dim] -> [2, 1, heads, n, dim]
        let pair = try kept.to(dtype: dtype).reshaped([length, 2, 1, state.heads, state.dimension])
            .permuted([1, 2, 3, 0, 4])
        return (try pair.selected(0, 0), try pair.selected(0, 1))
    }

    func gate(of state: AttentionState, in context: Context) throws -> Tensor? { try makeGate?().to(dtype: dtype) }
}
