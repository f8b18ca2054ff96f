import Formats
import Torch

/// A checkpoint as a backbone reads it: tensors by Hugging Face's names, whatever the file's format.
public protocol WeightSource {
    /// The file or folder, for errors.
    var path: String { get }
    /// Every tensor's name.
    var names: [String] { get }
    /// The shape of a tensor, or nil where there is none of that name.
    func shape(of name: String) -> [Int]?
    /// The dtype that a tensor is stored in, or nil where it is quantised or there is none of that name.
    func storedDType(of name: String) -> DType?
    /// The tensor in main memory, in `dtype`; mapped where the file already has that dtype.
    ///
    /// - Throws: `FormatError`, `ModelError` or `TorchError` when the tensor cannot be read.
    func tensor(_ name: String, dtype: DType) throws -> Tensor
    /// The tensor as quantised blocks, or nil where it is not stored as a matrix of blocks.
    ///
    /// - Throws: `FormatError` when the tensor cannot be read.
    func blocks(_ name: String) throws -> Dequantiser?
    /// Gives back the memory that a mapped tensor was read into, after it has been copied.
    func forget(_ name: String)
}

extension WeightSource {
    /// Nil.
    public func blocks(_ name: String) throws -> Dequantiser? { nil }
    /// Nil.
    public func storedDType(of name: String) -> DType? { nil }
    /// Does nothing.
    public func forget(_ name: String) {}
}

/// The tensors of a safetensors checkpoint.
struct SafetensorsSource: WeightSource {
    let checkpoint: SafetensorsCheckpoint

    var path: String { checkpoint.path }
    var names: [String] { checkpoint.tensors.keys }
    func shape(of name: String) -> [Int]? { checkpoint.tensors[name]?.shape }
    func storedDType(of name: String) -> DType? { checkpoint.tensors[name]?.type.dtype }

    func tensor(_ name: String, dtype: DType) throws -> Tensor {
        try checkpoint.tensor(name).tensor().to(dtype: dtype)
    }

    func forget(_ name: String) { checkpoint.tensors[name]?.bytes.forget() }
}

/// The tensors of a Llama-family GGUF file under Hugging Face's names, with the rows of q and k back in order.
struct GGUFSource: WeightSource {
    let file: GGUFFile
    /// Query and key/value heads, where the converter has interleaved their rows.
    let interleavedHeads: (query: Int, key: Int)?
    private let stored: KeyedList<GGUFTensor>

    init(_ file: GGUFFile, interleavedHeads: (query: Int, key: Int)?) throws {
        self.file = file
        self.interleavedHeads = interleavedHeads
        var stored = KeyedList<GGUFTensor>()
        for (name, tensor) in file.tensors where name != "rope_freqs.weight" {
            guard let translated = Self.huggingFaceName(name) else {
                throw ModelError("\(file.file.path): the tensor \"\(name)\" does not belong to a Llama-family model")
            }
            stored.appendIfNew(key: translated, value: tensor)
        }
        self.stored = stored
    }

    var path: String { file.file.path }
    var names: [String] { stored.keys }
    func shape(of name: String) -> [Int]? { stored[name]?.shape }

    func tensor(_ name: String, dtype: DType) throws -> Tensor {
        guard let tensor = stored[name] else { throw ModelError("\(path): the tensor \"\(name)\" is missing") }
        return try tensor.tensor(dtype: dtype, order: order(of: name))
    }

    func blocks(_ name: String) throws -> Dequantiser? {
        guard let tensor = stored[name], tensor.shape.count == 2, tensor.type.isQuantised else { return nil }
        return try tensor.dequantiser(order: order(of: name))
    }

    func forget(_ name: String) { stored[name]?.bytes.forget() }

    private func order(of name: String) -> RowOrder {
        guard let heads = interleavedHeads else { return .stored }
        if name.contains(".self_attn.q_proj.") { return .splittingHeads(heads.query) }
        if name.contains(".self_attn.k_proj.") { return .splittingHeads(heads.key) }
        return .stored
    }

    private static let blockNames: [String: String] = [
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    ]

    /// `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`; nil for a name of another family.
    static func huggingFaceName(_ name: String) -> String? {
        switch name {
        case "token_embd.weight": return "model.embed_tokens.weight"
        case "output_norm.weight": return "model.norm.weight"
        case "output.weight": return "lm_head.weight"
        default: break
        }
        let parts = name.split(separator: ".").map(String.init)
        guard parts.count == 4, parts[0] == "blk", let layer = Int(parts[1]), let module = blockNames[parts[2]] else {
            return nil
        }
        return "model.layers.\(layer).\(module).\(parts[3])"
    }
}

/// The names and shapes of a checkpoint with one zero behind every tensor.
struct OutlineSource: WeightSource {
    let whole: any WeightSource

