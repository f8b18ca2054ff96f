import Backbones
import Formats
import Torch

/// Low-rank tensor adaptation: one five-way tensor in CP form holds the updates of every attention matrix of the
/// model, so that the number of trained values grows with the sum of its sizes. arXiv 2410.04060
///
/// With `d` features, `H` heads of `dim`, `L` blocks and `M` = 4 matrices a block (q, k, v, o), five factors are
/// trained, shared by everything: `A [d, r]`, `B [r, dim]`, `C_H [H, r]`, `C_L [L, r]` and `C_M [M, r]`. They are
/// saved as `base_model.lorta_A`, `lorta_B`, `lorta_C_H`, `lorta_C_L` and `lorta_C_M`, in these shapes. With
///
///     T[a, b, h, l, m] = sum over k of A[a, k] B[k, b] C_H[h, k] C_L[l, k] C_M[m, k]
///     D(l, m)[a, h * dim + b] = T[a, b, h, l, m]        [d, heads * dim]
///
/// and `s = lorta_alpha / r` (with `use_rslora`, `lorta_alpha / sqrt(r)`), matrix `m` of block `l` is updated by
///
/// - `natural`: q, k and v by `s D^T`, whose outputs are divided into heads, and o by `s D`, whose inputs are;
/// - `lit`: all four by `s D^T`, as the authors' lit-gpt code has it; needs `heads * dim = d`;
/// - `peft`: all four by `s D`, as their fork of peft has it; needs as many key/value heads as query heads, too.
///
/// Where keys and values have fewer heads, head `j` of them takes row `j * H / heads` of `C_H`.
///
/// At the start `A` is uniform within `1 / sqrt(r)`, `B` zero, and the three `C` uniform within
/// `sqrt(6 / ((1 + 5 init_scale^2) r))`: a larger `init_scale` makes them smaller.
public struct LoRTA: Method {
    /// The value of `peft_type`.
    public static let peftType = "LORTA"
    /// The hyper-parameters.
    public static let fields: [Field<LoRTA>] = [
        Field("r", \.r, "components of the tensor"),
        Field("lorta_alpha", \.alpha, "the update is scaled by lorta_alpha / r"),
        Field("lorta_dropout", \.dropout, "probability of zeroing an element of the adapter's input"),
        Field("init_scale", \.initScale, "slope of the factors' start; larger is smaller"),
        Field("use_rslora", \.useRSLoRA, "scale by lorta_alpha / sqrt(r) instead"),
        Field("orientation", \.orientation, "side of the weights that is divided into heads"),
        Field("precondition", \.precondition, "multiply gradients by the inverse Gram matrices of the other factors"),
        Field("precondition_eps", \.epsilon, "added to the Gram matrices' diagonal before they are inverted"),
        Field("precondition_relative_eps", \.isEpsilonRelative, "precondition_eps counts in means of that diagonal"),
    ]
    /// All matrices of attention.
    public static let defaultTargets = Selection.Modules.names(["q_proj", "k_proj", "v_proj", "o_proj"])

    /// Which side of the weights is divided into heads.
    public enum Orientation: String, FieldValue, CaseIterable {
        /// The side that attention divides.
        case natural
        /// The outputs.
        case lit
        /// The inputs.
        case peft
    }

