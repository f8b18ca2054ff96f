import Formats
import Torch

/// One tensor of a checkpoint, by the name it has there.
///
/// The frozen tensor is never written. An adapter that trains a copy of it (`modules_to_save`, biases, selected
/// parameters) puts that copy in `replacement`; taking it away restores the model bit for bit.
public final class Parameter {
    /// The name in the checkpoint, such as `model.layers.3.self_attn.q_proj.weight`.
    public let path: String
    /// The pretrained values; of a packed parameter only the shape and the dtype, see ``values(dtype:)``.
    public let frozen: Tensor
    /// The pretrained values as quantised blocks, where they are held so.
    public let packed: PackedMatrix?
    /// What stands in for the pretrained values, of the same shape, or nil.
    public var replacement: Tensor?

    /// Makes a parameter of pretrained values.
    public init(path: String, frozen: Tensor) {
        self.path = path
        self.frozen = frozen
        packed = nil
    }

    /// Makes a parameter of quantised blocks.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public init(path: String, packed: PackedMatrix) throws {
        self.path = path
        self.packed = packed
        // One number behind every element, and it is none: whoever computes with it by mistake will notice.
        let shape = [packed.stored.rows, packed.stored.columns]
        frozen = try Tensor.full([1, 1], .nan).expanded(shape)
    }

    /// The pretrained values, unpacked where they are held as blocks.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func values(dtype: DType) throws -> Tensor {
        try packed?.unpacked(dtype: dtype) ?? frozen.to(dtype: dtype)
    }

    /// The values that the forward pass uses, in the frozen tensor's dtype.
    ///
    /// - Throws: `TorchError` when the replacement cannot be converted.
    public func value() throws -> Tensor {
        try replacement?.to(dtype: frozen.dtype) ?? packed?.unpacked(dtype: frozen.dtype) ?? frozen
    }

    /// The rows of a matrix at some indices, of any shape, to `[..., columns]`.
    ///
    /// - Throws: `TorchError` or `FormatError` when there is no such row.
    func rows(_ indices: Tensor) throws -> Tensor {
        if let packed, replacement == nil { return try packed.rows(indices) }
        return try embedding(indices, value())
    }

    /// Another parameter over the same pretrained values.
    func sharing(path: String) -> Parameter { Parameter(path: path, frozen: frozen, packed: packed) }

    private init(path: String, frozen: Tensor, packed: PackedMatrix?) {
        self.path = path
        self.frozen = frozen
        self.packed = packed
    }

    /// The path of the module that owns the parameter: the name without its last part.
    public var modulePath: String {
        path.lastIndex(of: ".").map { String(path[..<$0]) } ?? ""
    }
}

extension [Parameter] {
    /// Runs `body` with the pretrained values, whatever stands in for them.
    func pretrained<Result>(_ body: () throws -> Result) rethrows -> Result {
        let replaced = filter { $0.replacement != nil }.map { ($0, $0.replacement) }
        for (parameter, _) in replaced { parameter.replacement = nil }
        defer { for (parameter, value) in replaced { parameter.replacement = value } }
        return try body()
    }
}
