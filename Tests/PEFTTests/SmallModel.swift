import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// A Llama of random weights made in memory; the sizes can be changed.
struct SmallModel {
    var hidden = 32
    var heads = 4
    var keyValueHeads = 2
    var headDim = 8
    var layers = 2
    var intermediate = 40
    var vocabulary = 61
    /// Whether every weight is zero and takes no memory: for counting the values of adapters of large models.
    var isHollow = false

    /// RoBERTa-base's attention, in which papers count.
    static let robertaBase = SmallModel(
        hidden: 768, heads: 12, keyValueHeads: 12, headDim: 64, layers: 12, intermediate: 4, isHollow: true)
    /// Llama-2-7B's.
    static let llama2 = SmallModel(
        hidden: 4096, heads: 32, keyValueHeads: 32, headDim: 128, layers: 32, intermediate: 4, isHollow: true)
    /// As many key/value heads as query heads.
    static let multiHead = SmallModel(keyValueHeads: 4)
    /// Heads that together are wider than the stream.
    static let wideHeads = SmallModel(headDim: 12)

    /// The model; the same seed gives the same weights.
    func backbone(seed: UInt64 = 1, dtype: DType = .float32, form: WeightForm = .plain) throws -> Llama {
        let configuration = try LlamaConfiguration(
            [
                "model_type": "llama", "vocab_size": JSON(vocabulary), "hidden_size": JSON(hidden),
                "intermediate_size": JSON(intermediate), "num_hidden_layers": JSON(layers),
                "num_attention_heads": JSON(heads), "num_key_value_heads": JSON(keyValueHeads),
                "head_dim": JSON(headDim), "tie_word_embeddings": false, "attention_bias": true,
            ], file: "config.json")
        let source = RandomWeights(shapes: shapes, seed: isHollow ? nil : Seed(seed))
        return try Llama(configuration, weights: LlamaWeights(source, dtype: dtype, form: form))
    }

    /// Random token ids, `[rows, length]`.
    func tokens(rows: Int = 2, length: Int = 9, seed: UInt64 = 1) throws -> Tensor {
        var generator = SeededGenerator(seed: seed)
        let ids = generator.tokens(rows: rows, length: length, vocabulary: vocabulary)
        return try Tensor(ids.flatMap { $0 }, shape: [rows, length])
    }

    private var shapes: [String: [Int]] {
        var shapes = [
            "model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden],
            "model.norm.weight": [hidden],
        ]
        let (queries, keys) = (heads * headDim, keyValueHeads * headDim)
        for layer in 0..<layers {
            let path = "model.layers.\(layer)."
            for norm in ["input_layernorm", "post_attention_layernorm"] { shapes["\(path)\(norm).weight"] = [hidden] }
            for (name, out, inputs) in [
                ("q_proj", queries, hidden), ("k_proj", keys, hidden), ("v_proj", keys, hidden),
                ("o_proj", hidden, queries),
            ] {
                shapes["\(path)self_attn.\(name).weight"] = [out, inputs]
                shapes["\(path)self_attn.\(name).bias"] = [out]
            }
            for name in ["gate_proj", "up_proj"] { shapes["\(path)mlp.\(name).weight"] = [intermediate, hidden] }
            shapes["\(path)mlp.down_proj.weight"] = [hidden, intermediate]
        }
        return shapes
    }
}

/// Normal weights of a size at which every part of the model matters, or zeros without memory.
private struct RandomWeights: WeightSource {
    let shapes: [String: [Int]]
    let seed: Seed?

    var path: String { "random" }
    var names: [String] { shapes.keys.sorted() }
    func shape(of name: String) -> [Int]? { shapes[name] }

    func tensor(_ name: String, dtype: DType) throws -> Tensor {
        let shape = try #require(shapes[name])
        guard let seed else { return try Tensor.zeros([1], dtype: dtype).expanded(shape) }
        var stream = seed.stream(name)
        let isMatrix = shape.count > 1
        let deviation = isMatrix && !name.contains("embed") ? 1 / Double(shape[1]).squareRoot() : 1
        let isNorm = name.contains("norm")
        return try Tensor.normal(
            shape, mean: isNorm ? 1 : 0, standardDeviation: isMatrix ? deviation : 0.2, from: &stream, dtype: dtype)
    }
}

