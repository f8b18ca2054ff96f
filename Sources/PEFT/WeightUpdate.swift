import Backbones
import Torch

/// A changed weight: what an adapted linear layer computes, and the weight that would compute the same.
public protocol WeightUpdate {
    /// The probability of zeroing an element of the adapter's input in training.
    var dropout: Double { get }
    /// The layer's output.
    ///
    /// - Parameters:
    ///   - input: `[..., in]` in the model's dtype.
    ///   - linear: The layer with its frozen weight.
    ///   - context: The forward pass.
    /// - Returns: `[..., out]` in the model's dtype.
    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor
    /// The weight with the update in it.
    ///
    /// - Parameter weight: `[out, in]`, fp32 or wider.
    /// - Returns: `[out, in]` in the same dtype.
    func merged(into weight: Tensor) throws -> Tensor
    /// The bias with the update in it, or nil (the default) where it stays as it is.
    ///
    /// - Parameter bias: `[out]`, fp32 or wider, or nil where the layer has none.
    /// - Returns: `[out]`.
    func mergedBias(_ bias: Tensor?) throws -> Tensor?
}

extension WeightUpdate {
    /// The bias stays as it is.
    public func mergedBias(_ bias: Tensor?) throws -> Tensor? { nil }
}

/// An update that is added: `W' = W + dW`.
public protocol AdditiveUpdate: WeightUpdate {
    /// `x dW^T` in factored form, `[..., in]` to `[..., out]`, in the input's dtype.
    func callAsFunction(_ input: Tensor) throws -> Tensor
    /// `dW`, `[out, in]` in fp32 or wider; formed only to merge and to check.
    func dense() throws -> Tensor
}

extension AdditiveUpdate {
    /// The frozen product plus the update of the (in training, partly dropped) input.
    public func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        let kept = try context.dropout?.apply(input, probability: dropout, name: linear.path) ?? input
        return try linear.base(input) + self(kept)
    }

    /// `W + dW`.
    public func merged(into weight: Tensor) throws -> Tensor { try weight + dense().to(dtype: weight.dtype) }
}

/// An additive update of two thin factors: `dW = scale * up down`.
public protocol LowRankUpdate: AdditiveUpdate {
    /// The factor of the product.
    var scale: Double { get }
    /// The factors as the forward pass uses them, in the trainable tensors' dtype.
    ///
    /// - Returns: `down [rank, in]` and `up [out, rank]`.
    func factors() throws -> (down: Tensor, up: Tensor)
    /// What the layer's output has beyond the frozen product, which lets layers be computed together.
    ///
    /// An update with an ``WeightUpdate/output(for:of:in:)`` of its own has to have this, too: nil where the output is
    /// not the frozen product plus one such term.
    func term(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm?
}

extension LowRankUpdate {
    /// The factors, with dropout's mask in training.
    public func term(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm? {
        let (down, up) = try factors()
        let mask = try context.dropout?.mask(for: input, probability: dropout, name: linear.path)
        return LowRankTerm(down: down, up: up, scale: scale, mask: mask)
    }

    /// `scale * (x down^T) up^T`, with products in the input's dtype.
    public func callAsFunction(_ input: Tensor) throws -> Tensor { try product(input, factors()) }

    /// The update's part of the output for given factors.
    func product(_ input: Tensor, _ factors: (down: Tensor, up: Tensor)) throws -> Tensor {
        let (down, up) = factors
        let inner = try linear(input, down.to(dtype: input.dtype))
        return try linear(scale == 1 ? inner : inner * scale, up.to(dtype: input.dtype))
    }

    /// The factors of a product less another one's, where there is one: `[up, -up0] [down; down0]`.
    func less(
        _ other: (down: Tensor, up: Tensor)?, _ factors: (down: Tensor, up: Tensor)
    ) throws -> (down: Tensor, up: Tensor) {
        guard let other else { return factors }
        return (
            try Tensor.concatenate([factors.down, other.down], dimension: 0),
            try Tensor.concatenate([factors.up, other.up.negated()], dimension: 1)
        )
    }

    /// `scale * up down`.
    public func dense() throws -> Tensor {
        let (down, up) = try factors()
        return try up.matmul(down) * scale
    }
}

/// What stays of a merged update where the layer has no bias: the bias alone.
final class RemainingBias: LinearAdapter {
    private let values: Tensor

    /// Keeps a bias `[out]`.
    init(_ values: Tensor) { self.values = values }

    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        try linear.base(input) + values.detached().to(dtype: input.dtype)
    }
}

/// The adapter of one layer: passes the layer's call on to a weight update.
final class WeightSlot: LinearAdapter {
    private let update: any WeightUpdate

    init(_ update: any WeightUpdate) {
        self.update = update
    }

    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        try update.output(for: input, of: linear, in: context)
    }

    func lowRankTerm(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm? {
        try (update as? any LowRankUpdate)?.term(for: input, of: linear, in: context)
    }
}
