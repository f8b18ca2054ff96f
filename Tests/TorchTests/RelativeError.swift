import Torch

/// The norm of the difference over the norm of what is expected.
func relativeError(_ found: Tensor, _ expected: Tensor) throws -> Double {
    let (found, expected) = (try found.to(dtype: .float64), try expected.to(dtype: .float64))
    let size: Double = try expected.norm().item()
    return try (found - expected).norm().item(as: Double.self) / max(size, 1e-30)
}
