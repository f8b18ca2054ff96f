import CTorch

/// An n-dimensional array of numbers on a device, with LibTorch's semantics: views share memory, and a tensor that
/// requires a gradient records the operators applied to it.
///
/// A tensor is a reference. References may cross threads; changing one tensor from two threads at once is an error
/// of the program, as it is with any array.
public final class Tensor: @unchecked Sendable {
    /// The owned reference on the C++ side; keep the tensor alive while a call uses it.
    let handle: CTTensor

    init(owning handle: CTTensor) {
        self.handle = handle
    }

    deinit {
        Engine.proven?.release(handle)
    }

    /// Makes a tensor of the given values in row-major order.
    ///
    /// - Parameters:
    ///   - values: The elements; as many as `shape` says.
    ///   - shape: The sizes; by default one dimension of all values.
    /// - Throws: `TorchError` when the counts differ or memory is short.
    public convenience init<Scalar: TensorScalar>(_ values: [Scalar], shape: [Int]? = nil) throws {
        let shape = shape ?? [values.count]
        guard Self.elementCount(shape) == values.count else {
            throw TorchError("\(values.count) values do not fill a tensor of shape \(shape)")
        }
        let empty = try Tensor.empty(shape, dtype: Scalar.dtype)
        try empty.withUnsafeMutableBytes { memory in
            values.withUnsafeBytes { memory.copyMemory(from: $0) }
        }
        self.init(owning: try Engine.api().retain(empty.handle))
    }

    /// Makes a tensor of one value with no dimensions.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public convenience init<Scalar: TensorScalar>(_ value: Scalar) throws {
        try self.init([value], shape: [])
    }

    /// Makes a tensor over memory that `owner` keeps, such as a mapped file, without a copy.
    ///
    /// - Parameters:
    ///   - memory: The elements in row-major order, aligned for the dtype; writable unless nothing writes the tensor.
    ///   - shape: The sizes.
    ///   - dtype: The type of the elements.
    ///   - owner: What keeps the memory alive; released with the last tensor that views it.
    /// - Throws: `TorchError` when the memory is smaller than the shape asks for, or misaligned.
    public convenience init(
        viewing memory: UnsafeMutableRawBufferPointer, shape: [Int], dtype: DType, owner: AnyObject
    ) throws {
        guard let count = Self.elementCount(shape), count <= memory.count / dtype.byteCount else {
            throw TorchError("\(memory.count) bytes do not hold a \(dtype) tensor of shape \(shape)")
        }
        guard count > 0, let base = memory.baseAddress else {
            let empty = try Tensor.empty(shape, dtype: dtype)
            self.init(owning: try Engine.api().retain(empty.handle))
            return
        }
        guard Int(bitPattern: base) % min(dtype.byteCount, 8) == 0 else {
            throw TorchError("the memory of a \(dtype) tensor of shape \(shape) is misaligned")
        }
        let sizes = shape.map(Int64.init)
        let held = Unmanaged.passRetained(owner)
        guard
            let handle = try Engine.api().fromBlob(
                base, sizes, Int32(sizes.count), dtype.rawValue,
                { Unmanaged<AnyObject>.fromOpaque($0).release() }, held.toOpaque())
        else {
            held.release()
            throw Engine.lastError()
        }
        self.init(owning: handle)
    }

    /// The product of the sizes, or nil where one is negative or no machine holds as many.
    private static func elementCount(_ shape: [Int]) -> Int? {
        var count = 1
        for size in shape {
            let (product, overflow) = count.multipliedReportingOverflow(by: size)
            guard size >= 0, !overflow else { return nil }
            count = product
        }
        return count
    }
}

// MARK: - Facts about a tensor

extension Tensor {
    private var api: CTorchAPI {
        // A tensor can only have been made by a loaded engine.
        Engine.proven.unsafelyUnwrapped
    }

    /// The number of dimensions.
    public var rank: Int { Int(api.dim(handle)) }

    /// The sizes, outermost first.
    public var shape: [Int] { integers(api.sizes) }

    /// The steps between neighbours in each dimension, in elements.
    public var strides: [Int] { integers(api.strides) }

    /// The number of elements.
    public var count: Int { shape.reduce(1, *) }

    /// The type of the elements.
    ///
    /// A dtype outside ``DType`` (a quantised one) reads as `uint8`; Graft makes no such tensor.
    public var dtype: DType { DType(rawValue: api.dtype(handle)) ?? .uint8 }

    /// Where the tensor lives.
    public var device: Device { Device(code: api.device(handle)) }

    /// Whether the elements lie in row-major order without gaps.
    public var isContiguous: Bool { api.isContiguous(handle) }

    /// The size of one dimension; negative indices count from the last.
    ///
    /// - Returns: 1 where there is no such dimension, as broadcasting has it.
    public func size(_ dimension: Int) -> Int {
        let shape = shape
        let index = dimension < 0 ? dimension + shape.count : dimension
        return shape.indices.contains(index) ? shape[index] : 1
    }

    /// Whether two tensors view the same memory.
    public func sharesStorage(with other: Tensor) -> Bool {
        withExtendedLifetime(other) { api.sharesStorage(handle, other.handle) }
    }

    private func integers(_ fill: (CTTensor, UnsafeMutablePointer<Int64>) -> Void) -> [Int] {
        let rank = rank
        return withUnsafeTemporaryAllocation(of: Int64.self, capacity: max(rank, 1)) { buffer in
            guard let base = buffer.baseAddress else { return [] }
            fill(handle, base)
            return (0..<rank).map { Int(buffer[$0]) }
        }
    }
}

extension Tensor: CustomStringConvertible {
    /// Dtype, shape and device, such as `float32[2, 3]@cuda:0`.
    public var description: String {
        "\(dtype)\(shape)" + (device == .cpu ? "" : "@\(device)")
    }
}

// MARK: - Reading and writing elements

extension Tensor {
    /// Calls `body` with the memory of a contiguous tensor on the CPU.
    ///
    /// - Throws: `TorchError` when the tensor is elsewhere or has gaps, and what `body` throws.
    public func withUnsafeMutableBytes<Result>(
        _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) throws -> Result {
        guard device == .cpu else { throw TorchError("the memory of \(self) is not on the CPU: copy it there first") }
        guard isContiguous else { throw TorchError("the memory of \(self) has gaps: make it contiguous first") }
        let bytes = count * dtype.byteCount
        return try withExtendedLifetime(self) {
            guard bytes > 0 else { return try body(UnsafeMutableRawBufferPointer(start: nil, count: 0)) }
            guard let data = api.data(handle) else { throw Engine.lastError() }
            return try body(UnsafeMutableRawBufferPointer(start: data, count: bytes))
        }
    }

    /// The elements in row-major order, converted to `Scalar`'s dtype.
    ///
    /// - Throws: `TorchError` when the conversion or the copy to the CPU fails.
    public func values<Scalar: TensorScalar>(as type: Scalar.Type = Scalar.self) throws -> [Scalar] {
        let plain = try detached().to(dtype: Scalar.dtype, device: .cpu).contiguous()
        return try plain.withUnsafeMutableBytes { Array($0.bindMemory(to: Scalar.self)) }
    }

    /// The value of a tensor of one element.
    ///
    /// - Throws: `TorchError` when there is not exactly one element.
    public func item<Scalar: TensorScalar>(as type: Scalar.Type = Scalar.self) throws -> Scalar {
        let values: [Scalar] = try values()
        guard let value = values.first, values.count == 1 else {
            throw TorchError("\(self) has \(values.count) elements; item() needs exactly one")
        }
        return value
    }
}
