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

    func weight(_ shape: [Int], isUp: Bool, deviation: Double, from seed: Seed, _ name: String) throws -> Tensor {
        switch self {
        case .normal: return try seed.normal(name, shape, deviation: deviation)
        case .truncatedNormal:
            var stream = seed.stream(name)
            var values: [Float] = []
            let count = shape.reduce(1, *)
            while values.count < count {
                let value = stream.normal()
                if abs(value) <= 2 { values.append(Float(value * deviation)) }
            }
            return try Tensor(values, shape: shape)
        case .zeroUp: return try seed.uniform(name, shape, within: isUp ? 0 : 1 / Double(shape[1]).squareRoot())
        }
    }
}

/// What every bottleneck is set by, as a method's settings have it.
public struct BottleneckSettings: Sendable {
    static let fields: [Field<BottleneckSettings>] = [
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

    /// The width; nil: the hidden size over `reductionFactor`.
    public var r: Int?
    /// The hidden size over the width.
    public var reductionFactor: Double
    /// What adapters of attention read.
    public var attentionInput: BottleneckInput?
    /// What adapters of MLPs read.
    public var mlpInput: BottleneckInput? = .sum
    /// The activation.
    public var nonLinearity = BottleneckActivation.relu
    /// The factor of the adapter's output.
    public var scale = 1.0
    /// The probability of zeroing an element inside.
    public var dropout = 0.0
    /// How the weights start.
    public var start = BottleneckStart.normal
    /// The deviation of normal weights.
    public var deviation = 0.02

    /// Makes Pfeiffer's settings.
    public init(reductionFactor: Double = 16) { self.reductionFactor = reductionFactor }

    /// Refuses a bottleneck without width, without place, or one that could never learn.
    func validate() throws {
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

    /// The width between so many features.
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
    func trainedCount(in points: AttachPoints) throws -> Double {
        try places(in: points).reduce(0) { sum, place in
            let (width, hidden) = (Double(try width(place.sublayer.width)), Double(place.sublayer.width))
            return sum + 2 * width * hidden + width + hidden
        }
    }

    /// Makes the bottlenecks.
    ///
    /// - Parameter masks: Those of a weight, by its path and shape; nil for a weight that is seen whole.
    func attach(
        to points: AttachPoints, seed: Seed, masks: (String, [Int]) throws -> Tensor? = { _, _ in nil }
    ) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        for (sublayer, input) in places(in: points) {
            let bottleneck = try Bottleneck(
                self, at: sublayer.path, of: sublayer.width, reading: input, in: &attachment, on: points.device,
                start: { name, shape in
                    try start.weight(
                        shape, isUp: name == Bottleneck.upName, deviation: deviation, from: seed,
                        "\(sublayer.path).\(name)")
                }, masks: { try masks("\(sublayer.path).\($0)", $1) })
            attachment.others.append(Attached(sublayer, bottleneck))
        }
        return attachment
    }
}

/// A method of bottlenecks at sublayers.
protocol BottleneckMethod: Method {
    var bottleneck: BottleneckSettings { get set }
}

extension BottleneckMethod {
    /// The settings of every bottleneck.
    static var bottleneckFields: [Field<Self>] { BottleneckSettings.fields.map { $0.within(\.bottleneck) } }
    /// Why no merged weight does the same.
    public static var mergeRefusal: String? {
        "a bottleneck has an activation between its two weights, so no weight of the model can take it over"
    }
    /// Sublayers are adapted, not layers.
    public static var usesLinears: Bool { false }
}
