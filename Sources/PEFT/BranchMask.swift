import Torch

/// How the fixed random masks of CapaBoost choose the entries of a factor that a branch sees.
///
/// The mask of branch `i` (from 0) of a layer's factor is drawn from the random stream
/// `<layer path>.<lora_A or lora_B>.mask.<i>` below the seed `mask_seed` (a negative number stands for its 64 bits),
/// so that it depends on nothing else. Entries are counted in row-major order.
public enum BranchMask: String, FieldValue, CaseIterable {
    /// Of the `n` entries those that come first in a random permutation of `0..<n`, `floor(density * n)` of them.
    case equalPerLayer = "equal_per_layer"
    /// Of each four consecutive entries the two that come first in a random permutation of `0..<4`, one group after
    /// the other: the pattern that sparse matrix units take.
    case structured = "NM_structured"

    /// Draws one mask.
    ///
    /// - Returns: bool of the given shape, true for the entries that are seen.
    func drawn(_ shape: [Int], density: Double, from seed: Seed, name: String) throws -> Tensor {
        let count = shape.reduce(1, *)
        var stream = seed.stream(name)
        var mask = [Bool](repeating: false, count: count)
        switch self {
        case .equalPerLayer:
            let kept = Int(density * Double(count))
            guard kept > 0 else {
                throw PEFTError("density: \(density) of the \(count) entries of \(name) is less than one entry")
            }
            for index in stream.permutation(count).prefix(kept) { mask[index] = true }
        case .structured:
            guard count % 4 == 0 else {
                throw PEFTError("mask_type: NM_structured needs groups of four; \(name) has \(count) entries")
            }
            for group in stride(from: 0, to: count, by: 4) {
                for index in stream.permutation(4).prefix(2) { mask[group + index] = true }
            }
        }
        return try Tensor(mask, shape: shape)
    }
}
