import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// A registered method as the generic tests take it: its line in the registry, and what they have to know beside.
struct MethodCase: Sendable, CustomTestStringConvertible {
    /// How far the first output may be from the pretrained model's.
    enum Start: Sendable {
        /// Not by a bit.
        case identical
        /// By rounding: the same numbers are computed in another order.
        case withinRounding
        /// As far as the method says, which begins with values of its own.
        case elsewhere
    }

    let name: String
    /// Settings that fit the small model.
    var settings: KeyedList<JSON> = [:]
    var start = Start.identical
    /// Whether the start is drawn at random; what is copied or computed from the model's weights is not.
    var isSeeded = true
    /// Whether a step may leave some of the trainable tensors without a gradient.
    var trainsParts = false
    /// Whether single scalars of the trainable tensors are trained: these alone are counted and saved.
    var isSparse = false

    var testDescription: String { name }

    /// Every name of the registry.
    static let all = MethodRegistry.entries.map { entry in
        exceptions.first { $0.name == entry.name } ?? MethodCase(name: entry.name)
    }

    /// The methods of which something has to be known.
    private static let exceptions = [
        MethodCase(name: "dora", start: .withinRounding),
        MethodCase(name: "pissa", start: .withinRounding, isSeeded: false),
        MethodCase(name: "olora", start: .withinRounding, isSeeded: false),
        MethodCase(name: "loretta-rep", settings: ["r": 3], start: .withinRounding),
        MethodCase(name: "miss", settings: ["r": 8], isSeeded: false),
        MethodCase(name: "bone", settings: ["r": 4], isSeeded: false),
        MethodCase(name: "hut", settings: ["r": 3], isSeeded: false),
        MethodCase(name: "bitfit", start: .withinRounding, isSeeded: false),
        MethodCase(name: "ln-tuning", start: .withinRounding, isSeeded: false),
        MethodCase(name: "full", start: .withinRounding, isSeeded: false),
        MethodCase(name: "paca", isSeeded: false),
        MethodCase(name: "s2ft", settings: ["ratio_o": 0.5, "ratio_d": 0.3]),
        MethodCase(
            name: "id3", settings: ["budget": 500], start: .withinRounding, isSeeded: false, isSparse: true),
        MethodCase(name: "ia3", isSeeded: false),
        MethodCase(name: "houlsby", start: .elsewhere),
        MethodCase(name: "pfeiffer", start: .elsewhere),
        // A rectifier's kinks would turn the rounding of four-bit blocks into jumps of gradients.
        MethodCase(name: "parallel-adapter", settings: ["non_linearity": "gelu"]),
        MethodCase(name: "adaptformer", settings: ["non_linearity": "gelu"]),
        MethodCase(name: "capaboost-adapter", start: .elsewhere),
        MethodCase(name: "capaboost-padapter", start: .elsewhere),
        MethodCase(name: "prefix-tuning", start: .elsewhere),
        MethodCase(name: "prompt-tuning", start: .elsewhere),
        MethodCase(
            name: "p-tuning",
            settings: ["encoder_hidden_size": 24, "encoder_reparameterization_type": "LSTM"], start: .elsewhere),
        MethodCase(name: "dept", settings: ["r": 4, "max_length": 20], start: .elsewhere),
        MethodCase(name: "meft", start: .elsewhere),
        MethodCase(name: "ist", settings: ["update_layers": 1], trainsParts: true),
        MethodCase(name: "adalora", settings: ["init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2]),
    ]

    /// The method on a model.
    func adapter(on backbone: any Backbone, seed: UInt64 = 7, _ more: KeyedList<JSON> = [:]) throws -> Adapter {
        var settings = settings
        for (key, value) in more { settings[key] = value }
        return try PEFTTests.adapter(name, settings, on: backbone, seed: seed)
    }

    /// Whether the method says nothing against being merged.
    var canBeMerged: Bool { MethodRegistry.entries.first { $0.name == name }?.type.mergeRefusal == nil }

    /// The sentence with which the method refuses to be merged, or nothing where it can be.
    func mergeRefusal(_ adapter: Adapter) -> String { refusal { try adapter.requireMergeable() } }
}

/// The optimiser steps of the generic tests' runs.
let methodSteps = 6

extension Adapter {
    /// Steps of plain gradient descent with all that a trainer tells a method; the gradients of the last one are gone.
    func takeSteps(_ steps: Range<Int>, on ids: Tensor, learningRate: Double = 0.1) throws {
        try trainingBegins(totalSteps: methodSteps)
        for step in steps {
            try stepBegins(step)
            try nextTokenLoss(backbone, ids).backward()
            try penalty()?.backward()
            try gradientsAreReady(step)
            try withoutGrad {
                for trainable in trainables {
                    guard let gradient = trainable.tensor.grad else { continue }
                    try trainable.tensor.add(gradient, times: -learningRate * trainable.learningRateFactor)
                }
            }
            try stepEnded(step)
            try clearGradients()
        }
    }

    /// Copies of all that a run needs to go on.
    func copiedState() throws -> KeyedList<Tensor> {
        var copies = KeyedList<Tensor>()
        for (name, tensor) in state { copies[name] = try tensor.detached().cloned() }
        return copies
    }
}

extension Backbone {
    /// Every place that a method may fill.
    var attachPoints: [any AttachPoint] {
        linears + parameters + sublayers + attentionStates + [embedding, blockStack]
    }

    /// The bytes of the pretrained values.
    func frozenBits() throws -> [[UInt8]] {
        try parameters.map { try bits($0.values(dtype: $0.frozen.dtype)) }
    }
}

/// The ways of holding frozen weights in fewer bits that a method may be trained over; named as a model says it.
enum QuantisedBase: String, CaseIterable, Sendable, CustomTestStringConvertible {
    /// The four-bit blocks of a GGUF file.
    case blocks
    /// 4-bit NormalFloat with quantised scales.
    case nf4
    /// 8-bit integers.
    case int8

    var testDescription: String { rawValue }

    /// A tiny model held so, one of the values that its weights stand for, and rows of tokens for both.
    func models() async throws -> (packed: any Backbone, plain: any Backbone, ids: Tensor) {
        let form: WeightForm
        switch self {
        case .blocks:
            let checkpoint = try Checkpoint(await PackedModels.shared.path())
            return (
                try checkpoint.backbone(dtype: .float32, form: .blocks), try checkpoint.backbone(dtype: .float32),
                try tokenTensor(exampleTokens)
            )
        case .nf4: form = .nf4()
        case .int8: form = .int8
        }
        let packed = try SmallModel().backbone(form: form)
        return (packed, try unpacked(packed), try SmallModel().tokens())
    }
}

/// The values of another model's parameters, unpacked.
private struct UnpackedWeights: WeightSource {
    let tensors: [String: Tensor]

    init(_ backbone: any Backbone) throws {
        var tensors: [String: Tensor] = [:]
        for parameter in backbone.parameters
        where !(backbone.configuration.tieWordEmbeddings && parameter === backbone.head.weight) {
            tensors[parameter.path] = try parameter.values(dtype: .float32)
        }
        self.tensors = tensors
    }

    var path: String { "unpacked" }
    var names: [String] { tensors.keys.sorted() }
    func shape(of name: String) -> [Int]? { tensors[name]?.shape }
    func tensor(_ name: String, dtype: DType) throws -> Tensor { try #require(tensors[name]).to(dtype: dtype) }
}

/// The same model in plain numbers.
func unpacked(_ backbone: any Backbone) throws -> Llama {
    try Llama(backbone.configuration, weights: LlamaWeights(UnpackedWeights(backbone), dtype: backbone.dtype))
}

/// A tiny model over blocks of four bits, made once a test run.
actor PackedModels {
    static let shared = PackedModels()

    private var task: Task<String, any Error>?

    /// The path of a GGUF file of `Q4_0` matrices.
    func path() async throws -> String {
        if let task { return try await task.value }
        let task = Task {
            let sizes: JSON = [
                "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
                "num_attention_heads": 4, "num_key_value_heads": 2,
            ]
            let folder = try await TinyModels.shared.folder("llama", seed: 71, options: ["overrides": sizes])
            let file = try TemporaryFolder.lasting("four-bits")("model.gguf")
            _ = try await Oracle.shared.call(
                "backbones.make_gguf", ["folder": JSON(folder), "path": JSON(file), "quantisation": "Q4_0"])
            return file
        }
        self.task = task
        return try await task.value
    }
}
