import Formats
import Torch

/// What training has added to an adapter's tensors, as one vector: their values less those that they start from.
///
/// The tensors follow one another in the order of their names' bytes, each row-major. ComPEFT (arXiv 2311.13171)
/// compresses this vector to signs and one scale.
public struct TaskVector {
    /// The names and shapes of the tensors, in order.
    public let shapes: KeyedList<[Int]>
    /// fp32 `[values]`.
    public let values: Tensor

    /// Puts the tensors' changes one behind the other.
    ///
    /// - Parameters:
    ///   - tensors: The trained values by name.
    ///   - starts: What to take off, by name; a tensor without one starts from zero.
    /// - Throws: `PEFTError` when there is nothing, a start has another shape, or a value is no finite number.
    public init(_ tensors: KeyedList<Tensor>, starts: KeyedList<Tensor> = [:]) throws {
        let sorted = tensors.entries.sorted { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) }
        var (shapes, parts) = (KeyedList<[Int]>(), [Tensor]())
        for (name, tensor) in sorted {
            var change = try tensor.detached().to(dtype: .float32, device: .cpu)
            if let start = starts[name] {
                guard start.shape == tensor.shape else {
                    throw PEFTError("\(name): the start has shape \(start.shape), the tensor has \(tensor.shape)")
                }
                change = try change - start.detached().to(dtype: .float32, device: .cpu)
            }
            guard try change.isAllFinite() else {
                throw PEFTError("\(name): a value is no finite number; the training diverged")
            }
            shapes.appendIfNew(key: name, value: tensor.shape)
            parts.append(try change.reshaped([-1]))
        }
        guard !parts.isEmpty else { throw PEFTError("there is no tensor to make a task vector of") }
        self.shapes = shapes
        values = try Tensor.concatenate(parts)
    }

    /// The tensors that the vector, or one of its length, adds up to.
    ///
    /// - Parameters:
    ///   - vector: `[values]`.
    ///   - starts: What it is added to, by name; zeros where there is none.
    /// - Throws: `TorchError` when the length differs.
    public func tensors(_ vector: Tensor, starts: KeyedList<Tensor> = [:]) throws -> KeyedList<Tensor> {
        var (result, offset) = (KeyedList<Tensor>(), 0)
        for (name, shape) in shapes {
            let count = shape.reduce(1, *)
            let part = try vector.narrowed(0, start: offset, length: count).reshaped(shape)
            result.appendIfNew(key: name, value: try starts[name].map { try part + $0 } ?? part)
            offset += count
        }
        return result
    }

    /// The deviation of all values, unbiased.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func deviation() throws -> Double {
        try callTensor("aten::std", values.to(dtype: .float64), true).item()
    }

    /// Which entries a density keeps: those at least as large as the `(d - floor(k d))`-th smallest of all `d`, which
    /// are `floor(k d) + 1` of distinct ones; all at a density of 1.
    ///
    /// - Returns: bool `[values]`.
    /// - Throws: `PEFTError` for a density outside `0 < k <= 1`.
    func kept(density: Double) throws -> Tensor {
        try requireDensity(density)
        let (sizes, count) = (try values.absolute(), values.count)
        let rank = count - Int(density * Double(count))
        let threshold = rank > 0 ? try callTensors("aten::kthvalue", sizes, rank)[0] : try Tensor(Float(0))
        return try callTensor("aten::ge.Tensor", sizes, threshold)
    }

    /// The values that a density keeps, the others zero: no signs, no scale.
    ///
    /// - Throws: As ``ternary(density:alpha:)``.
    public func pruned(density: Double) throws -> Tensor { try values * kept(density: density) }

    /// The signs of the entries that a density keeps, with one scale: `alpha` times the deviation of all values.
    ///
    /// - Throws: `PEFTError` for a density or alpha out of range, or when all values are equal; `TorchError` when
    ///   memory is short.
    public func ternary(density: Double, alpha: Double = 1) throws -> TernaryVector {
        try requirePositive(alpha, "alpha")
        return try ternary(density: density, scale: alpha * deviation())
    }

    /// As ``ternary(density:alpha:)`` with the mean size of the kept values as scale: sparse ternary compression,
    /// arXiv 1903.02891.
    ///
    /// - Throws: As ``ternary(density:alpha:)``.
    public func meanTernary(density: Double) throws -> TernaryVector {
        let mask = try kept(density: density).to(dtype: .float64)
        return try ternary(
            density: density,
            scale: (values.to(dtype: .float64).absolute() * mask).sum().item(as: Double.self)
                / mask.sum().item(as: Double.self))
    }

    private func ternary(density: Double, scale: Double) throws -> TernaryVector {
        guard scale > 0, Float(scale).isNormal else {
            throw PEFTError("the adapter's values have the deviation \(scale); there is nothing to compress")
        }
        let mask = try kept(density: density)
        let signs: [Int] = try (callTensor("aten::sign", values) * mask).to(dtype: .int64).values()
        var vector = TernaryVector(count: signs.count, scale: Float(scale))
        for (index, sign) in signs.enumerated() where sign != 0 { vector.keep(index, isNegative: sign < 0) }
        return vector
    }
}

extension TernaryVector {
    /// The entries as numbers, fp32 `[count]`.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func dense() throws -> Tensor {
        let tensor = try Tensor.empty([count])
        try tensor.withUnsafeMutableBytes { write(0..<count, to: $0.bindMemory(to: Float.self)) }
        return tensor
    }
}

/// Refuses what is no share of entries to keep.
func requireDensity(_ density: Double) throws {
    guard density > 0, density <= 1 else {
        throw PEFTError("density: expected a number above 0 and at most 1, found \(density)")
    }
}
