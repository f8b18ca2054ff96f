import Backbones
import Formats
import Torch

/// (IA)^3: one trained vector for each adapted layer, which scales its output, or its input in an MLP's down
/// projection. arXiv 2205.05638
///
///     keys, values:       y = l * (W x + b)        W' = diag(l) W,  b' = l * b
///     feedforward:        y = W (l * x) + b        W' = W diag(l),  b' = b
///
/// All vectors start as ones, so that the first step's model is the pretrained one.
public struct IA3: Method {
    /// The value of `peft_type`.
    public static let peftType = "IA3"
    /// The hyper-parameters.
    public static let fields: [Field<IA3>] = [
        Field("feedforward_modules", \.feedforwardModules, "adapted layers whose input is scaled, not the output")
    ]
    /// Keys, values and the MLP's down projection, as in peft for llama and mistral.
    public static let defaultTargets = Selection.Modules.names(["k_proj", "v_proj", "down_proj"])
    /// What peft 0.21.2 writes for `IA3`; how the vectors started says nothing about trained ones.
    public static let folderFields = FolderFields(
        neutral: ["fan_in_fan_out": false, "init_ia3_weights": true], inert: ["fan_in_fan_out", "init_ia3_weights"],
        selection: ["target_modules", "exclude_modules", "modules_to_save"])

    /// The adapted layers whose input is scaled.
    public var feedforwardModules = Selection.Modules.names(["down_proj"])

    /// Makes the method with its defaults.
    public init() {}

    /// The default modules where a folder leaves it to the model.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON {
        field == "feedforward_modules" && value.isNull ? IA3().feedforwardModules.json : value
    }

    /// One value for each scaled feature.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        try points.linears.reduce(0) { $0 + Double(try scalesInput(of: $1) ? $1.inFeatures : $1.outFeatures) }
    }

    /// Makes the vectors.
    ///
    /// - Throws: `PEFTError` when `feedforward_modules` is no valid expression; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let onInput = try scalesInput(of: layer)
            // As columns and rows, the shapes in which peft keeps them.
            let shape = onInput ? [1, layer.inFeatures] : [layer.outFeatures, 1]
            // Decay would pull towards 0, which is not where the pretrained model is.
            let vector = try attachment.train(
                adapterKey(layer.path, "ia3_l"), from: Tensor.ones(shape), on: points.device, decay: .none)
            attachment.updates.append((layer, IA3Update(vector: vector, onInput: onInput)))
        }
        return attachment
    }

    private func scalesInput(of layer: Linear) throws -> Bool { try feedforwardModules.matches(layer.path) }
}

/// A scaled output or input.
struct IA3Update: WeightUpdate {
    /// `[1, in]` or `[out, 1]`.
    let vector: Tensor
    let onInput: Bool
    let dropout = 0.0

    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        onInput ? try layer.base(scaled(input)) : try scaled(layer.base(input))
    }

    func merged(into weight: Tensor) throws -> Tensor { try weight * vector }

    func mergedBias(_ bias: Tensor?) throws -> Tensor? {
        try onInput ? nil : bias.map { try $0 * vector.reshaped([-1]) }
    }

    private func scaled(_ features: Tensor) throws -> Tensor {
        try (features * vector.reshaped([-1])).to(dtype: features.dtype)
    }
}
