import Torch

/// Root-mean-square normalisation over the last dimension, computed in fp32.
public final class RMSNorm {
    /// `[dim]`.
    public let weight: Parameter
    private let epsilon: Double

    /// Makes a norm over a frozen weight.
    public init(path: String, weight: Tensor, epsilon: Double) {
        self.weight = Parameter(path: path + ".weight", frozen: weight)
        self.epsilon = epsilon
    }

    /// As the plain form, for a forward pass whose observer sees the result.
    func callAsFunction(_ input: Tensor, _ context: Context) throws -> Tensor {
        try context.observed(self(input), weight.modulePath)
    }

    /// `x / sqrt(mean(x^2) + epsilon) * weight`, of the input's shape and dtype.
    ///
    /// - Throws: `TorchError` when the last size differs from the weight's.
    public func callAsFunction(_ input: Tensor) throws -> Tensor {
        try rmsNorm(input, weight: weight.value(), epsilon: epsilon)
    }

    /// The sum of two tensors and its norm.
    ///
    /// - Throws: `TorchError` when the shapes differ or the last size is not the weight's.
    func callAsFunction(
        _ input: Tensor, adding delta: Tensor?, _ context: Context
    ) throws -> (sum: Tensor, normed: Tensor) {
        guard let delta else { return (input, try self(input, context)) }
        let result = try addedRMSNorm(input, delta, weight: weight.value(), epsilon: epsilon)
        return (result.sum, try context.observed(result.normed, weight.modulePath))
    }
}
