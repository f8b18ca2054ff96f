import Backbones
import Formats
import TestSupport
import Torch

/// What transformers answers to token ids, `[batch, time, vocabulary]` in float32.
func referenceLogits(_ folder: String, _ ids: [[Int]], dtype: String = "float32") async throws -> Tensor {
    let output = try TemporaryFolder.lasting("logits")("logits.safetensors")
    _ = try await Oracle.shared.call(
        "models.logits",
        ["folder": JSON(folder), "ids": JSON(tokens: ids), "output": JSON(output), "dtype": JSON(dtype)])
    return try SafetensorsFile(path: output).tensor("logits").tensor()
}

/// The model in a folder or file, in memory.
func load(_ path: String, dtype: DType = .float32) throws -> any Backbone {
    try Checkpoint(path).backbone(dtype: dtype)
}

/// Token ids as the models take them, `[rows, time]`.
func tensor(_ ids: [[Int]]) throws -> Tensor {
    try Tensor(ids.flatMap { $0 }, shape: [ids.count, ids.first?.count ?? 0])
}

/// The largest difference between elements, in float64.
func difference(_ a: Tensor, _ b: Tensor) throws -> Double {
    guard a.shape == b.shape else { return .infinity }
    let gap = try (a.to(dtype: .float64) - b.to(dtype: .float64)).absolute()
    return try gap.isAllFinite() ? gap.maximum().item() : .infinity
}

/// The root of the mean squared difference, in float64.
func rootMeanSquare(_ a: Tensor, _ b: Tensor) throws -> Double {
    try (a.to(dtype: .float64) - b.to(dtype: .float64)).squared().mean().squareRoot().item()
}

/// The sentence of the error that `body` throws, or nil when it throws none.
func message(_ body: () throws -> Void) -> String? {
    do {
        try body()
        return nil
    } catch {
        return "\(error)"
    }
}
