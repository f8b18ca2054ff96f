import Formats
import Torch

/// One tensor of a checkpoint, by the name it has there.
///
/// The frozen values are never written. An adapter that trains a copy of them (`modules_to_save`, biases, selected
/// parameters) puts that copy in `replacement`; taking it away restores the model bit for bit.
public final class Parameter {
    /// The name in the checkpoint, such as `model.layers.3.self_attn.q_proj.weight`.
    public let path: String
    /// How the pretrained values are held.
    public let storage: any FrozenStorage
    /// The pretrained values; of a packed parameter only the shape and the dtype, see ``values(dtype:)``.
    ///
    /// `frozenLinears` multiplies with it in either case.
    public let frozen: Tensor
    /// The storage where the values are not there as plain numbers.
    public let packed: (any PackedStorage)?
    /// What stands in for the pretrained values, of the same shape, or nil.
    public var replacement: Tensor?

    /// Makes a parameter of pretrained values.
    public convenience init(path: String, frozen: Tensor) {
        self.init(path: path, storage: frozen, frozen: frozen, packed: nil)
    }

    /// Makes a parameter of a packed matrix.
    ///
    /// - Parameters:
    ///   - path: The name in the checkpoint.
    ///   - packed: How the matrix is held.
    ///   - dtype: The dtype to compute in, `float32` or `bfloat16`.
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public convenience init(path: String, packed: any PackedStorage, dtype: DType = .float32) throws {
        self.init(path: path, storage: packed, frozen: try packed.standIn(dtype: dtype), packed: packed)
    }

    /// Another parameter over the same pretrained values.
    func sharing(path: String) -> Parameter {
        Parameter(path: path, storage: storage, frozen: frozen, packed: packed)
    }

    private init(path: String, storage: any FrozenStorage, frozen: Tensor, packed: (any PackedStorage)?) {
        self.path = path
        self.storage = storage
        self.frozen = frozen
        self.packed = packed
    }

    /// The pretrained values, unpacked where they are packed.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func values(dtype: DType) throws -> Tensor {
        try packed == nil ? frozen.to(dtype: dtype) : frozen.unpacked(dtype: dtype)
    }

    /// The values that the forward pass uses, in the frozen tensor's dtype.
    ///
    /// - Throws: `TorchError` when the replacement cannot be converted or memory is short.
    public func value() throws -> Tensor {
        try replacement?.to(dtype: frozen.dtype) ?? values(dtype: frozen.dtype)
    }

    /// The rows of a matrix at some indices, of any shape, to `[..., columns]`.
    ///
    /// - Throws: `TorchError` or `FormatError` when there is no such row.
    package func rows(_ indices: Tensor) throws -> Tensor {
        guard replacement == nil else { return try embedding(indices, value()) }
        return try storage.rows(indices, dtype: frozen.dtype)
    }

    /// Whether nothing stands in for the pretrained values and no gradient flows into them.
    var isFrozen: Bool { replacement == nil && !frozen.requiresGrad }

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
