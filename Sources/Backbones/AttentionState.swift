import Torch

/// Keys and values that stand in front of those of the tokens.
public protocol AttentionPrefix: AnyObject {
    /// The keys in front; the positions of tokens begin behind them.
    var length: Int { get }
    /// The keys and values of one attention layer, as they are attended to: after the rotation by positions.
    ///
    /// - Returns: Each `[batch or 1, heads, length, dimension]` in the model's dtype.
    func keysAndValues(of state: AttentionState, in context: Context) throws -> (keys: Tensor, values: Tensor)
    /// The keys in front in one pass, where that is not always the same.
    func length(in context: Context) -> Int
    /// How much of attention with the prefix there is, the rest being attention to the tokens alone; nil (the default)
    /// where the prefix is simply there.
    ///
    /// - Returns: A tensor that broadcasts to `[batch, heads, time, dimension]`, in the model's dtype.
    func gate(of state: AttentionState, in context: Context) throws -> Tensor?
}

extension AttentionPrefix {
    /// Always the same.
    public func length(in context: Context) -> Int { length }
    /// The prefix is simply there.
    public func gate(of state: AttentionState, in context: Context) throws -> Tensor? { nil }
}

/// The keys and values of one attention layer, with a slot for a prefix.
public final class AttentionState: AttachPoint {
    /// The path in the checkpoint, such as `model.layers.3.self_attn`.
    public let path: String
    /// The index of the block.
    public let layer: Int
    /// The heads of keys and values; fewer than those of queries under grouped-query attention.
    public let heads: Int
    /// The features of one head.
    public let dimension: Int
    /// What stands in front of keys and values, or nil.
    public var prefix: (any AttentionPrefix)?

    init(path: String, layer: Int, heads: Int, dimension: Int) {
        self.path = path
        self.layer = layer
        self.heads = heads
        self.dimension = dimension
    }

    /// The ``prefix``.
    public var occupant: AnyObject? {
        get { prefix }
        set { prefix = newValue as? any AttentionPrefix }
    }

    /// The keys in front of the tokens' in a pass.
    func length(in context: Context) -> Int { context.usesAdapters ? prefix?.length(in: context) ?? 0 : 0 }

    /// The prefix for a batch, each `[batch, heads, length, dimension]`; nil where there is none.
    func prefix(batch: Int, _ context: Context) throws -> (keys: Tensor, values: Tensor)? {
        guard length(in: context) > 0, let found = try prefix?.keysAndValues(of: self, in: context) else { return nil }
        func expanded(_ tensor: Tensor) throws -> Tensor { try tensor.expanded([batch, -1, -1, -1]) }
        return (try expanded(found.keys), try expanded(found.values))
    }
}
