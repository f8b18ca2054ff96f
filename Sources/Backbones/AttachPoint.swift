import Torch

/// A place in a model that one adapter can hold.
///
/// There is one class for each part of a model that methods touch: ``Linear``, ``Parameter``, ``Sublayer``,
/// ``AttentionState``, ``TokenEmbedding`` and ``BlockStack``. The model asks what stands in the place, and computes the
/// pretrained function where nothing does.
public protocol AttachPoint: AnyObject {
    /// The path in the checkpoint, such as `model.layers.3.self_attn`.
    var path: String { get }
    /// What stands in the place, or nil; an object of another kind than the place takes is not kept.
    var occupant: AnyObject? { get set }
}

extension Linear: AttachPoint {
    /// The ``adapter``.
    public var occupant: AnyObject? {
        get { adapter }
        set { adapter = newValue as? any LinearAdapter }
    }
}

extension Parameter: AttachPoint {
    /// The ``replacement``.
    public var occupant: AnyObject? {
        get { replacement }
        set { replacement = newValue as? Tensor }
    }
}
