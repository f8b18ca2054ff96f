import Backbones
import Formats
import Torch

/// The activation inside a bottleneck.
public enum BottleneckActivation: String, FieldValue, CaseIterable {
    case relu, gelu, silu, tanh

    func callAsFunction(_ input: Tensor) throws -> Tensor {
        switch self {
        case .relu: try Torch.relu(input)
        case .gelu: try Torch.gelu(input)
        case .silu: try Torch.silu(input)
        case .tanh: try callTensor("aten::tanh", input)
        }
    }
}

/// What of a sublayer a bottleneck reads.
public enum BottleneckInput: String, FieldValue, CaseIterable {
    /// The sublayer's output: one behind the other.
    case output
    /// The residual stream with the output added: one behind the other.
    case sum
    /// The sublayer's own, normalised input: side by side.
    case input
    /// The residual stream that enters the sublayer, not normalised: side by side.
    case stream
}

/// How the two weights of a bottleneck start; biases are zero.
public enum BottleneckStart: String, FieldValue, CaseIterable {
    /// Normal with deviation `init_std`.
    case normal
    /// Normal with deviation `init_std`, drawn again beyond two deviations.
    case truncatedNormal = "truncated_normal"
    /// Down uniform within `1 / sqrt(in)`, up zero: the pretrained model at first.
    case zeroUp = "zero_up"

    func weight(_ shape: [Int], isUp: Bool, deviation: Double, from stream: inout RandomStream) throws -> Tensor {
        switch self {
        case .normal: return try Tensor.normal(shape, standardDeviation: deviation, from: &stream)
        case .truncatedNormal:
            var values: [Float] = []
            let count = shape.reduce(1, *)
            while values.count < count {
                let value = stream.normal()
                if abs(value) <= 2 { values.append(Float(value * deviation)) }
            }
            return try Tensor(values, shape: shape)
        case .zeroUp:
            let bound = 1 / Double(shape[1]).squareRoot()
            return try isUp ? Tensor.zeros(shape) : Tensor.uniform(shape, in: -bound..<bound, from: &stream)
        }
    }
}

/// The settings that all bottlenecks share.
protocol BottleneckMethod: Method {
    var r: Int? { get set }
    var reductionFactor: Double { get set }
    var nonLinearity: BottleneckActivation { get set }
    var scale: Double { get set }
    var dropout: Double { get set }
    var attentionInput: BottleneckInput? { get set }
    var mlpInput: BottleneckInput? { get set }
    var start: BottleneckStart { get set }
    var deviation: Double { get set }
}

extension BottleneckMethod {
    /// The settings of every bottleneck.
    static var bottleneckFields: [Field<Self>] {
        [
            Field("r", \.r, "width of the bottleneck; null: hidden size / reduction_factor"),
            Field("reduction_factor", \.reductionFactor, "hidden size over the width, where r is null"),
            Field("attention_adapter", \.attentionInput, "what adapters of attention read; null: there are none"),
            Field("mlp_adapter", \.mlpInput, "what adapters of MLPs read; null: there are none"),
            Field("non_linearity", \.nonLinearity, "activation inside the bottleneck"),
            Field("scale", \.scale, "what the bottleneck's output is multiplied by"),
            Field("adapter_dropout", \.dropout, "probability of zeroing an element inside the bottleneck"),
            Field("init_weights", \.start, "how the weights start"),
            Field("init_std", \.deviation, "deviation of weights that start normal"),
        ]
    }

    /// Why no merged weight does the same.
    public static var mergeRefusal: String? {
        "a bottleneck has an activation between its two weights, so no weight of the model can take it over"
    }
    /// Sublayers are adapted, not layers.
    public static var usesLinears: Bool { false }

    /// Refuses a bottleneck without width, without place, or one that could never learn.
    func validateBottleneck() throws {
        if let r { try requirePositive(r, "r") }
        try requirePositive(reductionFactor, "reduction_factor")
        try requireProbability(dropout, "adapter_dropout")
        guard attentionInput != nil || mlpInput != nil else {
            throw PEFTError("attention_adapter and mlp_adapter are both null; name what one of them reads")
        }
        guard scale != 0 else { throw PEFTError("scale: expected a number other than 0, which switches adapters off") }
        guard start == .zeroUp || deviation > 0 else {
            throw PEFTError(
                "init_std: expected a positive number, found \(deviation); with both weights of a bottleneck zero, "
                    + "neither ever gets a gradient")
        }
    }

    /// The sublayers that get an adapter, with what it reads.
    func places(in points: AttachPoints) -> [(sublayer: Sublayer, input: BottleneckInput)] {
        points.sublayers.compactMap { sublayer in
            (sublayer.role == .attention ? attentionInput : mlpInput).map { (sublayer, $0) }
        }
    }

