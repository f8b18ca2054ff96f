import Backbones
import Formats
import Torch

/// An adapter's folder on its way to the disk.
enum AdapterFolder {
    /// The names of a classifier's labels by their numbers, an array; peft has no place for them.
    static let labelsName = "labels.json"

    /// Writes the settings, and leaves the tensors to `writeTensors`, which gets the path of the unfinished folder.
    ///
    /// The folder appears whole or not at all; an old one of the name is replaced. Without a model, what the file says
    /// of its sizes stays as it was read. With labels the adapter is one that tells them apart.
    static func write(
        _ configuration: AdapterConfiguration, for model: LlamaConfiguration? = nil, labels: [String]?,
        to folder: String, _ writeTensors: (String) throws -> Void
    ) throws {
        var configuration = configuration
        if labels != nil { configuration.remaining["task_type"] = "SEQ_CLS" }
        try AtomicFolder.write(to: folder) { temporary in
            try AtomicFile.write(
                AdapterConfigurationFile.text(of: configuration, for: model),
                to: joined(temporary, AdapterConfigurationFile.name))
            try writeTensors(temporary)
            guard let labels else { return }
            let names = JSON(labels.map { .string($0) })
            try AtomicFile.write(names.pythonText() + "\n", to: joined(temporary, labelsName))
        }
    }

    /// As the plain form, with `adapter_model.safetensors` in fp32.
    static func write(
        _ configuration: AdapterConfiguration, _ tensors: KeyedList<Tensor>, labels: [String]?, to folder: String
    ) throws {
        try write(configuration, labels: labels, to: folder) { try writeTensors(tensors, to: $0) }
    }

    /// Writes `adapter_model.safetensors` into an unfinished folder, numbers in fp32.
    static func writeTensors(_ tensors: KeyedList<Tensor>, to folder: String) throws {
        var wide = KeyedList<Tensor>()
        for (name, tensor) in tensors {
            let dtype = tensor.dtype.isFloatingPoint ? DType.float32 : tensor.dtype
            wide.appendIfNew(key: name, value: try tensor.to(dtype: dtype))
        }
        try SafetensorsWriter.write(wide, to: joined(folder, StoredTensors.plainName))
    }

    /// Refuses what is no folder.
    static func requireFolder(_ folder: String) throws {
        guard PathKind(folder) == .folder else {
            throw PEFTError("\(folder): expected an adapter's folder with \(AdapterConfigurationFile.name)")
        }
    }
}

extension Adapter {
    /// Writes the adapter as a folder that Hugging Face peft reads: `adapter_config.json` and
    /// `adapter_model.safetensors` (fp32).
    ///
    /// The folder appears whole or not at all; an old one of the name is replaced.
    ///
    /// - Parameters:
    ///   - folder: Where it will be; its parent must exist.
    ///   - baseModel: What `base_model_name_or_path` says; nil keeps what a loaded adapter said.
    /// - Throws: `FormatError` when the folder cannot be written; `TorchError` when memory is short.
    public func save(to folder: String, baseModel: String? = nil) throws {
        var (configuration, tensors) = try exported()
        if let baseModel { configuration.remaining["base_model_name_or_path"] = .string(baseModel) }
        let labels = (backbone as? SequenceClassifier)?.labels
        try AdapterFolder.write(configuration, for: backbone.configuration, labels: labels, to: folder) {
            try AdapterFolder.writeTensors(tensors, to: $0)
        }
    }

    /// Loads an adapter folder that Graft or peft wrote, and attaches it.
    ///
    /// Every tensor of the file must belong to the adapter and every tensor of the adapter must be in the file. The
    /// copy of the pretrained weight that peft saves beside an adapted output head (`lm_head.base_layer.weight`) must
    /// be the model's own, up to the rounding of bfloat16; it is not used.
    ///
    /// - Parameters:
    ///   - folder: The folder with `adapter_config.json` and `adapter_model.safetensors` or
    ///     `adapter_model.ternary`.
    ///   - backbone: The model; it has no adapter yet.
    /// - Throws: `FormatError` when a file is missing or broken; `PEFTError` when settings are not supported, or when
    ///   file and model do not agree.
    public static func load(from folder: String, onto backbone: any Backbone) throws -> Adapter {
        try load(from: folder, onto: backbone) { try $0.values(dtype: .float32) }
    }

