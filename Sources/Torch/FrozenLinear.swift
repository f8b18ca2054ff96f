/// What an adapter adds to a frozen product: `scale * ((x * mask) down^T) up^T`.
public struct LowRankTerm {
    /// `[rank, in]`.
    public var down: Tensor
    /// `[out, rank]`.
    public var up: Tensor
    /// The factor of the product.
    public var scale: Double
    /// Dropout's mask of the input's shape and dtype: zero, or one over the probability of keeping; nil keeps all.
    public var mask: Tensor?

    /// Makes a term of its parts.
    public init(down: Tensor, up: Tensor, scale: Double, mask: Tensor? = nil) {
        self.down = down
        self.up = up
        self.scale = scale
        self.mask = mask
    }
}

/// A frozen linear layer with what is added to it: `y = x W^T + b + term`.
public struct FrozenLinear {
    /// `[out, in]`, without a gradient.
    public var weight: Tensor
    /// `[out]`, without a gradient, or nil.
    public var bias: Tensor?
    /// What is added, or nil.
    public var term: LowRankTerm?

    /// Makes a layer of its parts.
    public init(weight: Tensor, bias: Tensor? = nil, term: LowRankTerm? = nil) {
        self.weight = weight
        self.bias = bias
        self.term = term
    }
}

/// The outputs of frozen layers that share an input.
///
/// The layers are one step of the record: the input is saved once, its gradient added up while it is multiplied, and
/// the down factors of all layers are one product. Second derivatives are not there.
///
/// - Parameters:
///   - layers: The layers, at least one.
///   - input: `[..., in]` on the CPU, float32 or bfloat16.
/// - Returns: `[..., out]` for each layer.
/// - Throws: `TorchError` when sizes or dtypes differ.
public func frozenLinears(_ layers: [FrozenLinear], _ input: Tensor) throws -> [Tensor] {
    try callTensors(
        "graft::linears", input, layers.map(\.weight), layers.map(\.bias),
        layers.flatMap { [$0.term?.down, $0.term?.up] }, layers.map { $0.term?.scale ?? 1 },
        layers.map { $0.term?.mask })
}

/// `x W^T + b` by the fastest product that there is, not recorded for gradients.
///
/// - Parameters:
///   - input: `[rows, in]`.
///   - weight: `[out, in]`, in any layout.
///   - bias: `[out]`, or nil.
/// - Returns: `[rows, out]`.
/// - Throws: `TorchError` when sizes or dtypes differ.
package func unrecordedProduct(_ input: Tensor, _ weight: Tensor, _ bias: Tensor? = nil) throws -> Tensor {
    try callTensor("graft::product", input, weight, bias)
}

/// A weight in the layout that suits products with many vectors best, for `unrecordedProduct` alone.
///
/// - Parameters:
///   - weight: `[out, in]`, in any layout.
///   - rows: How many vectors it will be multiplied with at a time.
/// - Returns: The same values; the weight itself where the machine's library has no layout of its own.
/// - Throws: `TorchError` when memory is short.
package func packedWeight(_ weight: Tensor, rows: Int) throws -> Tensor {
    try callTensor("graft::packed_weight", weight, rows)
}
