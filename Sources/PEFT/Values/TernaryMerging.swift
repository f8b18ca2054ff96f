import Formats
import Torch

extension TernaryVector {
    /// The weighted sum of vectors, fp32 `[count]`: task arithmetic, and LoRAHub's composition of modules.
    ///
    /// - Throws: `PEFTError` when the lengths differ, or there are not as many weights as vectors.
    public static func sum(of vectors: [TernaryVector], weights: [Double]) throws -> Tensor {
        let count = try commonCount(vectors, weights.count)
        var sums = [Double](repeating: 0, count: count)
        for (vector, weight) in zip(vectors, weights) {
            let step = weight * Double(vector.scale)
            vector.forEachKept { sums[$0] += $1 ? -step : step }
        }
        return try Tensor(sums, shape: [count]).to(dtype: .float32)
    }

    /// The TIES merge of vectors, fp32 `[count]`: for each entry the mean of those that have the sign of the sum.
    ///
    /// Compressed vectors are trimmed already. Where a sum is zero, the sign of most sums decides. arXiv 2306.01708
    ///
    /// - Parameters:
    ///   - vectors: Vectors of one length, at least one.
    ///   - factor: What the merge is multiplied by, the paper's lambda.
    /// - Throws: `PEFTError` when the lengths differ.
    public static func ties(of vectors: [TernaryVector], factor: Double = 1) throws -> Tensor {
        let count = try commonCount(vectors, vectors.count)
        var sums = [Double](repeating: 0, count: count)
        for vector in vectors {
            vector.forEachKept { sums[$0] += Double($1 ? -vector.scale : vector.scale) }
        }
        let majority = sums.reduce(0) { $0 + ($1 > 0 ? 1 : $1 < 0 ? -1 : 0) }
        let isNegative = sums.map { $0 < 0 || $0 == 0 && majority < 0 }
        // Without a majority no sign is elected where a sum is zero.
        let isElected = sums.map { $0 != 0 || majority != 0 }
        var (merged, agreeing) = ([Double](repeating: 0, count: count), [Int](repeating: 0, count: count))
        for vector in vectors {
            vector.forEachKept { index, negative in
                guard isElected[index], negative == isNegative[index] else { return }
                merged[index] += Double(negative ? -vector.scale : vector.scale)
                agreeing[index] += 1
            }
        }
        for index in merged.indices where agreeing[index] > 0 { merged[index] *= factor / Double(agreeing[index]) }
        return try Tensor(merged, shape: [count]).to(dtype: .float32)
    }

    private static func commonCount(_ vectors: [TernaryVector], _ weights: Int) throws -> Int {
        guard let count = vectors.first?.count, weights == vectors.count else {
            throw PEFTError("\(vectors.count) vectors and \(weights) weights; expected a weight for each")
        }
        guard let other = vectors.first(where: { $0.count != count }) else { return count }
        throw PEFTError("vectors of \(count) and \(other.count) values cannot be merged: the adapters differ in form")
    }
}
