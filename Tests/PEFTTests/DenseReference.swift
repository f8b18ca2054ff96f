import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Where an adapter changes a parameter, for the oracle's dense evaluation in fp64.
struct ParameterChange {
    /// The parameter's name in the checkpoint.
    let name: String
    /// What is trained.
    let values: Tensor
    /// The slices that the values are added to; nil: the values are the parameter.
    var indices: Tensor?
    /// The dimension of the slices.
    var axis: Int?
    /// What the values are multiplied by.
    var scale = 1.0
    /// Whether the head is the embedding, too.
    var isTied = false

    /// The changes of an adapter whose tensors are `<layer>.<values>` and `<layer>.<indices>`.
    static func slices(
        of adapter: Adapter, values: String, indices: String, scale: Double = 1, axis: (Linear) -> Int
    ) throws -> [ParameterChange] {
        try adapter.updates.map { layer, _ in
            let key = "base_model.model." + layer.path
            return ParameterChange(
                name: layer.weight.path, values: try #require(adapter.state["\(key).\(values)"]),
                indices: adapter.state["\(key).\(indices)"], axis: axis(layer), scale: scale)
        }
    }
}

/// A model with changed parameters as an independent dense evaluation in fp64 has it.
struct DenseReference {
    /// The logits of ``exampleTokens``.
    let logits: Tensor
    /// The mean next-token loss.
    let loss: Double
    private let file: SafetensorsFile

    init(model: String, _ changes: [ParameterChange]) async throws {
        let folder = try TemporaryFolder.lasting("reference")
        let how = try Self.write(changes, to: folder("changes"))
        let loss = try await Oracle.shared.call(
            "selected.evaluate",
            [
                "model_folder": JSON(model), "tensors": JSON(folder("changes")), "how": how,
                "ids": JSON(tokens: exampleTokens), "output": JSON(folder("reference")),
            ])
        self.loss = try #require(loss.double)
        file = try SafetensorsFile(path: folder("reference"))
        logits = try file.tensor("logits").tensor()
    }

    /// The gradient of the loss with respect to a change's values.
    func gradient(_ change: ParameterChange) throws -> Tensor { try file.tensor("gradient|" + change.name).tensor() }

    /// Compares logits, loss and every gradient; returns the largest errors found.
    func check(
        _ backbone: any Backbone, _ changes: [ParameterChange], tolerance: Double = 1e-5
    ) throws -> (forward: Double, gradient: Double) {
        let ids = try tokenTensor(exampleTokens)
        let forward = try relativeGap(withoutGrad { try backbone.logits(ids) }, logits)
        #expect(forward < tolerance)
        let own = try nextTokenLoss(backbone, ids)
        #expect(abs(try own.item(as: Double.self) - loss) < tolerance * loss)
        for change in changes { try change.values.setGrad(nil) }
        try own.backward()
        var largest = 0.0
        for change in changes {
            let gap = try relativeGap(try #require(change.values.grad, "\(change.name)"), gradient(change))
            #expect(gap < tolerance, "\(change.name)")
            largest = max(largest, gap)
        }
        return (forward, largest)
    }

    /// Writes `<name>|values` and `<name>|indices`; returns the places of the changes.
    static func write(_ changes: [ParameterChange], to path: String) throws -> JSON {
        var (tensors, how) = (KeyedList<Tensor>(), KeyedList<JSON>())
        for change in changes {
            tensors[change.name + "|values"] = try change.values.detached()
            tensors[change.name + "|indices"] = change.indices
            how[change.name] = [
                "axis": change.axis.map { JSON($0) } ?? .null, "scale": JSON(change.scale), "tied": JSON(change.isTied),
            ]
        }
        try SafetensorsWriter.write(tensors, to: path)
        return .object(how)
    }
}
