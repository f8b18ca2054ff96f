import Torch

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

/// Rotary position embedding in the half-split form of Hugging Face, with its scalings.
public struct RotaryEmbedding: Sendable {
    /// How the frequencies stretch beyond the length of pretraining.
    public enum Scaling: Sendable, Equatable {
        case none
        /// Positions divided by a factor.
        case linear(factor: Double)
        /// The base grows with the sequence once it exceeds the pretraining length (NTK).
        case dynamic(factor: Double, maxPositions: Int)
        /// Llama 3.1: long wavelengths are divided, short ones kept, those between interpolated.
        case llama3(factor: Double, lowFrequencyFactor: Double, highFrequencyFactor: Double, originalPositions: Int)
        /// YaRN (arXiv 2309.00071): interpolation and extrapolation blended by frequency, attention rescaled.
        case yarn(YaRN)
    }

    /// The constants of YaRN.
    public struct YaRN: Sendable, Equatable {
        /// How many times longer sequences are than in pretraining.
        public var factor: Double
        /// The length of pretraining.
        public var originalPositions: Int
        /// Features that turn more often over that length keep their frequency.
        public var betaFast = 32.0
        /// Features that turn less often are stretched by the whole factor.
        public var betaSlow = 1.0
        /// Whether the two limits are rounded outwards to whole features.
        public var truncates = true
        /// The factor of cos and sin.
        public var attentionFactor: Double
    }

    /// The features of one head.
    public let dimension: Int
    /// The base of the frequencies, `rope_theta`.
    public let theta: Double
    /// The scaling beyond the pretraining length.
    public let scaling: Scaling

    /// Makes an embedding.
    public init(dimension: Int, theta: Double, scaling: Scaling = .none) {
        self.dimension = dimension
        self.theta = theta
        self.scaling = scaling
    }

    /// Cosines and sines of positions, as ``rotate(_:_:_:)`` takes them.
    ///
    /// - Parameters:
    ///   - positions: int64 `[batch, time]` or `[time]`.
    ///   - length: One more than the largest position.
    /// - Returns: cos and sin, `[batch or 1, 1, time, dim]` of `dtype`; the first half of sin is negated.
    /// - Throws: `TorchError` when memory is short.
    public func table(positions: Tensor, length: Int, dtype: DType) throws -> (cos: Tensor, sin: Tensor) {
        let frequencies = try Tensor(inverseFrequencies(length: length).map { Float($0) })
            .to(device: positions.device)
        let grid = try positions.rank == 1 ? positions.unsqueezed(0) : positions
        // [batch, 1, time, dim / 2]
        let half = try grid.to(dtype: .float32).unsqueezed(1).unsqueezed(-1) * frequencies
        let factor = attentionFactor
        func scaled(_ tensor: Tensor) throws -> Tensor { try factor == 1 ? tensor : tensor * factor }
        let (cos, sin) = (try scaled(half.cos()), try scaled(half.sin()))
        return (
            try Tensor.concatenate([cos, cos], dimension: -1).to(dtype: dtype),
            try Tensor.concatenate([sin.negated(), sin], dimension: -1).to(dtype: dtype)
        )
    }

    /// Cosines and sines of positions, one for each pair of features, position by position; not negated.
    ///
    /// - Parameter length: One more than the largest position.
    func pairs(positions: Range<Int>, length: Int) -> (cos: [Float], sin: [Float]) {
        let factor = Float(attentionFactor)
        let frequencies = inverseFrequencies(length: length).map { Float($0) }
        let angles = positions.flatMap { position in frequencies.map { Float(position) * $0 } }
        return (angles.map { cos($0) * factor }, angles.map { sin($0) * factor })
    }

    /// Rotates queries and keys, `[batch, heads, time, dim]`.
    ///
    /// - Throws: `TorchError` when sizes differ.
    public static func rotate(
        _ queries: Tensor, _ keys: Tensor, _ table: (cos: Tensor, sin: Tensor)
    ) throws -> (queries: Tensor, keys: Tensor) {
        try rotated(queries: queries, keys: keys, cos: table.cos, sin: table.sin)
    }

    private var attentionFactor: Double {
        if case .yarn(let yarn) = scaling { return yarn.attentionFactor }
        return 1
    }

    /// One frequency for each pair of features, in radians a position.
    func inverseFrequencies(length: Int) -> [Double] {
        let plain = frequencies(base: theta)
        switch scaling {
        case .none: return plain
        case .linear(let factor): return plain.map { $0 / factor }
        case .dynamic(let factor, let maxPositions):
            let ratio = Double(max(length, maxPositions)) / Double(maxPositions)
            let exponent = Double(dimension) / Double(dimension - 2)
            return frequencies(base: theta * pow(factor * ratio - (factor - 1), exponent))
        case .llama3(let factor, let low, let high, let original):
            return plain.map { frequency in
                let turns = Double(original) * frequency / (2 * Double.pi)
                if turns > high { return frequency }
                if turns < low { return frequency / factor }
                let blend = (turns - low) / (high - low)
                return (1 - blend) * frequency / factor + blend * frequency
            }
        case .yarn(let yarn): return yarnFrequencies(plain, yarn)
        }
    }

    private func frequencies(base: Double) -> [Double] {
        stride(from: 0, to: dimension, by: 2).map { 1 / pow(base, Double($0) / Double(dimension)) }
    }

    private func yarnFrequencies(_ plain: [Double], _ yarn: YaRN) -> [Double] {
        /// The feature pair that turns `rotations` times over the pretraining length.
        func pair(rotations: Double) -> Double {
            Double(dimension) * log(Double(yarn.originalPositions) / (rotations * 2 * Double.pi)) / (2 * log(theta))
        }
        var low = pair(rotations: yarn.betaFast)
        var high = pair(rotations: yarn.betaSlow)
        if yarn.truncates { (low, high) = (low.rounded(.down), high.rounded(.up)) }
        (low, high) = (max(low, 0), min(high, Double(dimension - 1)))
        if low == high { high += 0.001 }
        return plain.enumerated().map { index, frequency in
            let interpolated = min(max((Double(index) - low) / (high - low), 0), 1)
            return interpolated * frequency / yarn.factor + (1 - interpolated) * frequency
        }
    }
}

/// The natural logarithm, for configurations.
func logarithm(_ value: Double) -> Double { log(value) }
