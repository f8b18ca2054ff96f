import Formats
import Torch

/// A pretrained model on disk: a Hugging Face folder or a GGUF file, opened but not yet in memory.
public struct Checkpoint {
    /// Where the model lies.
    public enum Location: Sendable, Equatable {
        /// A folder with `config.json` and safetensors files.
        case folder(String)
        /// One GGUF file.
        case gguf(String)

        /// The folder or file.
        public var path: String {
            switch self {
            case .folder(let path), .gguf(let path): path
            }
        }
    }

    /// Where the model lies.
    public let location: Location
    /// What the model is.
    public let configuration: LlamaConfiguration
    /// The tensors.
    package let source: any WeightSource
    /// The GGUF file, for what else it holds.
    package let gguf: GGUFFile?

    /// Opens a model by its path or alias.
    ///
    /// - Parameter name: A folder, a `.gguf` file, or an alias such as `smollm2-135m`.
    /// - Throws: `ModelError` and `FormatError` saying what is missing or wrong, and what to do.
    public init(_ name: String) throws {
        try self.init(ModelCatalog.locate(name))
    }

    /// Opens a model at a place.
    ///
    /// - Throws: `ModelError` and `FormatError` saying what is missing or wrong.
    public init(_ location: Location) throws {
        self.location = location
        switch location {
        case .folder(let path):
            let file = path + "/config.json"
            configuration = try LlamaConfiguration(JSON.read(path: file), file: file)
            source = SafetensorsSource(checkpoint: try SafetensorsCheckpoint(path: path))
            gguf = nil
        case .gguf(let path):
            let file = try GGUFFile(path: path)
            configuration = try LlamaConfiguration(gguf: file)
            let isInterleaved = file.metadata["general.architecture"]?.string == "llama"
            let heads = (query: configuration.numAttentionHeads, key: configuration.numKeyValueHeads)
            source = try GGUFSource(file, interleavedHeads: isInterleaved ? heads : nil)
            gguf = file
        }
    }

    /// Brings the model into memory.
    ///
    /// - Parameters:
    ///   - dtype: The dtype of weights and activations, `float32` or `bfloat16`.
    ///   - device: Where it goes.
    ///   - form: How matrices are held; all but ``WeightForm/plain`` on the CPU only.
    /// - Throws: `ModelError` when a tensor is missing, superfluous or of another shape than the configuration says, or
    ///   the matrices cannot be held so.
    public func backbone(dtype: DType, device: Device = .cpu, form: WeightForm = .plain) throws -> any Backbone {
        guard form == .plain || device == .cpu else {
            throw ModelError("quantised weights are computed with on the CPU only, not on \(device); use the CPU")
        }
        if form == .blocks || form == .multipliedBlocks, try !hasBlocks {
            throw ModelError(
                "\(location.path): there are no quantised blocks to keep; name a GGUF file that is quantised, or quantise "
                    + "to nf4 or int8")
        }
        return try Llama(
            configuration, weights: LlamaWeights(source, dtype: dtype, device: device, form: form))
    }

    /// What an adapter was merged into to make this model, in words, where its files say so.
    public var mergedInto: String? {
        (source as? SafetensorsSource)?.checkpoint.files.first?.metadata["merged_into"]
    }

    /// Whether there are matrices of quantised blocks.
    public var hasBlocks: Bool {
        get throws { try source.names.contains { try source.blocks($0) != nil } }
    }

    /// Whether some of them can be multiplied as they are.
    public var hasMultipliedBlocks: Bool {
        get throws {
            try source.names.contains { name in
                try source.blocks(name).map { PackedMatrix.canPack($0.type, columns: $0.columns) } ?? false
            }
        }
    }

    /// The model's layers without its values, in next to no memory: what an adapter needs to be loaded for merging.
    ///
    /// - Throws: `ModelError` when a tensor is missing, superfluous or of another shape than the configuration says.
    package func outline() throws -> any Backbone {
        try Llama(configuration, weights: LlamaWeights(OutlineSource(whole: source), dtype: .float32))
    }
}