extension Adapter {
    /// Moves every trainable tensor by normal noise, so that no factor is zero.
    func randomise(seed: UInt64, by deviation: Double = 0.3) throws {
        try withoutGrad {
            for trainable in trainables {
                var stream = Seed(seed).stream(trainable.name)
                try trainable.tensor.add(
                    Tensor.normal(trainable.tensor.shape, standardDeviation: deviation, from: &stream))
            }
        }
    }

    /// The trainable tensor whose name ends so.
    func tensor(_ suffix: String) throws -> Tensor {
        try #require(trainables.first { $0.name.hasSuffix(suffix) }?.tensor, "no tensor ends in \(suffix)")
    }

    /// One step of plain gradient descent, with the factors of the learning rate.
    func descend(_ learningRate: Double) throws {
        try withoutGrad {
            for trainable in trainables {
                guard let gradient = trainable.tensor.grad else { continue }
                try trainable.tensor.add(gradient, times: -learningRate * trainable.learningRateFactor)
            }
        }
        try clearGradients()
    }

    /// Forgets the gradients.
    func clearGradients() throws {
        for trainable in trainables { try trainable.tensor.setGrad(nil) }
    }

    /// The adapted layers with their updates in factored form.
    func lowRankUpdates() throws -> [(linear: Linear, update: any LowRankUpdate)] {
        try updates.map { ($0.linear, try #require($0.update as? any LowRankUpdate)) }
    }

    /// Runs `body` with the updates in the model's weights and not in its slots.
    func whileMerged<Result>(_ body: () throws -> Result) throws -> Result {
        try mergeIntoBackbone()
        let result = try body()
        try unmerge()
        return result
    }
}

/// A registered method on a model.
func adapter(
    _ name: String, _ settings: KeyedList<JSON> = [:], on backbone: any Backbone, seed: UInt64 = 7
) throws -> Adapter {
    try Adapter(AdapterConfiguration(method: name, settings: settings), on: backbone, seed: Seed(seed))
}

/// The mean negative log-likelihood of the next tokens.
func nextTokenLoss(_ backbone: any Backbone, _ ids: Tensor) throws -> Tensor {
    let length = ids.size(1)
    let scores = try backbone.logits(ids).narrowed(1, start: 0, length: length - 1).to(dtype: .float32)
    let targets = try ids.narrowed(1, start: 1, length: length - 1).reshaped([-1])
    return try callTensor("aten::cross_entropy_loss", scores.reshaped([-1, scores.size(2)]), targets)
}

/// The largest difference between elements of two tensors over the largest element of the second, in fp64.
func relativeGap(_ found: Tensor, _ expected: Tensor) throws -> Double {
    try #require(found.shape == expected.shape)
    let (found, expected) = (try found.to(dtype: .float64), try expected.to(dtype: .float64))
    let gap = try (found - expected).absolute()
    guard try gap.isAllFinite() else { return .infinity }
    return try gap.maximum().item() / max(expected.absolute().maximum().item(), .leastNormalMagnitude)
}

/// Singular values in descending order, computed in fp64.
func singularValues(_ matrix: Tensor) throws -> [Double] {
    try callTensor("aten::linalg_svdvals", matrix.detached().to(dtype: .float64)).values()
}

/// How many singular values of a matrix matter in fp32.
func numericalRank(_ matrix: Tensor) throws -> Int {
    let values = try singularValues(matrix)
    return values.count { $0 > 1e-5 * (values.first ?? 0) }
}

/// Whether every element is zero.
func isZero(_ tensor: Tensor) throws -> Bool { try tensor.absolute().maximum().item(as: Double.self) == 0 }

/// The sentence with which `body` refuses, or nothing where it does not.
func refusal(_ body: () throws -> Void) -> String {
    do {
        try body()
        return ""
    } catch {
        return "\(error)"
    }
}
