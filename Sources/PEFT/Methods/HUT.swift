import Backbones
import Torch

/// Hadamard updated transformation (HUT): the frozen weight, entry by entry times a factor of its input and one of its
/// output, then a trained scale and shift of what the layer gives. arXiv 2409.13501
///
/// With `A [in, r]` and `B [r, out]`, and `s = scale`, by `form`:
///
/// - `blocks`: `W'[o, i] = A[i, p(o)] W[o, i] B[q(i), o]`, `p(o) = floor(o r / out)`, `q(i) = floor(i r / in)`;
/// - `power`: `W'[o, i] = A[i, 0]^r W[o, i] B[0, o]^r`, with one column and one row alone;
/// - `one_plus`: `W' = W * (1 + s (A B)^T)` entry by entry.
///
/// The layer computes `gamma * (W' x + b) + beta`. Saved are `base_model.model.<path>.hut_A`, `hut_B`, `hut_gamma` and
/// `hut_beta`, the last two `[out]` and with `scale_shift` alone.
///
/// All start as ones and `beta` as zeros, which is the pretrained model; in `one_plus`, `A` is uniform within
/// `1 / sqrt(in)` and `B` zero.
public struct HUT: Method {
    /// The value of `peft_type`.
    public static let peftType = "HUT"
    /// The hyper-parameters.
    public static let fields: [Field<HUT>] = [
        Field("r", \.r, "blocks of the inputs and of the outputs, exponent (power), or rank (one_plus)"),
        Field("form", \.form, "how the factors are read: blocks, power, or one_plus"),
        Field("scale_shift", \.scaleShift, "whether the layer's output is scaled and shifted, too"),
        Field("scale", \.scale, "factor of the low-rank product in one_plus"),
    ]

    /// How the two factors become one of the weight's shape.
    public enum Form: String, FieldValue, CaseIterable {
        /// Columns and rows for blocks of outputs and inputs.
        case blocks
        /// One column and one row to the power `r`.
        case power
        /// One plus a low-rank product.
        case onePlus = "one_plus"
    }

    /// The blocks, the exponent or the rank.
    public var r = 8
    /// How the factors are read.
    public var form = Form.blocks
    /// Whether the output is scaled and shifted.
    public var scaleShift = true
    /// The factor of the low-rank product.
    public var scale = 1.0

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws { try requirePositive(r, "r") }

    /// The columns of `A` and rows of `B`, and two vectors for the output.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        points.linears.reduce(0) { sum, layer in
            let factors = Double(width) * (Double(layer.inFeatures) + Double(layer.outFeatures))
            return sum + factors + (scaleShift ? 2 * Double(layer.outFeatures) : 0)
        }
    }

    /// Makes the factors of every layer.
    ///
    /// - Throws: `PEFTError` when a layer has fewer features than blocks; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let (inputs, outputs) = (layer.inFeatures, layer.outFeatures)
            guard form != .blocks || r <= min(inputs, outputs) else {
                throw PEFTError(
                    "r: expected at most \(min(inputs, outputs)) blocks, as \(layer.path) is \(outputs) by \(inputs), "
                        + "found \(r)")
            }
            // Decay would pull what starts as ones towards 0, which is not where the pretrained model is.
            func ones(_ name: String, _ shape: [Int]) throws -> Tensor {
                try attachment.train(
                    adapterKey(layer.path, name), from: Tensor.ones(shape), on: points.device, decay: .none)
            }
            func uniform(_ name: String, _ shape: [Int], within bound: Double) throws -> Tensor {
                let values = try seed.uniform("\(layer.path).\(name)", shape, within: bound)
                return try attachment.train(adapterKey(layer.path, name), from: values, on: points.device)
            }
            let a, b: Tensor
            if form == .onePlus {
                a = try uniform("hut_A", [inputs, r], within: 1 / Double(inputs).squareRoot())
                b = try uniform("hut_B", [r, outputs], within: 0)
            } else {
                a = try ones("hut_A", [inputs, width])
                b = try ones("hut_B", [width, outputs])
            }
            let gamma = try scaleShift ? ones("hut_gamma", [outputs]) : nil
            let beta = try scaleShift ? uniform("hut_beta", [outputs], within: 0) : nil
            let update = HUTUpdate(
                form: form, exponent: form == .power ? r : 1, scale: scale, a: a, b: b, gamma: gamma, beta: beta)
            attachment.updates.append((layer, update))
        }
        return attachment
    }

    private var width: Int { form == .power ? 1 : r }
}

/// `gamma * (W' x + b) + beta`.
struct HUTUpdate: WeightUpdate {
    let form: HUT.Form
    let exponent: Int
    let scale: Double
    /// `[in, r]` and `[r, out]`.
    let a, b: Tensor
    /// `[out]`, or nil without a scale and shift.
    let gamma, beta: Tensor?
    let dropout = 0.0

    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        let weight = try changed(layer.weight.values(dtype: .float32))
        let output = try linear(input, weight.to(dtype: input.dtype), layer.bias?.value())
        guard let gamma, let beta else { return output }
        return try (output * gamma + beta).to(dtype: output.dtype)
    }

    func merged(into weight: Tensor) throws -> Tensor {
        let weight = try changed(weight)
        return try gamma.map { try weight * $0.to(dtype: weight.dtype).unsqueezed(1) } ?? weight
    }

    func mergedBias(_ bias: Tensor?) throws -> Tensor? {
        guard let gamma, let beta else { return bias }
        return try bias.map { try $0 * gamma + beta } ?? beta
    }

    /// `W'` of `W [out, in]`, in its dtype.
    private func changed(_ weight: Tensor) throws -> Tensor {
        let (a, b) = (try a.to(dtype: weight.dtype), try b.to(dtype: weight.dtype))
        if form == .onePlus { return try weight * (a.matmul(b).transposed() * scale + 1) }
        let ofInputs = try factor(a, of: weight.size(0)).transposed()
        return try weight * ofInputs * factor(b.transposed(), of: weight.size(1))
    }

    /// The column of each feature's block, by which `[n, width]` becomes `[n, features]`.
    private func factor(_ columns: Tensor, of features: Int) throws -> Tensor {
        let width = columns.size(1)
        let places = try Tensor((0..<features).map { $0 * width / features }, shape: [features])
        let expanded = try columns.gathered(places.to(device: columns.device), dimension: 1)
        return exponent == 1 ? expanded : try callTensor("aten::pow.Tensor_Scalar", expanded, exponent)
    }
}
