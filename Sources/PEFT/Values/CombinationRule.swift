import Torch

/// How the updates of several adapters become one, by peft's names (`combination_type`).
///
/// Names with `_svd`, and `svd` itself, act on the effective updates `dW` and factor the result again. The others act on
/// LoRA's factors A and B one by one, which is not the same: `linear` is a rough form of the sum that `svd` and `cat`
/// are. For adapters that are no plain LoRA they act on the effective updates as well.
public enum CombinationRule: String, Sendable, CaseIterable {
    /// The weighted sum of A and of B.
    case linear
    /// The exact weighted sum, its rank the sum of the ranks.
    case cat
    /// The weighted sum, cut to a rank.
    case svd
    /// Large entries only, and of those the ones with the elected sign. arXiv 2306.01708
    case ties
    case tiesSVD = "ties_svd"
    /// Entries dropped at random, the others enlarged to make up for it. arXiv 2311.03099
    case dareLinear = "dare_linear"
    case dareLinearSVD = "dare_linear_svd"
    /// Dropping at random, then the elected sign.
    case dareTies = "dare_ties"
    case dareTiesSVD = "dare_ties_svd"
    /// The weighted sum of large entries.
    case magnitudePrune = "magnitude_prune"
    case magnitudePruneSVD = "magnitude_prune_svd"

    /// Whether entries are dropped, so that a density is needed.
    public var needsDensity: Bool { ![.linear, .cat, .svd].contains(self) }

    var actsOnFactors: Bool { [.linear, .ties, .dareLinear, .dareTies, .magnitudePrune].contains(self) }
    private var drops: Bool { [.dareLinear, .dareLinearSVD, .dareTies, .dareTiesSVD].contains(self) }
    private var elects: Bool { [.ties, .tiesSVD, .dareTies, .dareTiesSVD].contains(self) }

    /// How the sign of an entry is elected.
    public enum MajoritySign: String, Sendable, CaseIterable {
        /// By the sum of the values.
        case total
        /// By the number of values of each sign.
        case frequency
    }

    /// Tensors of one shape as one.
    ///
    /// - Parameters:
    ///   - tensors: One for each adapter.
    ///   - weights: One for each tensor.
    ///   - density: The share of entries that is kept.
    ///   - sign: How signs are elected.
    ///   - stream: Gives the random numbers of a tensor by its index.
    func merged(
        _ tensors: [Tensor], weights: [Double], density: Double, sign: MajoritySign, stream: (Int) -> RandomStream
    ) throws -> Tensor {
        var parts = tensors
        if needsDensity, density < 1 {
            parts = try tensors.enumerated().map { index, tensor in
                guard drops else { return try Self.largest(tensor, density: density) }
                var stream = stream(index)
                return try Self.dropped(tensor, density: density, &stream)
            }
        }
        let elected = elects ? try Self.elected(parts, sign) : nil
        var sum = try parts[0].zerosLike()
        for (index, part) in parts.enumerated() {
            let weighted = try part * weights[index]
            sum = try sum + (elected.map { try weighted * $0.agree[index] } ?? weighted)
        }
        return try elected.map { try sum / $0.count } ?? sum
    }

    /// The `floor(density * count)` largest entries.
    private static func largest(_ tensor: Tensor, density: Double) throws -> Tensor {
        let flat = try tensor.reshaped([-1])
        let best = try callTensors("aten::topk", flat.absolute(), Int(density * Double(flat.count)))[1]
        let mask = try callTensor("aten::index_fill.int_Scalar", flat.zerosLike(), 0, best, 1.0)
        return try (flat * mask).reshaped(tensor.shape)
    }

    /// Each entry with a probability, over that probability.
    private static func dropped(_ tensor: Tensor, density: Double, _ stream: inout RandomStream) throws -> Tensor {
        let numbers = try Tensor.uniform(tensor.shape, in: 0..<1, from: &stream).to(device: tensor.device)
        return try tensor * callTensor("aten::lt.Scalar", numbers, density) / density
    }

    /// Which tensors' entries have the elected sign, where a tie is positive, and how many do, at least 1.
    private static func elected(_ parts: [Tensor], _ sign: MajoritySign) throws -> (agree: [Tensor], count: Tensor) {
        let signs = try parts.map { try callTensor("aten::sign", $0) }
        let votes = try Tensor.stack(sign == .total ? parts : signs).sum([0])
        let isPositive = try callTensor("aten::ge.Scalar", votes, 0.0).to(dtype: parts[0].dtype)
        let winner = try isPositive * 2 - 1
        let agree = try signs.map { try $0.elementsEqual(winner).to(dtype: parts[0].dtype) }
        return (agree, try callTensor("aten::clamp_min", Tensor.stack(agree).sum([0]), 1.0))
    }
}
