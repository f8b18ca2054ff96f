import Backbones
import Torch

/// `dW = s B A`, less the factors that the base was relieved of.
struct LoRAUpdate: LowRankUpdate {
    /// `[r, in]`.
    let a: Tensor
    /// `[out, r]`.
    let b: Tensor
    var scale: Double
    let dropout: Double
    /// Where the start was taken off the base (PiSSA, OLoRA): what was.
    var initial: (down: Tensor, up: Tensor)?

    func factors() throws -> (down: Tensor, up: Tensor) { try less(initial, (a, b)) }
}

/// `W' = diag(m / n) (W + s B A)` with `n` the norms of the rows of `W + s B A`, constant in the backward pass.
struct DoRAUpdate: WeightUpdate {
    var direction: LoRAUpdate
    /// `[out]`.
    let magnitude: Tensor

    var dropout: Double { direction.dropout }

    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        let kept = try context.dropout?.apply(input, probability: dropout, name: layer.path) ?? input
        let weight = try layer.weight.value()
        let scale = try (magnitude / rowNorms(weight.to(dtype: .float32))).to(dtype: input.dtype)
        let frozen = try layer.unbiased(input)
        let product = try kept === input ? frozen : layer.unbiased(kept)
        let adapted = try (product + direction(kept)) * scale
        // The bias is never scaled; without dropout the frozen products cancel.
        let output = try kept === input ? adapted : frozen + adapted - product
        return try layer.bias.map { try output + $0.value() } ?? output
    }

    func merged(into weight: Tensor) throws -> Tensor {
        let scale = try (magnitude / rowNorms(weight)).unsqueezed(1)
        return try (scale * direction.merged(into: weight)).to(dtype: weight.dtype)
    }

    /// `[out]`, without a gradient.
    private func rowNorms(_ weight: Tensor) throws -> Tensor {
        try withoutGrad { try direction.merged(into: weight).norm([1]) }
    }
}
