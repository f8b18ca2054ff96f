import Backbones
import Formats
import Tokenizers
import Torch

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The weights that an adapter over quantised ones is merged into.
public enum MergeBase: String, Sendable, CaseIterable {
    /// Those of the checkpoint, as precise as they are stored.
    case original
    /// Those that training has seen: quantised and unpacked again.
    case dequantised
}

/// Works an adapter into its base model and writes the result as a Hugging Face folder.
///
/// Tensors go from the mapped base to the new files one at a time: merged in fp32, rounded once.
public struct Merger {
    /// The base model.
    public let checkpoint: Checkpoint
    /// The adapter's folder.
    public let adapterFolder: String
    /// The dtype of the merged model: `float32`, `bfloat16` or `float16`; nil keeps the dtype of every tensor of a
    /// folder, and takes `float32` for a GGUF file.
    public var dtype: DType?
    /// How the frozen weights were held when the adapter was trained.
    public var form = WeightForm.plain
    /// What the adapter is merged into, where training had quantised the weights.
    ///
    /// Of a GGUF file's own blocks there is nothing more original.
    public var base = MergeBase.original
    /// Bytes of tensors in one file at most.
    public var maxShardBytes = 5_000_000_000

    private static let metadataFiles = [
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
        "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    ]

    /// Prepares a merge.
    public init(_ checkpoint: Checkpoint, adapter folder: String) {
        self.checkpoint = checkpoint
        adapterFolder = folder
    }

    /// Writes the merged model; its folder appears whole or not at all.
    ///
    /// - Parameters:
    ///   - folder: Where it will be; its parent must exist.
    ///   - replaces: Whether an old folder of the name may be replaced.
    ///   - progress: Called after every tensor with the number of tensors done and of all.
    /// - Returns: What was written and what rounding cost.
    /// - Throws: `PEFTError`, `ModelError` and `FormatError` when the adapter does not fit the model or a file cannot
    ///   be read or written.
    public func write(
        to folder: String, replacing replaces: Bool = false, progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> MergeReport {
        if let dtype, ![.float32, .bfloat16, .float16].contains(dtype) {
            throw PEFTError("a model cannot be stored in \(dtype); expected float32, bfloat16 or float16")
        }
        try requireApart(folder)
        let needsValues = try StoredTensors.startsFromModel(adapterFolder)
        let backbone = try needsValues ? checkpoint.backbone(dtype: .float32) : checkpoint.outline()
        let source = try mergedSource()
        let adapter = try Adapter.load(from: adapterFolder, onto: backbone) { try pretrained($0, from: source) }
        let plan = MergePlan(adapter, of: backbone, source: source)
        let biases = try AddedBiases(adapter, of: backbone)
        var changes: [MergeReport.Change] = []
        try AtomicFolder.write(to: folder, replacing: replaces) { temporary in
            try writeConfiguration(to: temporary, isUntied: plan.isUntied, flags: biases.flags)
            try writeTokenizer(to: temporary)
            changes = try writeTensors(plan, biases, adapter, source, to: temporary, progress)
        }
        return try MergeReport(
            folder: folder, base: baseName, changes: changes, tensorCount: plan.tensors.count + biases.tensors.count,
            isUntied: plan.isUntied)
    }

    /// Compares a merged model with the base model and the adapter.
    ///
    /// - Parameters:
    ///   - folder: The merged model.
    ///   - prompts: Token ids, each list one sequence.
    ///   - dtype: The dtype to compute in.
    ///   - device: Where to compute.
    /// - Throws: `PEFTError` when there is nothing to compare; what loading and running a model throws.
    public func verify(
        _ folder: String, prompts: [[Int]], dtype: DType = .float32, device: Device = .cpu
    ) throws -> MergeComparison {
        let prompts = prompts.filter { !$0.isEmpty }
        guard !prompts.isEmpty else { throw PEFTError("expected at least one prompt to compare the models on") }
        let ids = try prompts.map { try Tensor($0, shape: [1, $0.count]).to(device: device) }
        // One model in memory at a time.
        let expected = try withoutGrad {
            let backbone = try checkpoint.backbone(
                dtype: dtype, device: device, form: base == .dequantised ? form : .plain)
            _ = try Adapter.load(from: adapterFolder, onto: backbone)
            return try ids.map { try backbone.logits($0).to(dtype: .float32) }
        }
        let merged = try withoutGrad {
            let backbone = try Checkpoint(.folder(folder)).backbone(dtype: dtype, device: device)
            return try ids.map { try backbone.logits($0).to(dtype: .float32) }
        }
        var (difference, logit, agreeing, positions) = (0.0, 0.0, 0, 0)
        for (a, b) in zip(expected, merged) {
            difference = max(difference, try (a - b).absolute().maximum().item(as: Double.self))
            logit = max(logit, try a.absolute().maximum().item(as: Double.self))
            let (best, other) = (try a.argmax(-1).values(as: Int.self), try b.argmax(-1).values(as: Int.self))
            agreeing += zip(best, other).count { $0 == $1 }
            positions += best.count
        }
        return MergeComparison(
            largestDifference: difference, largestLogit: logit,
            argmaxAgreement: Double(agreeing) / Double(positions), positions: positions)
    }

    /// Whether training quantised the checkpoint's weights.
    private var isQuantised: Bool {
        switch form {
        case .nf4, .int8: true
        case .plain, .blocks, .multipliedBlocks: false
        }
    }

    private func mergedSource() throws -> any WeightSource {
        try isQuantised && base == .dequantised ? checkpoint.source(dequantising: form) : checkpoint.source
    }

    /// What the adapter is merged into, in words.
    private var baseName: String {
        get throws {
            if isQuantised, base == .dequantised { return "the quantised weights that it was trained over, unpacked" }
            return try checkpoint.hasBlocks
                ? "the quantised blocks of the GGUF file, unpacked" : "the original weights"
        }
    }

    /// The pretrained values of a parameter of the outline; a tied head is stored as the embedding.
    private func pretrained(_ parameter: Parameter, from source: any WeightSource) throws -> Tensor {
        let isStored = source.shape(of: parameter.path) != nil && !isTiedHead(parameter.path)
        return try source.tensor(isStored ? parameter.path : MergePlan.embedding, dtype: .float32)
    }

    private func isTiedHead(_ name: String) -> Bool {
        checkpoint.configuration.tieWordEmbeddings && name == MergePlan.head
    }

    /// A folder that is replaced must not hold what is being read.
    private func requireApart(_ folder: String) throws {
        func place(_ path: String) -> String { URL(fileURLWithPath: path).resolvingSymlinksInPath().path + "/" }
        for path in [checkpoint.location.path, adapterFolder] where place(path).hasPrefix(place(folder)) {
            throw PEFTError(
                "\(folder): the merged model cannot replace \(path), which it is made of; name another folder")
        }
    }

    private func writeTensors(
        _ plan: MergePlan, _ biases: AddedBiases, _ adapter: Adapter, _ source: any WeightSource, to folder: String,
        _ progress: (Int, Int) -> Void
    ) throws -> [MergeReport.Change] {
        var infos = KeyedList<SafetensorsInfo>()
        for tensor in plan.tensors {
            guard let type = SafetensorsType(outputDType(of: tensor.stored)) else { continue }
            infos.appendIfNew(key: tensor.name, value: SafetensorsInfo(type: type, shape: tensor.shape))
        }
        let biasDType = outputDType(of: MergePlan.embedding)
        for (name, bias) in biases.tensors {
            guard let type = SafetensorsType(biasDType) else { continue }
            infos.appendIfNew(key: name, value: SafetensorsInfo(type: type, shape: bias.shape))
        }
        let shards = try SafetensorsShards(
            folder: folder, tensors: infos, metadata: ["format": "pt", "merged_into": baseName],
            maxShardBytes: maxShardBytes)
        var changes: [MergeReport.Change] = []
        for (index, tensor) in plan.tensors.enumerated() {
            let dtype = outputDType(of: tensor.stored)
            if let parameter = tensor.changed,
                case let base = try source.tensor(tensor.stored, dtype: .float32),
                let merged = try adapter.merged(parameter, pretrained: base)
            {
                var (rounded, change) = try round(merged, from: base, to: dtype, tensor.name)
                change.quantisation = try quantisationGap(tensor.stored, linear: parameter)
                changes.append(change)
                try shards.write(tensor.name, rounded)
            } else {
                try shards.write(tensor.name, source.tensor(tensor.stored, dtype: dtype))
            }
            progress(index + 1, plan.tensors.count)
        }
        for (name, bias) in biases.tensors {
            let (rounded, change) = try round(bias, from: bias.zerosLike(), to: biasDType, name)
            changes.append(change)
            try shards.write(name, rounded)
        }
        try shards.finish()
        return changes
    }

    /// How far quantising has moved a weight, `||W - dequant(quant(W))||`; nil where it was not quantised.
    private func quantisationGap(_ name: String, linear: Parameter) throws -> Double? {
        guard isQuantised, name != MergePlan.head, name != MergePlan.embedding, linear.frozen.rank == 2 else {
            return nil
        }
        let whole = try checkpoint.source.tensor(name, dtype: .float32)
        guard let packed = try form.quantised(whole) else { return nil }
        return try (packed.values(dtype: .float32) - whole).norm().item(as: Double.self)
    }

    private func outputDType(of stored: String) -> DType {
        dtype ?? checkpoint.source.storedDType(of: stored) ?? .float32
    }

    private func round(
        _ merged: Tensor, from base: Tensor, to dtype: DType, _ name: String
    ) throws -> (Tensor, MergeReport.Change) {
        let rounded = try merged.to(dtype: dtype)
        guard try rounded.isAllFinite() else {
            throw PEFTError(
                "\(name): the merged weight has values that are no finite \(dtype) numbers; the adapter diverged, or "
                    + "the dtype is too narrow")
        }
        func size(_ tensor: Tensor) throws -> Double { try tensor.norm().item(as: Double.self) }
        let change = MergeReport.Change(
            name: name, dtype: dtype, update: try size(merged - base),
            loss: try size(rounded.to(dtype: .float32) - merged))
        return (rounded, change)
    }

    private func writeConfiguration(to folder: String, isUntied: Bool, flags: [String]) throws {
        var json = checkpoint.configuration.json
        if isUntied { json["tie_word_embeddings"] = false }
        for flag in flags { json[flag] = true }
        if let dtype = dtype ?? (checkpoint.gguf == nil ? nil : .float32) {
            json[json["dtype"] == nil && json["torch_dtype"] != nil ? "torch_dtype" : "dtype"] = .string("\(dtype)")
        }
        try AtomicFile.write(json.pythonText(indent: 2) + "\n", to: joined(folder, "config.json"))
        guard checkpoint.gguf != nil else { return }
        var generation = KeyedList<JSON>()
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] { generation[key] = json[key] }
        try AtomicFile.write(
            JSON.object(generation).pythonText(indent: 2) + "\n", to: joined(folder, "generation_config.json"))
    }

    private func writeTokenizer(to folder: String) throws {
        switch checkpoint.location {
        case .gguf:
            if let file = checkpoint.gguf { try Tokenizer(gguf: file).write(toFolder: folder) }
        case .folder(let base):
            for name in Self.metadataFiles where PathKind(joined(base, name)) == .file {
                // Read, not copied as a file: downloaded models are links into a cache.
                try AtomicFile.write(
                    Data(contentsOf: URL(fileURLWithPath: joined(base, name))), to: joined(folder, name))
            }
        }
    }
}

/// The tensors of a merged model: where each comes from and what changes it.
private struct MergePlan {
    static let embedding = "model.embed_tokens.weight"
    static let head = "lm_head.weight"

