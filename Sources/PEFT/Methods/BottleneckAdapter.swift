import Backbones
import Formats
import Torch

/// Bottleneck adapters: a small trained network `A(h) = U f(D h + c_D) + c_U` at the output of attention or MLP.
///
/// The published forms are settings of one. With `s` the sublayer's output and `x` the residual stream that enters it:
///
/// - Houlsby (1902.00751): `s + A(s)` behind attention and behind the MLP; the norms of the blocks are trained as well.
/// - Pfeiffer (2005.00247): behind the MLP alone. Its two norms belong to models that normalise the sum behind a
///   sublayer; a block that normalises in front has none there, and the adapter reads the sum itself: `s + A(x + s)`.
/// - Parallel (2110.04366): `s + 4 A(h)` with `h` the MLP's own input.
/// - AdaptFormer (2205.13535): `s + 0.1 A(x)`, with dropout inside.
public struct BottleneckAdapter: BottleneckMethod {
    /// The value of `peft_type`.
    public static let peftType = "BOTTLENECK"
    /// The hyper-parameters.
    public static let fields: [Field<BottleneckAdapter>] =
        bottleneckFields + [Field("train_norms", \.trainsNorms, "whether the norms of adapted blocks are trained, too")]

    /// What the bottlenecks are set by.
    public var bottleneck = BottleneckSettings()
    /// Whether the norms of adapted blocks are trained.
    public var trainsNorms = false

    /// Makes the method with its defaults: Pfeiffer's.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws { try bottleneck.validate() }

    /// The values of the bottlenecks and the norms.
    ///
    /// - Throws: `PEFTError` when the width is below one.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        try bottleneck.trainedCount(in: points) + norms(in: points).reduce(0) { $0 + Double($1.frozen.count) }
    }

    /// Makes the bottlenecks, and copies of the norms.
    ///
    /// - Throws: `PEFTError` when the width is below one; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = try bottleneck.attach(to: points, seed: seed)
        try points.addCopies(of: norms(in: points), to: &attachment, decay: .all)
        return attachment
    }

    /// The norms in front of the adapted blocks' sublayers.
    private func norms(in points: AttachPoints) -> [Parameter] {
        guard trainsNorms else { return [] }
        func block(_ path: String) -> Substring { path.prefix(upTo: path.lastIndex(of: ".") ?? path.startIndex) }
        let blocks = Set(bottleneck.places(in: points).map { block($0.sublayer.path) })
        return points.backbone.parameters.filter { parameter in
            parameter.path.hasSuffix("layernorm.weight") && blocks.contains(block(parameter.modulePath))
        }
    }
}
