import Torch

/// Attention by plain matrix products, one for all queries that share a key's head.
///
/// LibTorch's fused kernel for CPUs multiplies bfloat16 slowly: up to some hundred tokens the products are faster, with
/// their backward two to four times. Like the fused kernel this keeps no probabilities for the backward pass; it
/// computes them again.
package enum PlainAttention {
    /// Beyond this many scores a head, the fused kernel is as fast and takes less memory.
    private static let mostScores = 512 * 512

    /// Whether the products are faster than the fused kernel.
    static func pays(_ query: Tensor, _ key: Tensor) -> Bool {
        let time = query.size(2)
        return time > 1 && time * key.size(2) <= mostScores && query.dtype == .bfloat16 && query.device == .cpu
    }

    /// `softmax(q k^T / sqrt(dim) + bias) v`.
    ///
    /// - Parameters:
    ///   - query: `[batch, heads, time, dim]`.
    ///   - key: `[batch, heads or fewer, keys, dim]`.
    ///   - value: `[batch, heads or fewer, keys, dim]`.
    ///   - bias: Broadcasts to `[batch, heads, time, keys]`; no gradient flows into it.
    /// - Returns: `[batch, heads, time, dim]`.
    /// - Throws: `TorchError` when sizes differ.
    package static func attend(_ query: Tensor, _ key: Tensor, _ value: Tensor, bias: Tensor) throws -> Tensor {
        try withCustomGradient("attention", inputs: [query, key, value]) {
            let sizes = Sizes(query: query, key: key)
            let (queries, keys, values) = (try sizes.queries(query), try sizes.keys(key), try sizes.keys(value))
            let output = try sizes.heads(batched(sizes.probabilities(queries, keys, bias), values))
            return (
                output,
                { gradient in
                    let probabilities = try sizes.probabilities(queries, keys, bias)
                    let outer = try sizes.queries(gradient)
                    let inner = try callTensor(
                        "aten::_softmax_backward_data", batched(outer, values.transposed()), probabilities, -1,
                        query.dtype)
                    try inner.multiply(by: sizes.scale)
                    return [
                        try sizes.heads(batched(inner, keys)),
                        try batched(inner.transposed(), queries).reshaped(key.shape),
                        try batched(probabilities.transposed(), outer).reshaped(key.shape),
                    ]
                }
            )
        }
    }

    private static func batched(_ left: Tensor, _ right: Tensor) throws -> Tensor {
        try callTensor("aten::bmm", left, right)
    }

    private struct Sizes {
        let batch: Int
        let heads: Int
        let groups: Int
        let time: Int
        let keys: Int
        let dimension: Int

        init(query: Tensor, key: Tensor) {
            (batch, heads, time, dimension) = (query.size(0), query.size(1), query.size(2), query.size(3))
            (groups, keys) = (key.size(1), key.size(2))
        }

        var scale: Double { 1 / Double(dimension).squareRoot() }

        /// `[batch, heads, time, dim]` to `[batch * groups, heads / groups * time, dim]`.
        func queries(_ tensor: Tensor) throws -> Tensor {
            try tensor.reshaped([batch * groups, heads / groups * time, dimension])
        }

        /// `[batch, groups, keys, dim]` to `[batch * groups, keys, dim]`.
        func keys(_ tensor: Tensor) throws -> Tensor { try tensor.reshaped([batch * groups, keys, dimension]) }

        /// The inverse of ``queries(_:)``.
        func heads(_ tensor: Tensor) throws -> Tensor { try tensor.reshaped([batch, heads, time, dimension]) }

        /// `[batch * groups, heads / groups * time, keys]`.
        func probabilities(_ query: Tensor, _ key: Tensor, _ bias: Tensor) throws -> Tensor {
            let scores = try PlainAttention.batched(query, key.transposed()).reshaped([batch, heads, time, keys])
            try scores.multiply(by: scale)
            try scores.add(bias)
            return try softmax(scores).reshaped([batch * groups, heads / groups * time, keys])
        }
    }
}
