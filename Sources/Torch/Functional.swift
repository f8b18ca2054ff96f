// Functions of neural networks, as torch.nn.functional has them.

/// `x W^T + b` over the last dimension.
///
/// - Parameters:
///   - input: `[..., in]`.
///   - weight: `[out, in]`.
///   - bias: `[out]`, or nil.
/// - Returns: `[..., out]`.
/// - Throws: `TorchError` when sizes or dtypes differ.
public func linear(_ input: Tensor, _ weight: Tensor, _ bias: Tensor? = nil) throws -> Tensor {
    try callTensor("aten::linear", input, weight, bias)
}

/// Rows of `weight` by index.
///
/// - Parameters:
///   - indices: int64 of any shape, each below the number of rows.
///   - weight: `[rows, dim]`.
/// - Returns: `[..., dim]`.
/// - Throws: `TorchError` when an index is out of range.
public func embedding(_ indices: Tensor, _ weight: Tensor) throws -> Tensor {
    try callTensor("aten::embedding", weight, indices)
}

/// `x * sigmoid(x)`.
///
/// - Throws: `TorchError` when memory is short.
public func silu(_ input: Tensor) throws -> Tensor { try callTensor("aten::silu", input) }

/// Gaussian error linear unit, exact (`erf`) or by the tanh approximation.
///
/// - Throws: `TorchError` when memory is short.
public func gelu(_ input: Tensor, approximate: Bool = false) throws -> Tensor {
    try callTensor("aten::gelu", input, approximate ? "tanh" : "none")
}

/// The larger of zero and each element.
///
/// - Throws: `TorchError` when memory is short.
public func relu(_ input: Tensor) throws -> Tensor { try callTensor("aten::relu", input) }

/// Probabilities along a dimension.
///
/// - Throws: `TorchError` when there is no such dimension.
public func softmax(_ input: Tensor, dimension: Int = -1, dtype: DType? = nil) throws -> Tensor {
    try callTensor("aten::softmax.int", input, dimension, dtype)
}

/// Logarithms of probabilities along a dimension.
///
/// - Throws: `TorchError` when there is no such dimension.
public func logSoftmax(_ input: Tensor, dimension: Int = -1, dtype: DType? = nil) throws -> Tensor {
    try callTensor("aten::log_softmax.int", input, dimension, dtype)
}

/// `softmax(q k^T * scale + mask) v`, by the fastest kernel that the device has.
///
/// - Parameters:
///   - query: `[batch, heads, time, dim]`.
///   - key: `[batch, heads or fewer, keys, dim]`.
///   - value: `[batch, heads or fewer, keys, dim]`.
///   - mask: Added to the scores, or true where attended; broadcasts to `[batch, heads, time, keys]`.
///   - isCausal: Each position sees itself and earlier ones; needs `mask` nil and `time == keys`.
///   - scale: The factor of the scores; by default one over the root of `dim`.
/// - Returns: `[batch, heads, time, dim]`.
/// - Throws: `TorchError` when sizes differ.
public func scaledDotProductAttention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor? = nil, isCausal: Bool = false, scale: Double? = nil
) throws -> Tensor {
    let isGrouped = key.size(1) != query.size(1)
    return try callTensor(
        "aten::scaled_dot_product_attention", query, key, value, mask, 0.0, isCausal, scale, isGrouped)
}
