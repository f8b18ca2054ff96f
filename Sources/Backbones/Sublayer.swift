import Torch

/// An adapter's part in the output of a sublayer: behind it (sequential) or beside it (parallel).
public protocol SublayerAdapter: AnyObject {
    /// The adapted output of a sublayer, before it is added to the residual stream.
    ///
    /// - Parameters:
    ///   - output: What the sublayer computed, `[batch, time, hidden]`.
    ///   - input: What it was given: the normalised stream, of the same shape.
    ///   - stream: The residual stream that enters the sublayer, not normalised, of the same shape.
    ///   - sublayer: Attention or MLP.
    ///   - context: The forward pass.
    /// - Returns: `[batch, time, hidden]`.
    func output(
        _ output: Tensor, from input: Tensor, stream: Tensor, of sublayer: Sublayer, in context: Context
    ) throws -> Tensor
}

/// Attention or MLP of one block as a whole, with a slot for an adapter of its output.
public final class Sublayer: AttachPoint {
    /// What a sublayer is.
    public enum Role: String, Sendable, CaseIterable {
        case attention, mlp
    }

    /// The path in the checkpoint, such as `model.layers.3.mlp`.
    public let path: String
    /// Attention or MLP.
    public let role: Role
    /// The index of the block.
    public let layer: Int
    /// The size of the residual stream.
    public let width: Int
    /// What adapts the output, or nil.
    public var adapter: (any SublayerAdapter)?

    init(path: String, role: Role, layer: Int, width: Int) {
        self.path = path
        self.role = role
        self.layer = layer
        self.width = width
    }

    /// The ``adapter``.
    public var occupant: AnyObject? {
        get { adapter }
        set { adapter = newValue as? any SublayerAdapter }
    }

    /// The output as the model uses it.
    func adapted(_ output: Tensor, from input: Tensor, stream: Tensor, _ context: Context) throws -> Tensor {
        guard let adapter, context.usesAdapters else { return output }
        return try adapter.output(output, from: input, stream: stream, of: self, in: context)
    }
}
