import Backbones
import Formats
import Torch

/// CapaBoost-Adapter and CapaBoost-PAdapter: parallel copies of a bottleneck that share one set of weights, each copy
/// seeing them through its own fixed random masks. arXiv 2407.01320
///
/// With `d = num_layer` branches and 0/1 masks of the weights' shapes,
///
///     s + scale * (sum over i of (U * maskU_i) f((D * maskD_i) h + c_D) + c_U)
///
/// The biases are one pair, the upper one added once. Adapter stands behind attention and MLP and reads the sublayer's
/// output, PAdapter behind the MLP as Pfeiffer's does. Masks follow from `mask_seed` by the rule of ``BranchMask``, with
/// the names `<sublayer path>.adapter_down.mask.<i>` and `adapter_up`.
public struct CapaBoostAdapter: BottleneckMethod {
    /// The value of `peft_type`.
    public static let peftType = "CAPABOOST_ADAPTER"
    /// The hyper-parameters.
    public static let fields: [Field<CapaBoostAdapter>] =
        bottleneckFields + MaskSettings.fields.map { $0.within(\.masks) }

    /// What the bottlenecks are set by.
    public var bottleneck = BottleneckSettings(reductionFactor: 24)
    /// What the branches' masks are set by.
    public var masks = MaskSettings()

    /// Makes the method with its defaults: PAdapter's.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try bottleneck.validate()
        try masks.validate()
    }

    /// The method with the seed of its masks written down.
    public func resolved(seed: Seed) -> CapaBoostAdapter { writing(seed, in: \.masks.seed) }

    /// The values of the bottlenecks, which do not grow with the branches.
    ///
    /// - Throws: `PEFTError` when the width is below one.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        try bottleneck.trainedCount(in: points)
    }

    /// Makes the bottlenecks and their masks.
    ///
    /// - Throws: `PEFTError` when a mask is not possible; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try bottleneck.attach(to: points, seed: seed) { path, shape in
            try masks.drawn(shape, of: path, from: seed, on: points.device)
        }
    }
}
