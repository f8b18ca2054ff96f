import Formats
import Torch

/// What the fixed random masks are set by, through which parallel branches see the weights that they share.
public struct MaskSettings: Sendable {
    static let fields: [Field<MaskSettings>] = [
        Field("num_layer", \.branches, "parallel branches over the same weights"),
        Field("density", \.density, "share of the entries that each branch sees"),
        Field("mask_type", \.type, "how each branch's entries are chosen"),
        Field("mask_seed", \.seed, "what the masks are drawn from; null: the run's seed"),
    ]

    /// The branches over the same weights.
    public var branches = 2
    /// The share of the entries that each branch sees.
    public var density = 0.5
    /// How those entries are chosen.
    public var type = BranchMask.equalPerLayer
    /// What the masks are drawn from; nil: the run's seed.
    public var seed: Int?

    /// Makes the settings with their defaults.
    public init() {}

    /// Refuses masks that there cannot be.
    func validate() throws {
        // Masks take memory for each branch, so that a damaged folder must not ask for any number of them.
        let mostBranches = 1000
        try requirePositive(branches, "num_layer")
        guard branches <= mostBranches else {
            throw PEFTError("num_layer: expected at most \(mostBranches) branches, found \(branches)")
        }
        guard density > 0, density <= 1 else {
            throw PEFTError("density: expected a number above 0 and at most 1, found \(density)")
        }
        guard type != .structured || density == 0.5 else {
            throw PEFTError("density: mask_type NM_structured keeps 2 of 4 entries; expected 0.5, found \(density)")
        }
    }

    /// The masks of one weight, bool `[branches] + shape`, by the rule of ``BranchMask``.
    func drawn(_ shape: [Int], of weight: String, from runSeed: Seed, on device: Device) throws -> Tensor {
        let seed = runSeed.replaced(by: seed)
        return try Tensor.stack(
            (0..<branches).map { branch in
                try type.drawn(shape, density: density, from: seed, name: "\(weight).mask.\(branch)")
            }
        ).to(device: device)
    }
}

extension Trainable.Decay {
    /// Decay of what some branch sees: other entries have no gradient, and decay must not move them either.
    ///
    /// - Parameter masks: bool `[branches] + shape`.
    static func seen(by masks: Tensor) throws -> Trainable.Decay { .only(try callTensor("aten::any.dim", masks, 0)) }
}
