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
        let wide = try input.to(dtype: .float32)
        let scale = try (wide.squared().mean([-1], keepingDimensions: true) + epsilon).reciprocalSquareRoot()
        return try (wide * scale).to(dtype: input.dtype) * weight.value()
    }
}
