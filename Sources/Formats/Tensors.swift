import Torch

// Between stored tensors and those of the engine.

extension SafetensorsType {
    /// The engine's dtype of the same layout, or nil for those that it lacks.
    public var dtype: DType? {
        switch self {
        case .bool: .bool
        case .u8: .uint8
        case .i8: .int8
        case .f8E5M2: .float8E5M2
        case .f8E4M3: .float8E4M3FN
        case .f8E8M0: .float8E8M0FNU
        case .f8E4M3FNUZ: .float8E4M3FNUZ
        case .f8E5M2FNUZ: .float8E5M2FNUZ
        case .i16: .int16
        case .u16: .uint16
        case .f16: .float16
        case .bf16: .bfloat16
        case .i32: .int32
        case .u32: .uint32
        case .f32: .float32
        case .c64: .complex64
        case .f64: .float64
        case .i64: .int64
        case .u64: .uint64
        default: nil
        }
    }

    /// Makes the type that stores a dtype; nil where the format has none.
    public init?(_ dtype: DType) {
        guard let match = SafetensorsType.allCases.first(where: { $0.dtype == dtype }) else { return nil }
        self = match
    }
}

extension SafetensorsTensor {
    /// The tensor over the mapped file, without a copy.
    ///
    /// Writing into it does not reach the file.
    ///
    /// - Throws: `FormatError` when the engine has no such dtype; `TorchError` when the tensor cannot be made.
    public func tensor() throws -> Tensor {
        guard let dtype = type.dtype else {
            throw FormatError(
                file: bytes.file.path, place: .key(name), "tensors of type \(type.rawValue) cannot be computed with")
        }
        // The format does not align tensors; those that are not aligned for their dtype are copied.
        if bytes.offset % min(dtype.byteCount, 8) == 0 {
            return try Tensor(viewing: bytes.mutableBytes, shape: shape, dtype: dtype, owner: bytes.file)
        }
        let copy = try Tensor.empty(shape, dtype: dtype)
        try copy.withUnsafeMutableBytes { $0.copyMemory(from: bytes.bytes) }
        return copy
    }
}

extension GGUFTensor {
    /// The dequantised tensor in main memory.
    ///
    /// - Parameters:
    ///   - dtype: `float32` or `bfloat16`, written directly; others by way of `float32`.
    ///   - order: Which stored row each row is.
    /// - Throws: `FormatError` when the order does not fit; `TorchError` when memory is short.
    public func tensor(dtype: DType = .float32, order: RowOrder = .stored) throws -> Tensor {
        let dequantiser = try dequantiser(order: order)
        let result = try Tensor.empty(shape, dtype: dtype == .bfloat16 ? .bfloat16 : .float32)
        try result.withUnsafeMutableBytes { memory in
            if dtype == .bfloat16 {
                try dequantiser.write(bfloat16: memory.bindMemory(to: UInt16.self))
            } else {
                try dequantiser.write(float32: memory.bindMemory(to: Float.self))
            }
        }
        return try result.to(dtype: dtype)
    }
}

extension PackedMatrix {
    /// `x W^T` over the last dimension, `[..., columns]` to `[..., rows]`, in the input's dtype.
    ///
    /// - Throws: `FormatError` when the sizes do not go together; `TorchError` when memory is short.
    public func product(_ input: Tensor) throws -> Tensor {
        let plain = try input.to(dtype: .float32).contiguous()
        let output = try Tensor.empty(input.shape.dropLast() + [stored.rows])
        let threads = try Machine.threads()
        try plain.withUnsafeMutableBytes { x in
            try output.withUnsafeMutableBytes { y in
                try multiply(
                    UnsafeBufferPointer(x.bindMemory(to: Float.self)), into: y.bindMemory(to: Float.self),
                    threads: threads)
            }
        }
        return try output.to(dtype: input.dtype)
    }
}

extension SafetensorsInfo {
    /// How a tensor is stored.
    ///
    /// - Throws: `FormatError` when the format has no such dtype.
    public init(_ tensor: Tensor) throws {
        guard let type = SafetensorsType(tensor.dtype) else {
            throw FormatError("a \(tensor.dtype) tensor has no form in safetensors")
        }
        self.init(type: type, shape: tensor.shape)
    }
}

extension SafetensorsWriter {
    /// Writes the next tensor, wherever it lies.
    ///
    /// - Throws: `FormatError` when it is not the next or does not fit its entry; `TorchError` when it cannot be copied.
    public func write(_ name: String, _ tensor: Tensor) throws {
        try tensor.detached().to(device: .cpu).contiguous().withUnsafeMutableBytes {
            try write(name, UnsafeRawBufferPointer($0))
        }
    }

    /// Writes tensors to a file as a whole.
    ///
    /// - Throws: `FormatError` when the file cannot be written; `TorchError` when a tensor cannot be copied.
    public static func write(
        _ tensors: KeyedList<Tensor>, to path: String, metadata: KeyedList<String> = ["format": "pt"]
    ) throws {
        var infos = KeyedList<SafetensorsInfo>()
        for (name, tensor) in tensors { infos.appendIfNew(key: name, value: try SafetensorsInfo(tensor)) }
        let writer = try SafetensorsWriter(path: path, tensors: infos, metadata: metadata)
        do {
            for name in writer.order {
                if let tensor = tensors[name] { try writer.write(name, tensor) }
            }
            try writer.finish()
        } catch {
            writer.cancel()
            throw error
        }
    }
}