    func width(_ hidden: Int) throws -> Int {
        if let r { return r }
        let width = Double(hidden) / reductionFactor
        guard width >= 1 else {
            throw PEFTError(
                "reduction_factor: \(reductionFactor) leaves no width of the model's \(hidden) features; lower it")
        }
        // Wider than any model, and still a whole number.
        guard width < 1e12 else {
            throw PEFTError("reduction_factor: \(reductionFactor) is too small; expected about 2 to 64")
        }
        return Int(width)
    }

    /// `2 r d + r + d` for each adapted sublayer.
    func bottleneckCount(in points: AttachPoints) throws -> Double {
        try places(in: points).reduce(0) { sum, place in
            let (width, hidden) = (Double(try width(place.sublayer.width)), Double(place.sublayer.width))
            return sum + 2 * width * hidden + width + hidden
        }
    }

    /// Makes the bottlenecks.
    ///
    /// - Parameter branches: The masks of a sublayer's two weights, by path and shape; nil for a plain bottleneck.
    func bottlenecks(
        at points: AttachPoints, seed: Seed, masks: (String, [Int]) throws -> Tensor? = { _, _ in nil }
    ) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for (sublayer, input) in places(in: points) {
            let width = try width(sublayer.width)
            func side(_ name: String, _ shape: [Int]) throws -> Bottleneck.Side {
                let path = "\(sublayer.path).\(name)"
                var stream = seed.stream(path)
                let values = try start.weight(shape, isUp: name.hasSuffix("up"), deviation: deviation, from: &stream)
                var weight = try Trainable(
                    adapterKey(sublayer.path, name + ".weight"), values, device: points.device)
                let bias = try Trainable(
                    adapterKey(sublayer.path, name + ".bias"), Tensor.zeros([shape[0]]), device: points.device)
                let masks = try masks(path, shape)
                // Entries that no branch sees have no gradient; decay must not move them either.
                if let masks { weight.decay = .only(try callTensor("aten::any.dim", masks, 0)) }
                attachment.trainables += [weight, bias]
                return Bottleneck.Side(weight: weight.tensor, bias: bias.tensor, masks: masks)
            }
            let bottleneck = Bottleneck(
                down: try side("adapter_down", [width, sublayer.width]),
                up: try side("adapter_up", [sublayer.width, width]), input: input, activation: nonLinearity,
                scale: scale, dropout: dropout)
            attachment.others.append(Attached(sublayer, bottleneck))
        }
        return attachment
    }
}

/// Beside or behind a sublayer: `s + scale * (U f(D h + c_D) + c_U)`, through masks the sum of such over branches that
/// share weights and biases, the upper bias added once.
final class Bottleneck: SublayerAdapter {
    /// One of the two linear maps.
    struct Side {
        /// `[out, in]`.
        let weight: Tensor
        /// `[out]`.
        let bias: Tensor
        /// bool `[branches, out, in]`, or nil for one branch that sees all.
        let masks: Tensor?
    }

    private let down: Side
    private let up: Side
    private let input: BottleneckInput
    private let activation: BottleneckActivation
    private let scale: Double
    private let dropout: Double

    init(
        down: Side, up: Side, input: BottleneckInput, activation: BottleneckActivation, scale: Double, dropout: Double
    ) {
        (self.down, self.up) = (down, up)
        (self.input, self.activation, self.scale, self.dropout) = (input, activation, scale, dropout)
    }

    func output(
        _ output: Tensor, from input: Tensor, stream: Tensor, of sublayer: Sublayer, in context: Context
    ) throws -> Tensor {
        let source =
            switch self.input {
            case .output: output
            case .sum: try stream + output
            case .input: input
            case .stream: stream
            }
        let dtype = source.dtype
        let (weights, biases) = try stacked()
        let inner = try activation(linear(source, weights.down.to(dtype: dtype), biases.to(dtype: dtype)))
        let kept = try context.dropout?.apply(inner, probability: dropout, name: sublayer.path + ".adapter") ?? inner
        let change = try linear(kept, weights.up.to(dtype: dtype), up.bias.to(dtype: dtype))
        return try output + (scale == 1 ? change : change * scale)
    }

    /// All branches as one bottleneck of their common width: `[branches * r, in]`, `[out, branches * r]`, and the lower
    /// biases, which all branches share.
    private func stacked() throws -> (weights: (down: Tensor, up: Tensor), biases: Tensor) {
        guard let downMasks = down.masks, let upMasks = up.masks else {
            return ((down.weight, up.weight), down.bias)
        }
        let (branches, width) = (downMasks.size(0), down.weight.size(0))
        let lower = try (down.weight * downMasks).reshaped([branches * width, -1])
        let upper = try (up.weight * upMasks).permuted([1, 0, 2]).reshaped([up.weight.size(0), -1])
        return ((lower, upper), try down.bias.unsqueezed(0).expanded([branches, -1]).reshaped([-1]))
    }
}
