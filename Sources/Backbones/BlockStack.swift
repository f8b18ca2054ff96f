import Torch

/// What all blocks of a forward pass share.
public struct BlockPass {
    /// The forward pass.
    public let context: Context
    /// Cosines and sines of the tokens' positions.
    let rotary: (cos: Tensor, sin: Tensor)
    let masks: AttentionMasks
}

/// One block of a model: attention and MLP, each on normalised input and added to the residual stream.
public protocol TransformerBlock: AnyObject {
    /// The path in the checkpoint, such as `model.layers.3`.
    var path: String { get }
    /// The index of the block.
    var layer: Int { get }
    /// What attention adds to the stream, `[batch, time, hidden]` to the same shape, its norm included.
    func attention(_ states: Tensor, _ pass: BlockPass) throws -> Tensor
    /// What the MLP adds to the stream, `[batch, time, hidden]` to the same shape, its norm included.
    func mlp(_ states: Tensor, _ pass: BlockPass) throws -> Tensor
    /// The stream behind the block.
    func callAsFunction(_ states: Tensor, _ pass: BlockPass) throws -> Tensor
}

/// A way to run the blocks of a model, such as keeping no activations or reversibly.
public protocol BlockExecution: AnyObject {
    /// Runs the blocks in order.
    ///
    /// - Parameters:
    ///   - blocks: The blocks.
    ///   - states: The stream that enters the first, `[batch, time, hidden]`.
    ///   - pass: What the blocks share.
    /// - Returns: The stream behind the last, of the same shape.
    func run(_ blocks: [any TransformerBlock], _ states: Tensor, _ pass: BlockPass) throws -> Tensor
    /// What is kept of blocks for the backward pass instead of all that they compute; by default nothing is saved.
    ///
    /// - Parameters:
    ///   - blocks: The blocks that need a gradient.
    ///   - width: The bytes of an element of the stream.
    func memory(blocks: Int, width: Int) -> BlockMemory
}

/// What an execution keeps for the backward pass instead of all that blocks compute.
public struct BlockMemory {
    /// The blocks of which nothing else is kept, counted from the lowest that needs a gradient.
    public let recomputed: Int
    /// The bytes that are kept in their place for each element of the stream.
    public let keptBytes: Int

    /// Makes a description.
    public init(recomputed: Int, keptBytes: Int) {
        self.recomputed = recomputed
        self.keptBytes = keptBytes
    }
}

extension BlockExecution {
    /// Everything that blocks compute is kept.
    public func memory(blocks: Int, width: Int) -> BlockMemory { BlockMemory(recomputed: 0, keptBytes: 0) }
}

/// The blocks of a model, with a slot for the way in which they are run.
public final class BlockStack: AttachPoint {
    /// The path in the checkpoint, such as `model.layers`.
    public let path: String
    /// The blocks in order.
    public let blocks: [any TransformerBlock]
    /// How the blocks are run; nil: one after the other.
    public var execution: (any BlockExecution)?

    init(path: String, blocks: [any TransformerBlock]) {
        self.path = path
        self.blocks = blocks
    }

    /// The ``execution``.
    public var occupant: AnyObject? {
        get { execution }
        set { execution = newValue as? any BlockExecution }
    }
}
