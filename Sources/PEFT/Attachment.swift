import Backbones
import Formats
import Torch

/// A place in the model and what stands in it while an adapter is attached.
public struct Attached {
    /// The place.
    public let point: any AttachPoint
    /// What stands in it.
    public let occupant: AnyObject

    /// Puts an adapter of a layer's output into the layer.
    public init(_ linear: Linear, _ adapter: any LinearAdapter) { (point, occupant) = (linear, adapter) }
    /// Puts values in the place of a parameter's pretrained ones.
    public init(_ parameter: Parameter, _ values: Tensor) { (point, occupant) = (parameter, values) }
    /// Puts an adapter behind or beside a sublayer.
    public init(_ sublayer: Sublayer, _ adapter: any SublayerAdapter) { (point, occupant) = (sublayer, adapter) }
    /// Puts keys and values in front of a layer's.
    public init(_ state: AttentionState, _ prefix: any AttentionPrefix) { (point, occupant) = (state, prefix) }
    /// Changes the vectors that enter the model.
    public init(_ embedding: TokenEmbedding, _ adapter: any EmbeddingAdapter) {
        (point, occupant) = (embedding, adapter)
    }
    /// Runs the blocks in another way.
    public init(_ stack: BlockStack, _ execution: any BlockExecution) { (point, occupant) = (stack, execution) }

    /// Whether something else stands in the place.
    var isTaken: Bool { point.occupant.map { $0 !== occupant } ?? false }

    func fill() { point.occupant = occupant }

    /// Empties the place unless something else stands in it.
    func clear() {
        if point.occupant === occupant { point.occupant = nil }
    }
}

/// What a method has made for a model.
public struct Attachment {
    /// The trainable tensors, in a fixed order.
    public var trainables: [Trainable]
    /// What each adapted layer computes now.
    public var updates: [(linear: Linear, update: any WeightUpdate)]
    /// What stands in other places than linear layers.
    public var others: [Attached] = []
    /// Parameters whose values are trained: each tensor, of the parameter's shape, is one of the trainables or made of
    /// them.
    public var copies: [(parameter: Parameter, tensor: Tensor)] = []
    /// Frozen tensors that belong to the adapter's state but not to its file, such as factors taken off the base.
    public var buffers: KeyedList<Tensor> = [:]
    /// Whole numbers that belong to the adapter's file, such as which columns are trained; a folder that is loaded gives
    /// them back through ``AttachPoints/folder``.
    public var indices: KeyedList<Tensor> = [:]
    /// The number of trained values where that is not the size of the trainable tensors.
    public var trainedCount: Int?
    /// What the method does while it is trained, where that is more than to have gradients.
    public var hook: (any TrainingHook)?
    /// A scalar that is added to the loss of every optimiser step.
    public var penalty: (() throws -> Tensor?)?
    /// What is saved where that is not simply the trainable tensors.
    public var export: (() throws -> (method: any Method, tensors: KeyedList<Tensor>))?

    /// Makes an attachment.
    public init(trainables: [Trainable], updates: [(linear: Linear, update: any WeightUpdate)] = []) {
        self.trainables = trainables
        self.updates = updates
    }
}
