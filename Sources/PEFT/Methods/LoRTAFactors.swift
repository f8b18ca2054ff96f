import Backbones
import Torch

/// The five factors of LoRTA's tensor.
struct LoRTAFactors {
    /// `[d, r]`.
    let a: Tensor
    /// `[r, dim]`.
    let b: Tensor
    /// `[heads, r]`.
    let heads: Tensor
    /// `[blocks, r]`.
    let layers: Tensor
    /// `[4, r]`.
    let matrices: Tensor

    /// Takes A, B, C_H, C_L and C_M.
    init(_ tensors: [Tensor]) {
        (a, b, heads, layers, matrices) = (tensors[0], tensors[1], tensors[2], tensors[3], tensors[4])
    }

    /// Multiplies each factor's gradient by `P = (product of the other four factors' Gram matrices + epsilon I)^-1`,
    /// `[r, r]`, element-wise product: `P grad` for `B [r, dim]`, `grad P` for the others, whose rows are the modes.
    ///
    /// This is Gauss-Newton's step factor by factor for an isotropic loss in the tensor: to first order, what a step
    /// changes in the tensor does not depend on how the components' size is shared out among the factors.
    ///
    /// While `B` is zero nothing happens: the other four gradients are zero then, and their matrices singular.
    ///
    /// - Parameters:
    ///   - epsilon: Added to the diagonal.
    ///   - isRelative: Whether `epsilon` counts in means of that diagonal.
    func preconditionGradients(epsilon: Double, isRelative: Bool) throws {
        try withoutGrad {
            // Every factor with its modes as rows.
            let rows = [a, try b.transposed(0, 1), heads, layers, matrices]
            // The product of four Gram matrices is often ill-conditioned: fp64.
            let grams = try rows.map { factor in
                let wide = try factor.to(dtype: .float64)
                return try wide.transposed(0, 1).matmul(wide)
            }
            guard try grams[1].norm().item(as: Double.self) > 0 else { return }
            for (index, tensor) in [a, b, heads, layers, matrices].enumerated() {
                guard let gradient = tensor.grad else { continue }
                var product = try Tensor.ones(grams[0].shape, dtype: .float64, device: tensor.device)
                for (other, gram) in grams.enumerated() where other != index { product = try product * gram }
                let matrix = try inverse(product, epsilon: epsilon, isRelative: isRelative)
                let wide = try gradient.to(dtype: .float64)
                let changed = try index == 1 ? matrix.matmul(wide) : wide.matmul(matrix)
                try tensor.setGrad(changed.to(dtype: gradient.dtype))
            }
        }
    }

    /// The inverse of `product + epsilon I`, or the pseudo-inverse where there is none.
    private func inverse(_ product: Tensor, epsilon: Double, isRelative: Bool) throws -> Tensor {
        let unit =
            isRelative ? try callTensor("aten::trace", product).item(as: Double.self) / Double(product.size(0)) : 1
        let identity = try Tensor.eye(product.size(0), dtype: .float64, device: product.device)
        let regular = try product + identity * (epsilon * unit)
        let inverse = try callTensors("aten::linalg_inv_ex", regular)[0]
        return try inverse.isAllFinite() ? inverse : callTensor("aten::linalg_pinv", regular)
    }
}

/// Where a matrix lies in the tensor.
struct LoRTAPlace {
    let block: Int
    let matrix: Int
    /// The step between the rows of `C_H` that the matrix's heads take.
    let stride: Int
    /// The side that is divided into heads.
    let side: HeadLayout.Side
}

/// `dW = s D^T` or `s D`, a product of factors of rank `r`.
struct LoRTAUpdate: LowRankUpdate {
    let shared: LoRTAFactors
    let place: LoRTAPlace
    let scale: Double
    let dropout: Double

    func factors() throws -> (down: Tensor, up: Tensor) {
        // [heads, r]
        let weights =
            try shared.heads.indexed(.slice(0, nil, step: place.stride))
            * shared.layers.selected(0, place.block) * shared.matrices.selected(0, place.matrix)
        // [heads, 1, r] * [dim, r] -> [heads * dim, r], head by head
        let headed = try (weights.unsqueezed(1) * shared.b.transposed(0, 1)).reshaped([-1, weights.size(1)])
        switch place.side {
        case .output: return (try shared.a.transposed(0, 1), headed)
        case .input: return (try headed.transposed(0, 1), shared.a)
        }
    }
}
