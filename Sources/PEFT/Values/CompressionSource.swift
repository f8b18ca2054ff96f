import Backbones
import Formats
import Torch

/// An adapter as tensors, with what they start from where that is not zero.
struct CompressionSource {
    /// What a tensor starts from.
    struct Start {
        let values: Tensor
        let kind: TernaryFile.Start
    }

    let configuration: AdapterConfiguration
    let tensors: KeyedList<Tensor>
    /// What random starts are drawn from, where that is known.
    let seed: Seed?
    /// What an adapter that tells texts apart calls its labels; nil for one that writes.
    let labels: [String]?
    /// Bytes of the file of tensors.
    let bytes: Int
    /// The base model; nil where every tensor's start is zero.
    private let model: (any Backbone)?

    /// The factors of LoRA and its kin: without a seed their start is taken for zero, and no model is needed.
    private static let factors = [".lora_A.weight", ".lora_B.weight"]

    /// Reads a folder.
    ///
    /// - Parameters:
    ///   - folder: The adapter's.
    ///   - seed: What its training was begun with; nil takes a compressed file's own.
    ///   - backbone: Gives the base model, without an adapter; asked for where a start depends on it.
    init(_ folder: String, seed: Seed?, backbone: () throws -> any Backbone) throws {
        try AdapterFolder.requireFolder(folder)
        let stored = try StoredTensors(folder: folder)
        bytes = try MappedFile(path: stored.path).count
        if let name = stored.firstOfWholeNumbers {
            throw PEFTError(
                "\(folder): \"\(name)\" holds positions; signs and a scale cannot stand for them, so adapters of this "
                    + "type are not compressed")
        }
        labels = try SequenceClassifier.labels(ofAdapter: folder)
        self.seed = seed ?? stored.seed
        let names = try stored.shapes().keys
        let areFactors = names.allSatisfy { name in Self.factors.contains { name.hasSuffix($0) } }
        var tensors = KeyedList<Tensor>()
        guard self.seed != nil || !areFactors else {
            configuration = try AdapterConfigurationFile.read(folder: folder)
            model = nil
            for name in names { tensors.appendIfNew(key: name, value: try stored.tensor(name, start: nil)) }
            self.tensors = tensors
            return
        }
        let model = try backbone()
        let adapter = try Adapter.load(
            from: folder, onto: SequenceClassifier.backbone(ofAdapter: folder, over: model))
        adapter.detach()
        configuration = adapter.configuration
        for trainable in adapter.trainables {
            tensors.appendIfNew(key: trainable.name, value: try trainable.tensor.detached())
        }
        self.tensors = tensors
        self.model = model
    }

    /// What the tensors start from but for zeros, as the adapter is made when its folder is loaded.
    ///
    /// What begins alike whatever the seed is the tensor's own start. Of what is drawn the seed's numbers are taken where
    /// they are nearer to the tensor than zero is, which they are not when the training began elsewhere.
    ///
    /// - Throws: `PEFTError` or `TorchError` when the adapter cannot be made.
    func starts() throws -> KeyedList<Start> {
        guard let model else { return [:] }
        func made(_ seed: Seed) throws -> [Trainable] {
            let backbone =
                try labels.map { try SequenceClassifier(model, labels: $0, seed: seed) as any Backbone } ?? model
            let adapter = try Adapter(configuration, on: backbone, seed: seed)
            adapter.detach()
            return adapter.trainables
        }
        func size(_ tensor: Tensor) throws -> Float { try tensor.norm().item() }
        let first = seed ?? Seed(0)
        var starts = KeyedList<Start>()
        for (begun, other) in zip(try made(first), try made(Seed(first.value &+ 1))) {
            let values = try begun.tensor.detached()
            guard try size(values) > 0, let tensor = tensors[begun.name] else { continue }
            if try values.isIdentical(to: other.tensor) {
                starts.appendIfNew(key: begun.name, value: Start(values: values, kind: .own))
            } else if seed != nil, try size(tensor - values) < size(tensor) {
                starts.appendIfNew(key: begun.name, value: Start(values: values, kind: .drawn))
            }
        }
        return starts
    }
}