    /// As the public form, for a model whose pretrained values come from elsewhere.
    package static func load(
        from folder: String, onto backbone: any Backbone, pretrained: @escaping (Parameter) throws -> Tensor
    ) throws -> Adapter {
        try AdapterFolder.requireFolder(folder)
        let configuration = try AdapterConfigurationFile.read(folder: folder)
        guard configuration.isClassifier == (backbone is SequenceClassifier) else {
            throw PEFTError(
                configuration.isClassifier
                    ? "\(folder): the adapter tells texts apart (task_type SEQ_CLS) and does not write any; use graft eval "
                        + "with labelled rows"
                    : "\(folder): the adapter writes texts (task_type CAUSAL_LM) and has no head to tell them apart")
        }
        let stored = try StoredTensors(folder: folder)
        let adapter: Adapter
        do {
            try type(of: configuration.method).folderFields.requireModel(
                backbone.configuration, in: configuration.remaining)
            // Room for the comparison that names what is missing, but not for what no such file can hold.
            adapter = try Adapter(
                configuration, on: backbone, seed: stored.seed ?? Seed(0), mostValues: 4 * stored.count + 1e7,
                folder: StoredFolder(tensor: stored.tensorIfThere, pretrained: pretrained))
        } catch let error as PEFTError {
            throw PEFTError("\(folder): \(error)")
        }
        do {
            try adapter.fill(from: stored, pretrained: pretrained)
        } catch {
            adapter.detach()
            throw error
        }
        return adapter
    }

    private func fill(from stored: StoredTensors, pretrained: (Parameter) throws -> Tensor) throws {
        var shapes = try stored.shapes(wholeNumbers: Set(indices.keys))
        if case .plain(let file) = stored {
            for (name, tensor) in file.tensors where try isPretrainedCopy(tensor, pretrained) { shapes[name] = nil }
        }
        var expected = KeyedList<Tensor>()
        for trainable in trainables { expected.appendIfNew(key: trainable.name, value: trainable.tensor) }
        for (name, tensor) in indices { expected.appendIfNew(key: name, value: tensor) }
        try TensorAgreement(found: shapes, expected: expected).require(
            in: stored.path, blocks: backbone.configuration.numHiddenLayers)
        let head = try drawnHead(stored)
        for (name, tensor) in expected {
            let start = name == SequenceClassifier.headKey ? head ?? tensor : tensor
            try tensor.overwrite(with: stored.tensor(name, start: start))
        }
    }

    /// The head that a compressed classifier's seed draws, whichever the model was made with; nil for other adapters.
    private func drawnHead(_ stored: StoredTensors) throws -> Tensor? {
        guard let classifier = backbone as? SequenceClassifier, let seed = stored.seed else { return nil }
        return try SequenceClassifier(classifier.base, labels: classifier.labels, seed: seed).head.weight.values(
            dtype: .float32)
    }

    /// Whether a tensor is the pretrained weight of an adapted layer, which peft saves for the output head.
    private func isPretrainedCopy(
        _ tensor: SafetensorsTensor, _ pretrained: (Parameter) throws -> Tensor
    ) throws -> Bool {
        let layer = updates.first {
            adapterKey($0.linear.path, "base_layer.weight").utf8.elementsEqual(tensor.name.utf8)
        }
        guard let weight = layer?.linear.weight else { return false }
        let file = tensor.bytes.file.path
        guard tensor.shape == weight.frozen.shape else {
            throw PEFTError(
                "\(file): \"\(tensor.name)\" has shape \(tensor.shape), the model's \(weight.path) has "
                    + "\(weight.frozen.shape): the adapter is for a model with another vocabulary")
        }
        let own = try pretrained(weight).to(dtype: .float32)
        let difference = try (own - tensor.tensor().to(dtype: .float32, device: own.device)).absolute().maximum()
        // bfloat16 rounds to 8 bits.
        let limit = try own.absolute().maximum() * 0x1p-7
        guard try difference.item(as: Float.self) <= limit.item(as: Float.self) else {
            throw PEFTError(
                "\(file): \"\(tensor.name)\" differs from the model's \(weight.path): the adapter was trained on "
                    + "another base model")
        }
        return true
    }
}

