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
public struct CapaBoostAdapter: BottleneckMethod, MaskedMethod {
    /// The value of `peft_type`.
    public static let peftType = "CAPABOOST_ADAPTER"
    /// The hyper-parameters.
    public static let fields: [Field<CapaBoostAdapter>] = bottleneckFields + maskFields

    /// The width; nil: the hidden size over `reductionFactor`.
    public var r: Int?
    /// The hidden size over the width.
    public var reductionFactor = 24.0
    /// What adapters of attention read.
    public var attentionInput: BottleneckInput?
    /// What adapters of MLPs read.
    public var mlpInput: BottleneckInput? = .sum
    /// The activation.
    public var nonLinearity = BottleneckActivation.relu
    /// The factor of the adapter's output.
    public var scale = 1.0
    /// The probability of zeroing an element inside.
    public var dropout = 0.0
    /// How the weights start.
    public var start = BottleneckStart.normal
    /// The deviation of normal weights.
    public var deviation = 0.02
    /// The branches over the same weights.
    public var branches = 2
    /// The share of the entries that each branch sees.
    public var density = 0.5
    /// How those entries are chosen.
    public var maskType = BranchMask.equalPerLayer
    /// What the masks are drawn from; nil: the run's seed.
    public var maskSeed: Int?

    /// Makes the method with its defaults: PAdapter's.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try validateBottleneck()
        try validateMasks()
    }

    /// The method with the seed of its masks written down.
    public func resolved(seed: Seed) -> CapaBoostAdapter { withMaskSeed(seed) }

    /// The values of the bottlenecks, which do not grow with the branches.
    ///
    /// - Throws: `PEFTError` when the width is below one.
    public func trainedCount(in points: AttachPoints) throws -> Double { try bottleneckCount(in: points) }

    /// Makes the bottlenecks and their masks.
    ///
    /// - Throws: `PEFTError` when a mask is not possible; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try bottlenecks(at: points, seed: seed) { path, shape in
            try self.masks(shape, of: path, seed: seed).to(device: points.device)
        }
    }
}
