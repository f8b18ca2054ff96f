import Backbones
import Torch

/// How LoRA's factors start.
///
/// All but `random` leave the model's output as it is.
public enum LoRAInitialization: String, FlagOrName {
    /// A uniform within `1 / sqrt(in)`, B zero.
    case standard = "true"
    /// A normal with deviation `1 / r`, B zero.
    case gaussian
    /// Orthogonal rows in A and columns in B whose product is zero; `r` even.
    case orthogonal
    /// The largest singular directions of the weight, taken off the base.
    case pissa
    /// The first columns of the weight's QR factors, taken off the base.
    case olora
    /// A as in `standard`, B likewise: the output changes at once. For tests.
    case random = "false"

    var takesFactorsOffTheBase: Bool { self == .pissa || self == .olora }

    /// The first factors of a layer: `a [rank, in]`, `b [out, rank]`.
    func factors(of layer: Linear, rank: Int, scale: Double, seed: Seed) throws -> (a: Tensor, b: Tensor) {
        let (inputs, outputs) = (layer.inFeatures, layer.outFeatures)
        let name = "\(layer.path).lora_A"
        func evenA() throws -> Tensor {
            try seed.uniform(name, [rank, inputs], within: 1 / Double(inputs).squareRoot())
        }
        switch self {
        case .standard: return (try evenA(), try Tensor.zeros([outputs, rank]))
        case .gaussian:
            let a = try seed.normal(name, [rank, inputs], deviation: 1 / Double(rank))
            return (a, try Tensor.zeros([outputs, rank]))
        case .random:
            let bound = 1 / Double(rank).squareRoot()
            return (try evenA(), try seed.uniform("\(layer.path).lora_B", [outputs, rank], within: bound))
        case .orthogonal:
            var stream = seed.stream(name)
            return try orthogonal(rank: rank, layer: layer, &stream)
        case .pissa: return try principal(layer, rank: rank, scale: scale)
        case .olora: return try triangular(layer, rank: rank)
        }
    }

    private func orthogonal(rank: Int, layer: Linear, _ stream: inout RandomStream) throws -> (a: Tensor, b: Tensor) {
        guard rank % 2 == 0 else {
            throw PEFTError("init_lora_weights orthogonal needs an even rank; \(layer.path) has \(rank)")
        }
        let q = try callTensors("aten::linalg_qr", Tensor.normal([rank, rank], from: &stream), "reduced")[0]
        let odd = try q.indexed(.slice(1, nil, step: 2))
        let even = try q.indexed(.slice(0, nil, step: 2))
        let left = try Tensor.normal([layer.inFeatures, rank / 2], from: &stream)
        let right = try Tensor.normal([layer.outFeatures, rank / 2], from: &stream)
        return (try left.matmul(odd).transposed(0, 1) / 10, try right.matmul(even) / 10)
    }

    /// `W = U S V^T`; `B = U_r sqrt(S_r / s)`, `A = sqrt(S_r / s) V_r^T`.
    private func principal(_ layer: Linear, rank: Int, scale: Double) throws -> (a: Tensor, b: Tensor) {
        try requireRank(rank, fits: layer)
        let parts = try callTensors("aten::linalg_svd", layer.weight.values(dtype: .float32), false)
        let roots = try (parts[1].narrowed(0, start: 0, length: rank) / scale).squareRoot()
        return (
            try roots.unsqueezed(1) * parts[2].narrowed(0, start: 0, length: rank),
            try parts[0].narrowed(1, start: 0, length: rank) * roots
        )
    }

    /// `W = Q R`; `B` the first columns of `Q`, `A` the first rows of `R`.
    private func triangular(_ layer: Linear, rank: Int) throws -> (a: Tensor, b: Tensor) {
        try requireRank(rank, fits: layer)
        let parts = try callTensors("aten::linalg_qr", layer.weight.values(dtype: .float32), "reduced")
        return (
            try parts[1].narrowed(0, start: 0, length: rank).cloned(),
            try parts[0].narrowed(1, start: 0, length: rank).cloned()
        )
    }

    private func requireRank(_ rank: Int, fits layer: Linear) throws {
        let most = min(layer.inFeatures, layer.outFeatures)
        guard rank <= most else { throw PEFTError("\(layer.path): rank \(rank) exceeds the weight's rank of \(most)") }
    }
}