    struct Entry {
        let name: String
        /// The name in the base checkpoint.
        let stored: String
        let shape: [Int]
        /// The parameter that the adapter may change, or nil.
        let changed: Parameter?
    }

    let tensors: [Entry]
    /// Whether embedding and head part, since the adapter changes one of them or both.
    let isUntied: Bool

    init(_ adapter: Adapter, of backbone: any Backbone, source: any WeightSource) {
        var changed: [String: Parameter] = [:]
        for parameter in adapter.updates.flatMap(\.linear.parameters) + adapter.copies.map(\.parameter) {
            changed[parameter.path] = parameter
        }
        let isTied = backbone.configuration.tieWordEmbeddings
        // Both may be trained as one.
        let copies = [Self.head, Self.embedding].map { name in
            adapter.copies.first { $0.parameter.path == name }?.tensor
        }
        let isOne = copies[0] != nil && copies[0] === copies[1]
        isUntied = isTied && !isOne && (changed[Self.head] != nil || changed[Self.embedding] != nil)
        var tensors: [Entry] = []
        // A tied head that lies in the checkpoint all the same is a copy of the embedding.
        for name in source.names where !(isTied && name == Self.head) {
            let shape = source.shape(of: name) ?? []
            tensors.append(Entry(name: name, stored: name, shape: shape, changed: changed[name]))
        }
        if isUntied, let shape = source.shape(of: Self.embedding) {
            tensors.append(
                Entry(name: Self.head, stored: Self.embedding, shape: shape, changed: changed[Self.head]))
        }
        self.tensors = tensors
    }
}

extension SafetensorsShards {
    /// Writes a whole tensor.
    fileprivate func write(_ name: String, _ tensor: Tensor) throws {
        try tensor.detached().contiguous().withUnsafeMutableBytes { try write(name, UnsafeRawBufferPointer($0)) }
    }
}
