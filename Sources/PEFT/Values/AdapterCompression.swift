import Backbones
import Formats
import Torch

/// ComPEFT: a trained adapter as the signs of its largest changes and one scale, in a file some tens of times smaller.
/// arXiv 2311.13171
///
/// All tensors of an adapter, less their starts, are one vector. Of its `d` values the largest share, `density`, keeps
/// its signs; the scale is `alpha` times the deviation of all values. Tensors whose start the settings and the base
/// model decide, such as the ones of (IA)^3, DoRA's norms and whole modules, start from that. What begins by chance,
/// such as LoRA's A, starts from what ``seed`` draws where it is known, and else from zero, as in the paper; a start
/// that is far from zero else takes the places of the changes among the largest values.
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
        /// How many tensors start from what the seed draws, and of how many.
        public let drawn: Int, tensors: Int
        /// That seed; nil where no tensor does.
        public let seed: Seed?

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
    /// What the training was begun with; nil where it is not known, or where the paper's start of zero is wanted.
    public var seed: Seed?

    /// Makes a compression; the paper keeps 5 to 50 percent, and tunes alpha from 0.5 to 10 on held-out rows.
    public init(density: Double, alpha: Double = 1, seed: Seed? = nil) {
        self.density = density
        self.alpha = alpha
        self.seed = seed
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
        let source = try CompressionSource(folder, seed: seed, backbone: backbone)
        let begun = try source.starts()
        var starts = KeyedList<Tensor>()
        for (name, start) in begun { starts.appendIfNew(key: name, value: start.values) }
        let vector = try TaskVector(source.tensors, starts: starts)
        let ternary = try vector.ternary(density: density, alpha: alpha)
        var entries = KeyedList<TernaryFile.Entry>()
        for (name, shape) in vector.shapes {
            let start = begun[name]
            let norm = try start?.values.norm().item(as: Float.self)
            entries.appendIfNew(
                key: name,
                value: TernaryFile.Entry(shape: shape, start: start?.kind ?? .zero, startNorm: norm ?? 0))
        }
        let drawn = entries.values.count { $0.start == .drawn }
        let seed = drawn > 0 ? source.seed : nil
        var size = (codes: 0, file: 0)
        try AdapterFolder.write(source.configuration, labels: source.labels, to: output) { temporary in
            size = try TernaryFile.write(
                to: joined(temporary, StoredTensors.ternaryName), tensors: entries, vector: ternary, density: density,
                alpha: Float(alpha), seed: seed?.value)
        }
        return Report(
            values: ternary.count, kept: ternary.keptCount, deviation: try vector.deviation(),
            scale: Double(ternary.scale), bytesBefore: source.bytes, bytesAfter: size.file, codeBytes: size.codes,
            drawn: drawn, tensors: entries.count, seed: seed)
    }

    /// Writes a compressed adapter's folder as an ordinary one, which peft reads.
    ///
    /// - Throws: As ``compress(_:to:backbone:)``.
    public static func decompress(
        _ folder: String, to output: String, backbone: () throws -> any Backbone
    ) throws {
        let source = try CompressionSource(folder, seed: nil, backbone: backbone)
        try AdapterFolder.write(source.configuration, source.tensors, labels: source.labels, to: output)
    }
}