    var path: String { whole.path }
    var names: [String] { whole.names }
    func shape(of name: String) -> [Int]? { whole.shape(of: name) }
    func storedDType(of name: String) -> DType? { whole.storedDType(of: name) }

    func tensor(_ name: String, dtype: DType) throws -> Tensor {
        let shape = whole.shape(of: name) ?? []
        return try Tensor.zeros(shape.map { _ in 1 }, dtype: dtype).expanded(shape)
    }
}

/// Makes a backbone's layers from a checkpoint, checking every shape, and remembers what was read.
public final class LlamaWeights {
    /// The dtype of the weights in memory.
    public let dtype: DType
    /// Where they go.
    public let device: Device
    private let source: any WeightSource
    private let form: WeightForm
    private var used: Set<String> = []

    /// Opens the door to a checkpoint.
    ///
    /// - Parameters:
    ///   - source: The tensors.
    ///   - dtype: The dtype of plain weights and of activations.
    ///   - device: Where they go; on an accelerator all of them are plain.
    ///   - form: How matrices are held.
    public init(_ source: any WeightSource, dtype: DType, device: Device = .cpu, form: WeightForm = .plain) {
        self.source = source
        self.form = device == .cpu ? form : .plain
        self.dtype = dtype
        self.device = device
    }

    /// A tensor of the shape that the configuration says.
    func tensor(_ name: String, _ shape: [Int]) throws -> Tensor {
        try check(name, shape)
        let tensor = try source.tensor(name, dtype: dtype).to(device: device)
        // A copy was made; else the tensor is the mapped file itself.
        if source.storedDType(of: name) != dtype || device != .cpu { source.forget(name) }
        return tensor
    }

    /// A matrix, as the file's blocks where that is wanted and possible.
    func matrix(_ name: String, _ shape: [Int]) throws -> Parameter {
        try check(name, shape)
        if let blocks = try keptBlocks(name) { return try Parameter(path: name, packed: blocks, dtype: dtype) }
        return Parameter(path: name, frozen: try tensor(name, shape))
    }

    private func keptBlocks(_ name: String) throws -> (any PackedStorage)? {
        guard form == .blocks || form == .multipliedBlocks, let blocks = try source.blocks(name) else { return nil }
        if form == .blocks { return blocks }
        guard PackedMatrix.canPack(blocks.type, columns: blocks.columns) else { return nil }
        return try PackedMatrix(blocks, threads: Machine.threads())
    }

    /// The weight of a linear layer of a block, quantised where that is wanted.
    private func weight(_ name: String, _ shape: [Int]) throws -> Parameter {
        switch form {
        case .plain, .blocks, .multipliedBlocks: return try matrix(name, shape)
        case .nf4, .int8: break
        }
        try check(name, shape)
        defer { source.forget(name) }
        do {
            guard let packed = try form.quantised(source.tensor(name, dtype: .float32)) else {
                return try matrix(name, shape)
            }
            return try Parameter(path: name, packed: packed, dtype: dtype)
        } catch let error as FormatError where error.file == nil {
            throw ModelError("\(source.path): the tensor \"\(name)\": \(error)")
        }
    }

    private func check(_ name: String, _ shape: [Int]) throws {
        guard let found = source.shape(of: name) else {
            throw ModelError(
                "\(source.path): the tensor \"\(name)\" is missing.\(suggestion(for: name, in: source.names))")
        }
        guard found == shape else {
            throw ModelError(
                "\(source.path): the tensor \"\(name)\" has shape \(found), the configuration says \(shape)")
        }
        used.insert(name)
    }

    func norm(_ path: String, _ shape: [Int], epsilon: Double) throws -> RMSNorm {
        RMSNorm(path: path, weight: try tensor(path + ".weight", shape), epsilon: epsilon)
    }

    func linear(
        _ path: String, _ role: LinearRole, layer: Int, out: Int, in inputs: Int, hasBias: Bool,
        heads: HeadLayout? = nil
    ) throws -> Linear {
        Linear(
            path: path, weight: try weight(path + ".weight", [out, inputs]),
            bias: hasBias ? try tensor(path + ".bias", [out]) : nil, role: role, layer: layer, heads: heads)
    }

    /// Refuses a checkpoint with tensors that the model does not use: it is of another architecture than it says.
    ///
    /// - Throws: `ModelError` naming one of them.
    public func requireEverythingUsed(tied: Bool) throws {
        let left = source.names.filter { name in
            !used.contains(name) && !name.hasSuffix(".rotary_emb.inv_freq") && !(tied && name == "lm_head.weight")
        }
        guard let first = left.first else { return }
        throw ModelError(
            "\(source.path): \(left.count) tensors do not belong to the model that the configuration describes, "
                + "\"\(first)\" first")
    }
}