    /// The components of the tensor.
    public var r = 8
    /// The scale times the number of components.
    public var alpha = 8.0
    /// The probability of zeroing an element of the adapter's input.
    public var dropout = 0.0
    /// The slope of the start of `C_H`, `C_L` and `C_M`.
    public var initScale = 0.0
    /// Whether the scale is `lorta_alpha / sqrt(r)`.
    public var useRSLoRA = false
    /// Which side of the weights is divided into heads.
    public var orientation = Orientation.natural
    /// Whether gradients are preconditioned.
    public var precondition = false
    /// What keeps the preconditioners' inverses finite.
    public var epsilon = 1e-6
    /// Whether `epsilon` counts in means of the diagonal that it is added to.
    public var isEpsilonRelative = false

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(r, "r")
        try requireProbability(dropout, "lorta_dropout")
        try requirePositive(epsilon, "precondition_eps")
    }

    /// The values of the five factors.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        let model = points.configuration
        let rows = model.hiddenSize + model.headDim + model.numAttentionHeads + model.numHiddenLayers + Self.roles.count
        return Double(r) * Double(rows)
    }

    /// Makes the five factors.
    ///
    /// - Throws: `PEFTError` when a layer does not fit; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try requireEveryMatrix(points)
        let (model, root) = (points.configuration, Double(r).squareRoot())
        func factor(_ name: String, _ shape: [Int], within bound: Double) throws -> Trainable {
            let values = try seed.uniform("lorta_\(name)", shape, within: bound)
            return try Trainable("base_model.lorta_\(name)", values, device: points.device)
        }
        let bound = (6 / (1 + 5 * initScale * initScale)).squareRoot() / root
        let trainables = [
            try factor("A", [model.hiddenSize, r], within: 1 / root),
            try factor("B", [r, model.headDim], within: 0),
            try factor("C_H", [model.numAttentionHeads, r], within: bound),
            try factor("C_L", [model.numHiddenLayers, r], within: bound),
            try factor("C_M", [Self.roles.count, r], within: bound),
        ]
        let factors = LoRTAFactors(trainables.map(\.tensor))
        let scale = alpha / (useRSLoRA ? root : Double(r))
        var attachment = Attachment(
            trainables: trainables,
            updates: try points.linears.map { layer in
                let place = try place(of: layer, in: model)
                return (layer, LoRTAUpdate(shared: factors, place: place, scale: scale, dropout: dropout))
            })
        if precondition {
            attachment.hook = GradientHook { [epsilon, isEpsilonRelative] in
                try factors.preconditionGradients(epsilon: epsilon, isRelative: isEpsilonRelative)
            }
        }
        return attachment
    }

    /// The matrices in the order of the rows of `C_M`.
    private static let roles: [LinearRole] = [.query, .key, .value, .output]

    /// One tensor holds all updates: a selection that leaves some out would leave parts of it untrained.
    private func requireEveryMatrix(_ points: AttachPoints) throws {
        let other = points.linears.first { !Self.roles.contains($0.role) }
        guard other == nil, points.linears.count == Self.roles.count * points.configuration.numHiddenLayers else {
            let found = other.map { "selects \($0.path)" } ?? "leaves some of them out"
            throw PEFTError(
                "target_modules: LoRTA adapts the q, k, v and o projections of every block and no other layer, but the "
                    + "selection \(found); leave target_modules, exclude_modules and layers_to_transform unset")
        }
    }

    private func place(of layer: Linear, in model: LlamaConfiguration) throws -> LoRTAPlace {
        guard let heads = layer.heads, let block = layer.layer, let row = Self.roles.firstIndex(of: layer.role) else {
            throw PEFTError("\(layer.path) is not divided into heads, which LoRTA needs")
        }
        let side: HeadLayout.Side =
            switch orientation {
            case .natural: heads.side
            case .lit: .output
            case .peft: .input
            }
        let (headed, plain) =
            side == .output ? (layer.outFeatures, layer.inFeatures) : (layer.inFeatures, layer.outFeatures)
        guard headed == heads.count * heads.dimension, plain == model.hiddenSize else {
            throw PEFTError(
                "orientation: \(orientation.rawValue) does not fit \(layer.path), whose weight is "
                    + "[\(layer.outFeatures), \(layer.inFeatures)] with \(heads.count) heads of \(heads.dimension) "
                    + "features in a model of \(model.hiddenSize); natural fits")
        }
        return LoRTAPlace(block: block, matrix: row, stride: model.numAttentionHeads / heads.count, side: side)
    }
}
