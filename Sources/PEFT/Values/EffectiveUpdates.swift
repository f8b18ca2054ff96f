import Backbones
import Formats
import Torch

/// What one adapter adds to each weight of its base model, in factors where it is a product of thin ones.
struct EffectiveUpdates {
    /// The update of one weight, fp32.
    enum Update {
        /// `scale * up down`: `down [rank, in]`, `up [out, rank]`.
        case factors(down: Tensor, up: Tensor, scale: Double)
        /// `[out, in]`.
        case dense(Tensor)

        /// `[out, in]`.
        var shape: [Int] {
            switch self {
            case .factors(let down, let up, _): [up.size(0), down.size(1)]
            case .dense(let update): update.shape
            }
        }

        /// `[out, in]`.
        func dense() throws -> Tensor {
            switch self {
            case .factors(let down, let up, let scale): try up.matmul(down) * scale
            case .dense(let update): update
            }
        }
    }

    let folder: String
    let configuration: AdapterConfiguration
    /// Whether the adapter is LoRA without anything else, so that its factors are all there is.
    let isPlainLoRA: Bool
    /// What an adapter that tells texts apart calls its labels; nil for one that writes.
    let labels: [String]?
    /// The head of such an adapter, `[labels, hidden]`.
    private(set) var head: Tensor?
    /// By the path of the layer.
    private(set) var updates = KeyedList<Update>()

    /// Reads a folder; the model is asked for unless the adapter is plain LoRA.
    ///
    /// - Throws: `PEFTError` when the adapter does anything that is no update of a linear layer's weight, but for the
    ///   head of one that tells texts apart.
    init(_ folder: String, backbone: () throws -> any Backbone) throws {
        self.folder = folder
        try AdapterFolder.requireFolder(folder)
        let configuration = try AdapterConfigurationFile.read(folder: folder)
        let stored = try StoredTensors(folder: folder)
        let labels = try SequenceClassifier.labels(ofAdapter: folder)
        self.labels = labels
        if let method = configuration.method as? LoRA, !method.useDoRA,
            case let names = try stored.shapes().keys.filter({ labels == nil || $0 != SequenceClassifier.headKey }),
            names.allSatisfy({ $0.hasSuffix(Self.down) || $0.hasSuffix(Self.up) })
        {
            (self.configuration, isPlainLoRA) = (configuration, true)
            let tensors = try Self.tensors(of: folder, stored, backbone: backbone)
            head = tensors[SequenceClassifier.headKey]
            try readFactors(method, tensors, names, of: stored)
        } else {
            isPlainLoRA = false
            let adapter = try Adapter.load(
                from: folder, onto: SequenceClassifier.backbone(ofAdapter: folder, over: backbone()))
            defer { adapter.detach() }
            self.configuration = adapter.configuration
            try compute(adapter)
        }
    }

    private static let down = ".lora_A.weight"
    private static let up = ".lora_B.weight"

    /// The tensors of plain LoRA; the model is asked for where the file has only their changes.
    private static func tensors(
        of folder: String, _ stored: StoredTensors, backbone: () throws -> any Backbone
    ) throws -> KeyedList<Tensor> {
        var tensors = KeyedList<Tensor>()
        guard stored.startsFromModel else {
            for name in stored.names { tensors[name] = try stored.tensor(name, start: nil) }
            return tensors
        }
        let adapter = try Adapter.load(
            from: folder, onto: SequenceClassifier.backbone(ofAdapter: folder, over: backbone()))
        defer { adapter.detach() }
        for trainable in adapter.trainables { tensors[trainable.name] = try trainable.tensor.detached() }
        return tensors
    }

    private mutating func readFactors(
        _ method: LoRA, _ tensors: KeyedList<Tensor>, _ names: [String], of stored: StoredTensors
    ) throws {
        let prefix = adapterKey("", "").dropLast()
        for name in names where name.hasSuffix(Self.down) {
            let base = name.dropLast(Self.down.count)
            guard base.hasPrefix(prefix) else {
                throw PEFTError(
                    "\(stored.path): \"\(name)\" is no key of a layer; expected \(prefix)<path>\(Self.down)")
            }
            let path = String(base.dropFirst(prefix.count))
            let (rank, scale) = try method.rankAndScale(of: path)
            guard let a = try tensors[name]?.to(dtype: .float32),
                let b = try tensors[base + Self.up]?.to(dtype: .float32)
            else {
                throw PEFTError("\(stored.path): \(path) has no \(Self.up.dropFirst()) beside \(Self.down.dropFirst())")
            }
            guard a.rank == 2, b.rank == 2, a.size(0) == rank, b.size(1) == rank else {
                throw PEFTError(
                    "\(stored.path): \(path) has factors of shapes \(a.shape) and \(b.shape); expected the rank \(rank)"
                )
            }
            updates.appendIfNew(key: path, value: .factors(down: a, up: b, scale: scale))
        }
        guard !updates.isEmpty, names.count == 2 * updates.count else {
            throw PEFTError("\(stored.path): \(names.count) tensors are no pairs of \(Self.down) and \(Self.up)")
        }
    }

    private mutating func compute(_ adapter: Adapter) throws {
        let classifier = adapter.backbone as? SequenceClassifier
        head = try adapter.copies.first { $0.parameter === classifier?.head.weight }?.tensor.detached()
        if let copy = adapter.copies.first(where: { $0.parameter !== classifier?.head.weight }) {
            throw PEFTError(
                "\(folder): \(copy.parameter.path) is trained whole and not as an update; adapters with modules_to_save "
                    + "or bias cannot be combined")
        }
        do {
            try adapter.requireMergeable()
        } catch let error as PEFTError {
            throw PEFTError("\(folder): the adapter is no update of weights, so it cannot be combined: \(error)")
        }
        for (linear, update) in adapter.updates {
            if try update.mergedBias(linear.bias?.values(dtype: .float32)) != nil {
                throw PEFTError("\(folder): the adapter changes the bias of \(linear.path), so it cannot be combined")
            }
            let effective: Update = try withoutGrad {
                if let update = update as? any LowRankUpdate {
                    let (down, up) = try update.factors()
                    return .factors(down: try down.detached(), up: try up.detached(), scale: update.scale)
                }
                let weight = try linear.weight.values(dtype: .float32)
                return .dense(try (update.merged(into: weight.to(dtype: .float64)) - weight).to(dtype: .float32))
            }
            updates.appendIfNew(key: linear.path, value: effective)
        }
        guard !updates.isEmpty else { throw PEFTError("\(folder): the adapter changes no weight of a linear layer") }
    }
}
