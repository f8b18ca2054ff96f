import CTorch

/// Writes a run of rows of a packed matrix as `float32` or `bfloat16`; several threads call it at once.
///
/// It returns whether it could.
public typealias RowWriter =
    @Sendable (
        _ rows: Range<Int>, _ dtype: DType, _ memory: UnsafeMutableRawPointer
    ) -> Bool

extension Tensor {
    /// A stand-in for a frozen matrix that is not held as plain numbers.
    ///
    /// ``frozenLinears(_:_:)`` unpacks it for the one product that it is part of, forward and again backward, so that
    /// never more than one matrix is there as plain numbers. To every other operator its elements are NaN.
    ///
    /// - Parameters:
    ///   - rows: The size of the output.
    ///   - columns: The size of the input.
    ///   - dtype: The dtype of products, `float32` or `bfloat16`.
    ///   - write: Writes some of the rows; it is kept for as long as the tensor.
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func packed(rows: Int, columns: Int, dtype: DType, write: @escaping RowWriter) throws -> Tensor {
        let held = Unmanaged.passRetained(HeldWriter(write))
        let api: CTorchAPI
        do {
            api = try Engine.api()
        } catch {
            held.release()
            throw error
        }
        // On failure the shim has already released the writer.
        guard
            let handle = api.packedMatrix(
                Int64(rows), Int64(columns), dtype.rawValue, runWriter,
                { Unmanaged<HeldWriter>.fromOpaque($0).release() }, held.toOpaque())
        else { throw Engine.lastError() }
        return Tensor(owning: handle)
    }

    /// The values behind a stand-in, as a tensor of their own; any other tensor is converted.
    ///
    /// - Parameter dtype: `float32` or `bfloat16`; others by way of `float32`.
    /// - Throws: `TorchError` when memory is short.
    public func unpacked(dtype: DType) throws -> Tensor {
        let direct = dtype == .bfloat16 ? dtype : .float32
        return try callTensor("graft::unpacked", self, direct).to(dtype: dtype)
    }
}

private final class HeldWriter: Sendable {
    let write: RowWriter

    init(_ write: @escaping RowWriter) {
        self.write = write
    }
}

private let runWriter: CTUnpack = { context, first, last, dtype, out in
    guard let dtype = DType(rawValue: dtype), first <= last else { return -1 }
    let held = Unmanaged<HeldWriter>.fromOpaque(context).takeUnretainedValue()
    return held.write(Int(first)..<Int(last), dtype, out) ? 0 : -1
}
