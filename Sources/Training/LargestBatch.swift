import Backbones
import PEFT
import Torch

/// The forward pass of a run that takes the most memory.
struct LargestBatch {
    /// The tokens, filling included.
    var tokens = 0
    /// How many of them are part of the loss.
    var supervised = 0
    /// How many different lengths batches have.
    var lengths = 0

    /// The memory of a step with this pass.
    ///
    /// - Parameter blocks: What is kept of blocks; nil: as the model's execution says.
    func estimate(_ backbone: any Backbone, _ adapter: Adapter, blocks: BlockMemory? = nil) -> MemoryEstimate {
        MemoryEstimate(backbone, adapter, tokens: tokens, supervised: supervised, blocks: blocks)
    }

    /// What the engine takes beside tensors.
    ///
    /// Measured: code that is paged in by the first step, and in bf16 what the matrix library keeps for each length of
    /// rows, of which it forgets the oldest.
    func workSpace(of backbone: any Backbone) -> Int {
        guard backbone.device == .cpu else { return 0 }
        return 50_000_000 + (backbone.dtype == .bfloat16 ? 18_000_000 * min(lengths, 24) : 0)
    }
}

extension TrainingSetup {
    /// The pass with the most tokens.
    ///
    /// - Throws: ``TrainingError`` when the run has too many steps.
    func largestBatch() throws -> LargestBatch {
        var order = order
        let layout = recipe.layout
        let multiple = Batch.lengthMultiple(of: model.backbone)
        var largest = LargestBatch()
        var lengths: Set<Int> = []
        // A pass or two see all there is to see; later ones only mix it anew.
        for step in 0..<min(try totalSteps(), 2 * order.stepsPerEpoch) {
            for pass in order.plan(step: step, layout: layout, length: { data.length(at: $0) }).microBatches {
                let shape = Batch.shape(of: pass.lengths, isPacked: layout.isPacked, multiple: multiple)
                lengths.insert(shape.time)
                let tokens = shape.rows * shape.time
                if tokens > largest.tokens {
                    largest.tokens = tokens
                    largest.supervised = pass.rows.reduce(0) { $0 + data.supervisedCount(at: $1) }
                }
            }
        }
        largest.lengths = lengths.count
        return largest
    }
}
