import Backbones
import Formats
import Torch

/// ComPEFT: a trained adapter as the signs of its largest changes and one scale, in a file some tens of times smaller.
/// arXiv 2311.13171
///
/// All tensors of an adapter, less their starts, are one vector. Of its `d` values the largest share, `density`, keeps
/// its signs; the scale is `alpha` times the deviation of all values. LoRA's factors start from zero here, whatever
/// they were drawn from; tensors whose start the settings and the base model decide, such as the ones of (IA)^3, DoRA's
/// norms and whole modules, start from that.
public struct AdapterCompression {
    /// What compressing has done.
    public struct Report: Sendable {
        /// The number of values, and of those that are not zero any more than their start.
        public let values: Int, kept: Int
        /// The deviation of all values, and the size of the kept ones.
        public let deviation: Double, scale: Double
        /// Bytes of the file of tensors before and after.
        public let bytesBefore: Int, bytesAfter: Int
        /// Bytes of the codes in it; names, shapes and settings of the file are the rest.
        public let codeBytes: Int

        /// Bits that no code for random signs at random places can do without: `16 + d H(kept / d)`.
        public var boundBits: Double {
            16 + Double(values) * RiceCode.entropy(density: Double(kept) / Double(values))
        }
        /// How many times smaller the file is than the values in 16 bits each.
        public var ratioTo16Bits: Double { 2 * Double(values) / Double(bytesAfter) }
    }

    /// The share of values that is kept, above 0 and at most 1.
    public var density: Double
    /// The kept values' size in units of the deviation of all.
    public var alpha: Double

    /// Makes a compression; the paper keeps 5 to 50 percent, and tunes alpha from 0.5 to 10 on held-out rows.
    public init(density: Double, alpha: Double = 1) {
        self.density = density
        self.alpha = alpha
    }

    /// Writes an adapter's folder with `adapter_model.ternary` in the place of `adapter_model.safetensors`.
    ///
    /// - Parameters:
    ///   - folder: A folder that Graft or peft wrote.
    ///   - output: The new folder; its parent must exist.
    ///   - backbone: Gives the base model, without an adapter; asked for where a tensor's start depends on it.
    /// - Throws: `PEFTError` for a density or alpha out of range, or an adapter that does not fit; `FormatError` when a
    ///   file cannot be read or written; what `backbone` throws.
    public func compress(
        _ folder: String, to output: String, backbone: () throws -> any Backbone
    ) throws -> Report {
        let source = try AdapterSource(folder, backbone: backbone)
        let vector = try TaskVector(source.tensors, starts: source.starts)
        let ternary = try vector.ternary(density: density, alpha: alpha)
        var entries = KeyedList<TernaryFile.Entry>()
        for (name, shape) in vector.shapes {
            let norm = try source.starts[name].map { try $0.norm().item(as: Float.self) }
            entries.appendIfNew(
                key: name,
                value: TernaryFile.Entry(shape: shape, start: norm == nil ? .zero : .own, startNorm: norm ?? 0))
        }
        var size = (codes: 0, file: 0)
        try AdapterFolder.write(source.configuration, labels: source.labels, to: output) { temporary in
            size = try TernaryFile.write(
                to: joined(temporary, StoredTensors.ternaryName), tensors: entries, vector: ternary, density: density,
                alpha: Float(alpha))
        }
        return Report(
            values: ternary.count, kept: ternary.keptCount, deviation: try vector.deviation(),
            scale: Double(ternary.scale), bytesBefore: source.bytes, bytesAfter: size.file, codeBytes: size.codes)
    }

    /// Writes a compressed adapter's folder as an ordinary one, which peft reads.
    ///
    /// - Throws: As ``compress(_:to:backbone:)``.
    public static func decompress(
        _ folder: String, to output: String, backbone: () throws -> any Backbone
    ) throws {
        let source = try AdapterSource(folder, backbone: backbone)
        try AdapterFolder.write(source.configuration, source.tensors, labels: source.labels, to: output)
    }
}

/// An adapter as tensors, with what they start from where that is not zero.
private struct AdapterSource {
    let configuration: AdapterConfiguration
    let tensors: KeyedList<Tensor>
    let starts: KeyedList<Tensor>
    /// What an adapter that tells texts apart calls its labels; nil for one that writes.
    let labels: [String]?
    /// Bytes of the file of tensors.
    let bytes: Int

    /// The factors of LoRA and its kin, whose start is taken for zero: one was zero, the other says nothing alone.
    private static let zeroStarts = [".lora_A.weight", ".lora_B.weight"]

    init(_ folder: String, backbone: () throws -> any Backbone) throws {
        try AdapterFolder.requireFolder(folder)
        let stored = try StoredTensors(folder: folder)
        bytes = try MappedFile(path: stored.path).count
        if let name = stored.firstOfWholeNumbers {
            throw PEFTError(
                "\(folder): \"\(name)\" holds positions; signs and a scale cannot stand for them, so adapters of this "
                    + "type are not compressed")
        }
        labels = try SequenceClassifier.labels(ofAdapter: folder)
        let names = try stored.shapes().keys
        guard names.contains(where: { name in !Self.zeroStarts.contains { name.hasSuffix($0) } }) else {
            configuration = try AdapterConfigurationFile.read(folder: folder)
            starts = [:]
            var tensors = KeyedList<Tensor>()
            for name in names { tensors.appendIfNew(key: name, value: try stored.tensor(name, start: nil)) }
            self.tensors = tensors
            return
        }
        let model = try backbone()
        let adapter = try Adapter.load(
            from: folder, onto: SequenceClassifier.backbone(ofAdapter: folder, over: model))
        configuration = adapter.configuration
        var tensors = KeyedList<Tensor>()
        for trainable in adapter.trainables { tensors.appendIfNew(key: trainable.name, value: trainable.tensor) }
        self.tensors = tensors
        adapter.detach()
        starts = try Self.starts(of: configuration, labels: labels, on: model)
    }

    /// The tensors that start alike whatever the seed, but for zeros, as the adapter is made when its folder is loaded.
    private static func starts(
        of configuration: AdapterConfiguration, labels: [String]?, on model: any Backbone
    ) throws -> KeyedList<Tensor> {
        func made(_ seed: UInt64) throws -> [Trainable] {
            let backbone =
                try labels.map { try SequenceClassifier(model, labels: $0, seed: Seed(seed)) as any Backbone } ?? model
            let adapter = try Adapter(configuration, on: backbone, seed: Seed(seed))
            adapter.detach()
            return adapter.trainables
        }
        var starts = KeyedList<Tensor>()
        for (first, second) in zip(try made(0), try made(1)) {
            let start = try first.tensor.detached()
            guard try start.isIdentical(to: second.tensor), try start.absolute().maximum().item(as: Float.self) > 0
            else { continue }
            starts.appendIfNew(key: first.name, value: start)
        }
        return starts
    }
}
