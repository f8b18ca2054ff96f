import Backbones
import Torch

/// Chosen input columns of a weight, changed in place: `dW[:, columns] = scale * values`, zero elsewhere.
///
/// For the backward pass a layer keeps the chosen features of its input and nothing else of it.
struct ColumnUpdate: AdditiveUpdate {
    /// `[out, k]`, trained.
    let values: Tensor
    /// int64 `[k]`, distinct.
    let columns: Tensor
    /// The features of the weight's input.
    let inFeatures: Int
    var scale = 1.0
    let dropout = 0.0

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        try withCustomGradient("selected columns", inputs: [input, values]) {
            let (shape, dtype) = (input.shape, input.dtype)
            let wantsInput = input.requiresGrad
            // [..., k], all that is kept of the input.
            let part = try input.gathered(columns, dimension: -1)
            let weight = try (values * scale).to(dtype: dtype)
            let output = try linear(part, weight)
            return (
                output,
                { gradient in
                    let rows = try gradient.reshaped([-1, weight.size(0)])
                    let partRows = try part.reshaped([-1, weight.size(1)])
                    let valuesGradient = try rows.transposed().matmul(partRows).to(dtype: .float32) * scale
                    guard wantsInput else { return [nil, valuesGradient] }
                    let inputGradient = try Tensor.zeros(shape, dtype: dtype, device: gradient.device)
                    try call("aten::index_copy_", inputGradient, -1, columns, gradient.matmul(weight))
                    return [inputGradient, valuesGradient]
                }
            )
        }
    }

    /// Over a plain weight the products are one step of the record, which adds in place; over any other storage the
    /// change is a step of its own.
    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        guard layer.isFrozen, layer.weight.packed == nil, runsOwnKernels(input),
            layer.weight.frozen.dtype == input.dtype
        else {
            return try layer.base(input) + self(input)
        }
        let (frozen, bias) = (layer.weight.frozen, layer.bias?.frozen)
        return try withCustomGradient("selected columns", inputs: [input, values]) {
            let (shape, wantsInput) = (input.shape, input.requiresGrad)
            let rows = try input.reshaped([-1, inFeatures])
            // [rows, k], all that is kept of the input.
            let part = try rows.gathered(columns, dimension: 1)
            let weight = try (values * scale).to(dtype: input.dtype)
            let output = try unrecordedProduct(rows, frozen, bias)
            try call("aten::addmm_", output, part, weight.transposed())
            return (
                try output.reshaped(shape.dropLast() + [frozen.size(0)]),
                { gradient in
                    let outer = try gradient.reshaped([-1, frozen.size(0)])
                    let transposed = try unrecordedProduct(part.transposed(), outer.transposed())  // [k, out]
                    let valuesGradient = try transposed.transposed().to(dtype: .float32) * scale
                    guard wantsInput else { return [nil, valuesGradient] }
                    let inputGradient = try unrecordedProduct(outer, frozen.transposed())
                    try call("aten::index_add_", inputGradient, 1, columns, outer.matmul(weight))
                    return [try inputGradient.reshaped(shape), valuesGradient]
                }
            )
        }
    }

    func dense() throws -> Tensor {
        let zeros = try Tensor.zeros([values.size(0), inFeatures], dtype: values.dtype, device: values.device)
        return try callTensor("aten::index_copy", zeros, 1, columns, values * scale)
    }

    /// The weight with the chosen columns changed; all others are the weight's bit for bit.
    func merged(into weight: Tensor) throws -> Tensor {
        try callTensor("aten::index_add", weight, 1, columns, (values * scale).to(dtype: weight.dtype))
    }
}

/// Chosen output rows of a weight, changed in place: `dW[rows, :] = values`, zero elsewhere.
///
/// The gradient of the rows needs the whole input, which columns do not: see ``ColumnUpdate``.
struct RowUpdate: AdditiveUpdate {
    /// `[k, in]`, trained.
    let values: Tensor
    /// int64 `[k]`, distinct.
    let rows: Tensor
    /// The features of the weight's output.
    let outFeatures: Int
    let dropout = 0.0

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        let part = try linear(input, values.to(dtype: input.dtype))
        let zeros = try Tensor.zeros(
            input.shape.dropLast() + [outFeatures], dtype: input.dtype, device: input.device)
        return try callTensor("aten::index_copy", zeros, -1, rows, part)
    }

    func dense() throws -> Tensor {
        let zeros = try Tensor.zeros([outFeatures, values.size(1)], dtype: values.dtype, device: values.device)
        return try callTensor("aten::index_copy", zeros, 0, rows, values)
    }

    /// The weight with the chosen rows changed; all others are the weight's bit for bit.
    func merged(into weight: Tensor) throws -> Tensor {
        try callTensor("aten::index_add", weight, 0, rows, values.to(dtype: weight.dtype))
    }
}
