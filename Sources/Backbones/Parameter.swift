import Torch

/// One tensor of a checkpoint, by the name it has there.
///
/// The frozen tensor is never written. An adapter that trains a copy of it (`modules_to_save`, biases, selected
/// parameters) puts that copy in `replacement`; taking it away restores the model bit for bit.
public final class Parameter {
    /// The name in the checkpoint, such as `model.layers.3.self_attn.q_proj.weight`.
    public let path: String
    /// The pretrained values.
    public let frozen: Tensor
    /// What stands in for the pretrained values, of the same shape, or nil.
    public var replacement: Tensor?

    /// Makes a parameter of pretrained values.
    public init(path: String, frozen: Tensor) {
        self.path = path
        self.frozen = frozen
    }

    /// The values that the forward pass uses, in the frozen tensor's dtype.
    ///
    /// - Throws: `TorchError` when the replacement cannot be converted.
    public func value() throws -> Tensor {
        try replacement?.to(dtype: frozen.dtype) ?? frozen
    }

    /// The path of the module that owns the parameter: the name without its last part.
    public var modulePath: String {
        path.lastIndex(of: ".").map { String(path[..<$0]) } ?? ""
    }
}
