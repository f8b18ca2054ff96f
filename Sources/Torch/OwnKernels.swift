// Operators of transformers that Graft has kernels of its own for, each beside its portable form.
//
// The kernels read and write memory once, compute in fp32 inside, and have backward passes of their own. They run on
// CPUs in float32 and bfloat16; everything else takes the portable form, which LibTorch's operators make up.

/// Whether Graft's own kernels compute with tensors like this one: the one place that decides.
///
/// Tensors with other dtypes, and those on accelerators, take the portable forms.
package func runsOwnKernels(_ tensor: Tensor) -> Bool { runsOwnKernels(tensor.dtype, on: tensor.device) }

/// Whether Graft's own kernels compute in a dtype on a device.
package func runsOwnKernels(_ dtype: DType, on device: Device) -> Bool {
    device == .cpu && (dtype == .float32 || dtype == .bfloat16)
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension.
///
/// - Parameters:
///   - input: `[..., dim]`.
///   - weight: `[dim]`.
///   - epsilon: What keeps the root from zero.
/// - Returns: The input's shape and dtype.
/// - Throws: `TorchError` when the last size differs from the weight's.
public func rmsNorm(_ input: Tensor, weight: Tensor, epsilon: Double) throws -> Tensor {
    guard runsOwnKernels(input), weight.dtype == input.dtype, !weight.requiresGrad else {
        return try Portable.rmsNorm(input, weight: weight, epsilon: epsilon)
    }
    return try callTensor("graft::rms_norm", input, weight, epsilon)
}

/// The sum of two tensors, and its ``rmsNorm(_:weight:epsilon:)``.
///
/// - Parameters:
///   - input: `[..., dim]`.
///   - delta: What is added to it, of the same shape.
///   - weight: `[dim]`.
///   - epsilon: What keeps the root from zero.
/// - Throws: `TorchError` when sizes differ.
public func addedRMSNorm(
    _ input: Tensor, _ delta: Tensor, weight: Tensor, epsilon: Double
) throws -> (sum: Tensor, normed: Tensor) {
    guard runsOwnKernels(input), weight.dtype == input.dtype, !weight.requiresGrad else {
        let sum = try input + delta
        return (sum, try Portable.rmsNorm(sum, weight: weight, epsilon: epsilon))
    }
    let results = try callTensors("graft::add_rms_norm", input, delta, weight, epsilon)
    return (results[0], results[1])
}

/// `silu(gate) * up`.
///
/// - Parameters:
///   - gate: Any shape.
///   - up: The same shape and dtype.
/// - Throws: `TorchError` when shapes differ.
public func swiglu(gate: Tensor, up: Tensor) throws -> Tensor {
    guard runsOwnKernels(gate), up.dtype == gate.dtype else { return try Portable.swiglu(gate: gate, up: up) }
    return try callTensor("graft::swiglu", gate, up)
}

/// Rotates pairs of features of queries and keys, the first half of a head with the second.
///
/// - Parameters:
///   - queries: `[batch, heads, time, dim]`.
///   - keys: `[batch, heads or fewer, time, dim]`.
///   - cos: `[batch or 1, 1, time, dim]`.
///   - sin: The same shape; its first half is negated.
/// - Throws: `TorchError` when sizes differ.
public func rotated(
    queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor
) throws -> (queries: Tensor, keys: Tensor) {
    guard runsOwnKernels(queries), cos.dtype == queries.dtype, queries.size(-1) % 2 == 0 else {
        return (
            try Portable.rotated(queries, cos: cos, sin: sin), try Portable.rotated(keys, cos: cos, sin: sin)
        )
    }
    let results = try callTensors("graft::rotary", queries, keys, cos, sin)
    return (results[0], results[1])
}

/// Whether ``causalAttention(query:key:value:window:lengths:)`` has a kernel for queries like these on this machine.
///
/// - Throws: `TorchError` when the engine cannot be loaded.
public func hasCausalAttention(_ query: Tensor) throws -> Bool {
    guard runsOwnKernels(query), case .bool(let has)? = try call("graft::has_attention", query).first else {
        return false
    }
    return has
}

/// Attention in which each token sees itself and earlier ones, without a matrix of all scores, forward or backward.
///
/// - Parameters:
///   - query: `[batch, heads, time, dim]`, of a dtype and size that ``hasCausalAttention(_:)`` is true for.
///   - key: `[batch, heads or fewer, time, dim]`.
///   - value: `[batch, heads or fewer, time, dim]`.
///   - window: How many tokens each sees at most, itself included.
///   - lengths: The rows of a packed sequence, of which each sees only its own; empty where there are none.
/// - Returns: `[batch, heads, time, dim]`, in memory by time before heads.
/// - Throws: `TorchError` when sizes differ or there is no kernel.
public func causalAttention(
    query: Tensor, key: Tensor, value: Tensor, window: Int = .max, lengths: [Int] = []
) throws -> Tensor {
    try callTensor(
        "graft::attention", query, key, value, lengths, window, 1 / Double(query.size(-1)).squareRoot())
}

/// The portable forms, which the kernels are tested against.
package enum Portable {
    package static func rmsNorm(_ input: Tensor, weight: Tensor, epsilon: Double) throws -> Tensor {
        let wide = try input.to(dtype: .float32)
        let scale = try (wide.squared().mean([-1], keepingDimensions: true) + epsilon).reciprocalSquareRoot()
        return try (wide * scale).to(dtype: input.dtype) * weight
    }

    package static func swiglu(gate: Tensor, up: Tensor) throws -> Tensor { try silu(gate) * up }

    package static func rotated(_ states: Tensor, cos: Tensor, sin: Tensor) throws -> Tensor {
        // (first, second) becomes first cos - second sin, second cos + first sin: the halves change places.
        let turned = try callTensor("aten::roll", states, [states.size(-1) / 2], [-1])
        return try callTensor("aten::addcmul", states * cos, turned, sin)
    }
}
