import Torch

/// Runs blocks of which only the input is kept; the backward pass computes them again (gradient checkpointing,
/// arXiv 1604.06174).
///
/// The second computation is the first one bit for bit: dropout masks are functions of their names, and operators of
/// their arguments. Blocks below everything trained keep nothing anyway and are not computed again.
public final class CheckpointedBlocks: BlockExecution {
    /// How many of the blocks that need a gradient are computed again, counted from the lowest.
    ///
    /// The lowest, because what the others keep is given up before the first of these is computed again.
    public let count: Int
    private let trained: [Tensor]

    /// Makes the execution.
    ///
    /// - Parameters:
    ///   - count: How many of the blocks that need a gradient are computed again.
    ///   - trained: Every tensor that may get a gradient from a block.
    public init(count: Int, trained: [Tensor]) {
        self.count = count
        self.trained = trained
    }

    /// Runs the blocks in order; what is no training pass is run as without checkpoints.
    public func run(_ blocks: [any TransformerBlock], _ states: Tensor, _ pass: BlockPass) throws -> Tensor {
        let leaves = trained.filter(\.requiresGrad)
        // A cache would get its keys twice, and an observer see everything twice.
        var left = isGradEnabled && pass.context.cache == nil && pass.context.observer == nil ? count : 0
        var states = states
        for block in blocks {
            var output = try block(states, pass)
            if left > 0, output.requiresGrad {
                left -= 1
                output = try recomputed(block, output.detached(), from: states, pass, leaves)
            }
            states = output
        }
        return states
    }

    /// What is kept of the blocks that need a gradient.
    public func memory(blocks: Int, width: Int) -> BlockMemory {
        let count = min(count, blocks)
        return BlockMemory(recomputed: count, keptBytes: count * width)
    }

    /// A block's output whose gradient is found by computing the block again.
    private func recomputed(
        _ block: any TransformerBlock, _ output: Tensor, from states: Tensor, _ pass: BlockPass, _ leaves: [Tensor]
    ) throws -> Tensor {
        let input = try states.detached()
        let needsInput = states.requiresGrad
        return try withCustomGradient("checkpoint of \(block.path)", inputs: [states] + leaves) {
            (
                output,
                { gradient in
                    try withGradEnabled(true) {
                        let start = try input.detached().requiringGrad(needsInput)
                        let again = try block(start, pass)
                        let found = try gradients(
                            of: [again], with: needsInput ? [start] + leaves : leaves, gradOutputs: [gradient])
                        return needsInput ? found : [nil] + found
                    }
                }
            )
        }
    }
}
