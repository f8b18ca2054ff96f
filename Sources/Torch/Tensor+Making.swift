// Tensors from nothing.
extension Tensor {
    /// A tensor whose elements are not set.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func empty(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) throws -> Tensor {
        try callTensor("aten::empty.memory_format", shape, dtype, Argument.none, device)
    }

    /// A tensor of zeros.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func zeros(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) throws -> Tensor {
        try callTensor("aten::zeros", shape, dtype, Argument.none, device)
    }

    /// A tensor of ones.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func ones(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) throws -> Tensor {
        try callTensor("aten::ones", shape, dtype, Argument.none, device)
    }

    /// A tensor with every element equal to `value`.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func full(
        _ shape: [Int], _ value: Double, dtype: DType = .float32, device: Device = .cpu
    ) throws -> Tensor {
        try callTensor("aten::full", shape, value, dtype, Argument.none, device)
    }

    /// The integers from `start` below `end`, `step` apart.
    ///
    /// - Throws: `TorchError` when the step leads away from the end.
    public static func arange(
        _ start: Int, _ end: Int, step: Int = 1, dtype: DType = .int64, device: Device = .cpu
    ) throws -> Tensor {
        try callTensor("aten::arange.start_step", start, end, step, dtype, Argument.none, device)
    }

    /// The integers from 0 below `end`.
    ///
    /// - Throws: `TorchError` when `end` is negative.
    public static func arange(_ end: Int, dtype: DType = .int64, device: Device = .cpu) throws -> Tensor {
        try arange(0, end, dtype: dtype, device: device)
    }

    /// The identity matrix.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func eye(_ size: Int, dtype: DType = .float32, device: Device = .cpu) throws -> Tensor {
        try callTensor("aten::eye", size, dtype, Argument.none, device)
    }

    /// Zeros of this tensor's shape, dtype and device.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func zerosLike() throws -> Tensor { try callTensor("aten::zeros_like", self) }

    /// Tensors put one behind the other along an existing dimension.
    ///
    /// - Throws: `TorchError` when other sizes differ.
    public static func concatenate(_ tensors: [Tensor], dimension: Int = 0) throws -> Tensor {
        try callTensor("aten::cat", tensors, dimension)
    }

    /// Tensors of one shape put side by side along a new dimension.
    ///
    /// - Throws: `TorchError` when shapes differ.
    public static func stack(_ tensors: [Tensor], dimension: Int = 0) throws -> Tensor {
        try callTensor("aten::stack", tensors, dimension)
    }
}