extension Adapter {
    /// All that a run needs to go on with the adapter: trainable tensors and frozen ones by name, not copied.
    public var state: KeyedList<Tensor> {
        var state = KeyedList<Tensor>()
        for trainable in trainables { state.appendIfNew(key: trainable.name, value: trainable.tensor) }
        for (name, buffer) in buffers { state.appendIfNew(key: name, value: buffer) }
        for (name, tensor) in indices { state.appendIfNew(key: name, value: tensor) }
        return state
    }

    /// Overwrites the adapter's tensors with those of a ``state``.
    ///
    /// - Parameters:
    ///   - state: One tensor for each of the adapter's, by name.
    ///   - origin: The file they come from, for errors.
    /// - Throws: `PEFTError` when names or shapes do not agree; the adapter stays as it was then.
    public func restore(_ state: KeyedList<Tensor>, origin: String = "adapter state") throws {
        var shapes = KeyedList<[Int]>()
        for (name, tensor) in state { shapes.appendIfNew(key: name, value: tensor.shape) }
        let own = self.state
        try TensorAgreement(found: shapes, expected: own).require(
            in: origin, blocks: backbone.configuration.numHiddenLayers)
        for (name, tensor) in own {
            if let values = state[name] { try tensor.overwrite(with: values) }
        }
    }
}

extension Tensor {
    /// Copies values of the same shape into this tensor's memory, outside the record, converting dtype and device.
    fileprivate func overwrite(with values: Tensor) throws {
        try withoutGrad { _ = try callTensor("aten::copy_", self, values.detached()) }
    }
}

extension AdapterConfiguration {
    /// Whether the adapter's model tells texts apart.
    fileprivate var isClassifier: Bool { remaining["task_type"] == "SEQ_CLS" }
}

extension SequenceClassifier {
    /// The key of the head in an adapter's folder.
    static let headKey = adapterKey("score", "weight")

    /// What an adapter's folder is loaded onto: a language model, with a head where the adapter tells texts apart.
    ///
    /// - Throws: As ``labels(ofAdapter:)``; `TorchError` when memory is short.
    static func backbone(ofAdapter folder: String, over model: any Backbone) throws -> any Backbone {
        guard let labels = try labels(ofAdapter: folder) else { return model }
        return try SequenceClassifier(model, labels: labels, seed: Seed(0))
    }

    /// The names of the labels that an adapter folder tells apart: those that are written down there, else numbers; nil
    /// for adapters of models that write.
    ///
    /// - Throws: `FormatError` when a file is missing or broken; `PEFTError` when the folder has no head.
    public static func labels(ofAdapter folder: String) throws -> [String]? {
        guard try AdapterConfigurationFile.read(folder: folder).isClassifier else { return nil }
        let stored = try StoredTensors(folder: folder)
        guard let rows = try stored.shapes(wholeNumbers: Set(stored.names))[headKey]?.first, rows > 0 else {
            throw PEFTError("\(stored.path): the head \(headKey) is missing")
        }
        let written = joined(folder, AdapterFolder.labelsName)
        guard PathKind(written) == .file else { return (0..<rows).map { "\($0)" } }
        let names = try JSON.read(path: written).array?.compactMap(\.string) ?? []
        guard names.count == rows, Set(names).count == rows else {
            throw FormatError(file: written, "expected \(rows) different names, one for each row of the head")
        }
        return names
    }
}
