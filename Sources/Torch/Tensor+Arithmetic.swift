// Element-wise operators, products and reductions. All broadcast as in NumPy and record gradients.
extension Tensor {
    /// The sum of two tensors.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public static func + (left: Tensor, right: Tensor) throws -> Tensor {
        try callTensor("aten::add.Tensor", left, right)
    }

    /// The sum of a tensor and a number.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func + (left: Tensor, right: some OperatorNumber) throws -> Tensor {
        try callTensor("aten::add.Scalar", left, right)
    }

    /// The difference of two tensors.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public static func - (left: Tensor, right: Tensor) throws -> Tensor {
        try callTensor("aten::sub.Tensor", left, right)
    }

    /// The difference of a tensor and a number.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func - (left: Tensor, right: some OperatorNumber) throws -> Tensor {
        try callTensor("aten::sub.Scalar", left, right)
    }

    /// The element-wise product of two tensors.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public static func * (left: Tensor, right: Tensor) throws -> Tensor {
        try callTensor("aten::mul.Tensor", left, right)
    }

    /// A tensor times a number.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func * (left: Tensor, right: some OperatorNumber) throws -> Tensor {
        try callTensor("aten::mul.Scalar", left, right)
    }

    /// A number times a tensor.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func * (left: some OperatorNumber, right: Tensor) throws -> Tensor { try right * left }

    /// The element-wise quotient of two tensors.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public static func / (left: Tensor, right: Tensor) throws -> Tensor {
        try callTensor("aten::div.Tensor", left, right)
    }

    /// A tensor divided by a number.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func / (left: Tensor, right: some OperatorNumber) throws -> Tensor {
        try callTensor("aten::div.Scalar", left, right)
    }

    /// The tensor with the opposite sign.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func negated() throws -> Tensor { try callTensor("aten::neg", self) }

    /// The absolute values.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func absolute() throws -> Tensor { try callTensor("aten::abs", self) }

    /// `e` to the power of each element.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func exp() throws -> Tensor { try callTensor("aten::exp", self) }

    /// The natural logarithms.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func log() throws -> Tensor { try callTensor("aten::log", self) }

    /// The square roots.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func squareRoot() throws -> Tensor { try callTensor("aten::sqrt", self) }

    /// One over the square roots.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func reciprocalSquareRoot() throws -> Tensor { try callTensor("aten::rsqrt", self) }

    /// The squares.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func squared() throws -> Tensor { try self * self }

    /// The cosines of angles in radians.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func cos() throws -> Tensor { try callTensor("aten::cos", self) }

    /// The sines of angles in radians.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func sin() throws -> Tensor { try callTensor("aten::sin", self) }

    /// The matrix product over the last two dimensions, earlier ones broadcast.
    ///
    /// - Throws: `TorchError` when the inner sizes differ.
    public func matmul(_ other: Tensor) throws -> Tensor { try callTensor("aten::matmul", self, other) }

    /// The sum of all elements, or over the given dimensions.
    ///
    /// - Throws: `TorchError` when there is no such dimension.
    public func sum(_ dimensions: [Int]? = nil, keepingDimensions keep: Bool = false, dtype: DType? = nil) throws
        -> Tensor
    {
        guard let dimensions else { return try callTensor("aten::sum", self, dtype) }
        return try callTensor("aten::sum.dim_IntList", self, dimensions, keep, dtype)
    }

    /// The mean of all elements, or over the given dimensions.
    ///
    /// - Throws: `TorchError` when there is no such dimension or the elements are integers.
    public func mean(_ dimensions: [Int]? = nil, keepingDimensions keep: Bool = false) throws -> Tensor {
        guard let dimensions else { return try callTensor("aten::mean", self) }
        return try callTensor("aten::mean.dim", self, dimensions, keep)
    }

    /// The largest element.
    ///
    /// - Throws: `TorchError` when there are no elements.
    public func maximum() throws -> Tensor { try callTensor("aten::max", self) }

    /// The positions of the largest elements along a dimension.
    ///
    /// - Throws: `TorchError` when there is no such dimension.
    public func argmax(_ dimension: Int) throws -> Tensor { try callTensor("aten::argmax", self, dimension) }

    /// The Euclidean norm of all elements, or along dimensions.
    ///
    /// - Throws: `TorchError` when there is no such dimension.
    public func norm(_ dimensions: [Int]? = nil, keepingDimensions keep: Bool = false) throws -> Tensor {
        try callTensor("aten::linalg_vector_norm", self, 2, dimensions, keep)
    }

    /// Whether every element is a finite number.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func isAllFinite() throws -> Bool { try callTensor("aten::all", callTensor("aten::isfinite", self)).item() }

    /// Element-wise equality.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public func elementsEqual(_ other: Tensor) throws -> Tensor { try callTensor("aten::eq.Tensor", self, other) }

    /// Whether shape, dtype and every element agree; NaN differs from itself.
    ///
    /// - Throws: `TorchError` when the tensors lie on two devices.
    public func isIdentical(to other: Tensor) throws -> Bool {
        guard dtype == other.dtype, shape == other.shape else { return false }
        if case .bool(let equal)? = try call("aten::equal", self, other).first { return equal }
        return false
    }
}

// MARK: - In place

extension Tensor {
    /// Writes another tensor's elements, converted and broadcast, into this one.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public func copy(from other: Tensor) throws { try call("aten::copy_", self, other) }

    /// Multiplies in place.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func multiply(by factor: Double) throws { try call("aten::mul_.Scalar", self, factor) }

    /// Adds `factor * other` in place.
    ///
    /// - Throws: `TorchError` when the shapes do not broadcast.
    public func add(_ other: Tensor, times factor: Double = 1) throws {
        try call("aten::add_.Tensor", self, other, factor)
    }

    /// Sets every element to `value`.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func fill(_ value: Double) throws { try call("aten::fill_.Scalar", self, value) }
}
