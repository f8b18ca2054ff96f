import Formats
import Torch

/// A method of parallel branches that share weights and see them through fixed random masks.
protocol MaskedMethod: Method {
    var branches: Int { get set }
    var density: Double { get set }
    var maskType: BranchMask { get set }
    var maskSeed: Int? { get set }
}

extension MaskedMethod {
    /// The settings of the masks.
    static var maskFields: [Field<Self>] {
        [
            Field("num_layer", \.branches, "parallel branches over the same weights"),
            Field("density", \.density, "share of the entries that each branch sees"),
            Field("mask_type", \.maskType, "how each branch's entries are chosen"),
            Field("mask_seed", \.maskSeed, "what the masks are drawn from; null: the run's seed"),
        ]
    }

    /// Refuses masks that there cannot be.
    func validateMasks() throws {
        // Masks take memory for each branch, so that a damaged folder must not ask for any number of them.
        let mostBranches = 1000
        try requirePositive(branches, "num_layer")
        guard branches <= mostBranches else {
            throw PEFTError("num_layer: expected at most \(mostBranches) branches, found \(branches)")
        }
        guard density > 0, density <= 1 else {
            throw PEFTError("density: expected a number above 0 and at most 1, found \(density)")
        }
        guard maskType != .structured || density == 0.5 else {
            throw PEFTError("density: mask_type NM_structured keeps 2 of 4 entries; expected 0.5, found \(density)")
        }
    }

    /// The method with the seed of its masks written down.
    func withMaskSeed(_ seed: Seed) -> Self {
        var method = self
        method.maskSeed = maskSeed ?? Int(truncatingIfNeeded: seed.value)
        return method
    }

    /// The masks of one weight, bool `[branches] + shape`, by the rule of ``BranchMask``.
    func masks(_ shape: [Int], of weight: String, seed: Seed) throws -> Tensor {
        let seed = maskSeed.map { Seed(UInt64(bitPattern: Int64($0))) } ?? seed
        return try Tensor.stack(
            (0..<branches).map { branch in
                try maskType.drawn(shape, density: density, from: seed, name: "\(weight).mask.\(branch)")
            })
    }
}
