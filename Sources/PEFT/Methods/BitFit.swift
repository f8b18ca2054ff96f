import Backbones
import Formats
import Torch

/// Bias tuning: the biases of linear layers are trained, everything else stays. arXiv 2106.10199
///
/// A model without any bias gets biases of zero, which leave its function as it is.
public struct BitFit: Method {
    /// The value of `peft_type`.
    public static let peftType = "BITFIT"
    /// The hyper-parameters.
    public static let fields: [Field<BitFit>] = [
        Field(
            "add_biases", \.addsBiases, "give selected layers without a bias one of zero; null: where no layer has one")
    ]
    /// Every linear layer but the head.
    public static let defaultTargets = Selection.Modules.expression("all-linear")

    /// Whether layers without a bias get one; nil: where no selected layer has one.
    public var addsBiases: Bool?

    /// Makes the method with its defaults.
    public init() {}

    /// The outputs of the layers whose biases are trained.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let adds = adds(to: points.linears)
        return points.linears.reduce(0) { $0 + (adds || $1.bias != nil ? Double($1.outFeatures) : 0) }
    }

    /// Copies the biases that there are, and makes those that there are not.
    ///
    /// - Throws: `PEFTError` when no layer has a bias and none is to get one; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        try points.addCopies(of: points.linears.compactMap(\.bias), to: &attachment)
        for layer in points.linears where layer.bias == nil && adds(to: points.linears) {
            let bias = try attachment.train(
                adapterKey(layer.path, "bias"), from: Tensor.zeros([layer.outFeatures]), on: points.device,
                decay: .none)
            attachment.updates.append((layer, AddedBias(bias: bias)))
        }
        guard !attachment.trainables.isEmpty else {
            throw PEFTError("add_biases: no selected layer has a bias; expected true or null, or other target_modules")
        }
        return attachment
    }

    private func adds(to layers: [Linear]) -> Bool { addsBiases ?? layers.allSatisfy { $0.bias == nil } }
}

/// `y = x W^T + b` for a layer that has no bias of its own.
private struct AddedBias: WeightUpdate {
    /// `[out]`.
    let bias: Tensor
    let dropout = 0.0

    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        try linear.base(input) + bias.to(dtype: input.dtype)
    }

    func merged(into weight: Tensor) throws -> Tensor { weight }

    func mergedBias(_ frozen: Tensor?) throws -> Tensor? {
        try frozen.map { try $0 + bias.to(dtype: $0.dtype) } ?? bias
    }
}
