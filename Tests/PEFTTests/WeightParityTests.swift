import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// A weight map whose definition the oracle has, with settings.
private struct WeightMap: Sendable {
    let method: String
    var settings: KeyedList<JSON> = [:]

    static let all = [
        WeightMap(method: "melora", settings: ["r": 3, "l_num": 2, "lora_alpha": 5]),
        WeightMap(method: "melora", settings: ["r": 1, "l_num": 6]),
        WeightMap(method: "miss", settings: ["r": 6]),
        WeightMap(method: "miss", settings: ["r": 7]),
        WeightMap(method: "miss", settings: ["r": 5, "init_weights": "mini", "mini_r": 6]),
        WeightMap(method: "bone", settings: ["r": 6]),
        WeightMap(method: "bone", settings: ["r": 2]),
        WeightMap(method: "loretta-rep", settings: ["r": 3, "tensor_rank": 2, "lora_alpha": 7]),
        WeightMap(method: "loretta-rep", settings: ["r": 4, "tensor_rank": 3]),
        WeightMap(method: "adalora", settings: ["init_r": 5, "target_r": 2, "lora_alpha": 7]),
    ]
}

/// Forward pass, update and every gradient of adapted layers against their definitions in float64.
@Suite struct WeightParityTests {
    /// Sizes that are no powers of two, no squares, with fewer key/value heads: all divisible by six.
    private static let models = [
        SmallModel(hidden: 30, heads: 3, keyValueHeads: 1, headDim: 6, layers: 1, intermediate: 42),
        SmallModel(hidden: 18, heads: 6, keyValueHeads: 3, headDim: 4, layers: 1, intermediate: 54),
    ]

    @Test(arguments: WeightMap.all.indices, models.indices)
    func equalsItsDefinition(index: Int, model: Int) async throws {
        let map = WeightMap.all[index]
        var settings = map.settings
        settings["target_modules"] = "all-linear"
        let backbone = try Self.models[model].backbone(seed: UInt64(index) + 3)
        let adapter = try adapter(map.method, settings, on: backbone)
        try adapter.randomise(seed: UInt64(40 + index), by: 0.5)
        let gaps = try await layerGaps(adapter, seed: UInt64(index * 10 + model))
        #expect(gaps.update < 1e-6 && gaps.forward < 1e-6 && gaps.gradients < 3e-6, "\(gaps)")
    }
}

/// The largest relative gaps between an adapter's layers and their definitions in float64.
struct LayerGaps {
    /// Of `W' - W`.
    var update = 0.0
    /// Of the layers' outputs.
    var forward = 0.0
    /// Of the gradients of inputs and trainable tensors.
    var gradients = 0.0
}

/// Runs each adapted layer by itself on rows of its own, and the oracle's definition on the same values.
func layerGaps(
    _ adapter: Adapter, seed: UInt64, oracle: String = "weights.evaluate"
) async throws -> LayerGaps {
    let folder = try TemporaryFolder.lasting("weights")
    var given = try adapter.exported().tensors
    var inputs: [String: Tensor] = [:]
    var outputs: [String: Tensor] = [:]
    for (layer, _) in adapter.updates {
        var stream = Seed(seed).stream(layer.path)
        let x = try Tensor.normal([5, layer.inFeatures], from: &stream).requiringGrad()
        let g = try Tensor.normal([5, layer.outFeatures], from: &stream)
        let y = try layer(x, Context())
        try (y * g).sum().backward()
        (inputs[layer.path], outputs[layer.path]) = (x, y)
        given["\(layer.path)/x"] = try x.detached()
        given["\(layer.path)/g"] = g
        given["\(layer.path)/weight"] = layer.weight.frozen
        given["\(layer.path)/bias"] = try layer.bias?.frozen ?? Tensor.zeros([layer.outFeatures])
    }
    try SafetensorsWriter.write(given, to: folder("given"))
    let paths = adapter.updates.map(\.linear.path)
    _ = try await Oracle.shared.call(
        oracle,
        [
            "tensors": JSON(folder("given")), "output": JSON(folder("expected")),
            "peft_type": JSON(type(of: adapter.configuration.method).peftType),
            "settings": .object(adapter.configuration.method.settings), "paths": JSON(paths.map { JSON($0) }),
        ])
    let expected = try SafetensorsFile(path: folder("expected"))
    func gap(_ found: Tensor?, _ name: String) throws -> Double {
        try relativeGap(#require(found), expected.tensor(name).tensor())
    }
    var gaps = LayerGaps()
    for (layer, _) in adapter.updates {
        let path = layer.path
        // In float64, where the difference of two weights is exact enough.
        let weight = try layer.weight.frozen.to(dtype: .float64)
        let merged = try #require(try adapter.updates.first { $0.linear === layer }).update.merged(into: weight)
        gaps.update = max(gaps.update, try gap(withoutGrad { try merged.detached() - weight }, "\(path)/update"))
        gaps.forward = max(gaps.forward, try gap(outputs[path]?.detached(), "\(path)/y"))
        gaps.gradients = max(gaps.gradients, try gap(inputs[path]?.grad, "\(path)/x"))
    }
    for trainable in adapter.trainables {
        // Norms lie outside the layers.
        guard expected.tensors[trainable.name] != nil || trainable.tensor.grad != nil else { continue }
        gaps.gradients = max(gaps.gradients, try gap(trainable.tensor.grad, trainable.name))
    }
    return gaps
}
