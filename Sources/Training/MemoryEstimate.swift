import Backbones
import PEFT
import Torch

/// What a training step holds in memory, part by part, in bytes.
///
/// Activations are counted from what each operator of the Llama family keeps for its backward pass.
package struct MemoryEstimate {
    /// The pretrained weights.
    package let weights: Int
    /// The trainable tensors and what stays fixed beside them.
    package let adapter: Int
    /// The gradients of the trainable tensors.
    package let gradients: Int
    /// AdamW's two moments.
    package let optimiser: Int
    /// What the forward pass of the largest batch keeps for the backward pass, and what that computes again at once.
    package let activations: Int
    /// The logits of one chunk with what is made of them.
    package let logits: Int

    /// Estimates a run.
    ///
    /// - Parameters:
    ///   - backbone: The model.
    ///   - adapter: What is trained.
    ///   - tokens: The tokens of the largest batch, what fills rows up included.
    ///   - supervised: How many of them are part of the loss at most.
    ///   - blocks: What is kept of blocks; nil: what the model's execution says, else everything.
    package init(
        _ backbone: any Backbone, _ adapter: Adapter, tokens: Int, supervised: Int, blocks: BlockMemory? = nil
    ) {
        weights = backbone.heldBytes
        let trained = adapter.trainables.reduce(0) { $0 + $1.tensor.byteCount }
        self.adapter = trained + adapter.buffers.reduce(0) { $0 + $1.value.byteCount }
        gradients = trained
        optimiser = 2 * trained
        let layers = ActivationCount(backbone, adapter)
        let hidden = backbone.configuration.hiddenSize
        // Packed matrices of one input are there in plain numbers at a time: at most the two of a gated activation, by size.
        let unpacked =
            2 * (backbone.linears.lazy.filter { $0.weight.packed != nil }.map { $0.weight.frozen.count }.max() ?? 0)
        func chunk(width: Int) -> Int {
            min(supervised * width * backbone.configuration.vocabSize, SupervisedObjective.defaultChunkBytes)
        }
        if runsOwnKernels(backbone.dtype, on: backbone.device) {
            // The gradient is written over the head's output.
            logits = chunk(width: layers.width)
        } else {
            let chunk = chunk(width: 4)
            // The head's output, its fp32 copy where that is another tensor, the exponentials, the copy to multiply with.
            logits = layers.width == 4 ? 2 * chunk : 3 * chunk
        }
        let blocks =
            blocks ?? backbone.blockStack.execution?.memory(blocks: layers.bytesPerToken.count, width: layers.width)
            ?? BlockMemory(recomputed: 0, keptBytes: 0)
        let kept = tokens * (layers.bytesPerToken.dropFirst(blocks.recomputed).reduce(0, +) + blocks.keptBytes * hidden)
        // When the first of the other blocks is computed again, theirs and the logits are given up already.
        let again = tokens * ((layers.bytesPerToken.prefix(blocks.recomputed).max() ?? 0) + blocks.keptBytes * hidden)
        activations = unpacked * layers.width + max(kept + supervised * hidden * 3 * layers.width, again - logits)
    }

    /// All that comes on top of the loaded model with its adapter.
    package var beyondLoading: Int { gradients + optimiser + activations + logits }
}

/// The bytes that the blocks keep for a token.
private struct ActivationCount {
    /// For each block that needs a gradient, from the lowest.
    let bytesPerToken: [Int]
    /// The bytes of an activation's element.
    let width: Int

    init(_ backbone: any Backbone, _ adapter: Adapter) {
        let configuration = backbone.configuration
        let width = backbone.dtype.byteCount
        self.width = width
        let hasOwnKernels = runsOwnKernels(backbone.dtype, on: backbone.device)
        let heads = configuration.headDim * configuration.numAttentionHeads
        let keyHeads = configuration.headDim * configuration.numKeyValueHeads
        // Before the first adapted layer nothing needs a gradient.
        let changed = adapter.updates.map { $0.linear.layer ?? configuration.numHiddenLayers }
        let first = adapter.copies.isEmpty ? changed.min() ?? 0 : 0
        bytesPerToken = (first..<max(first, configuration.numHiddenLayers)).map { layer in
            var bytes = 0
            let adapted = adapter.updates.filter { $0.linear.layer == layer }
            // Two norms keep their input, the portable ones in fp32.
            bytes += 2 * (hasOwnKernels ? width : 4) * configuration.hiddenSize
            // Scores keep queries, keys, values, output and a sum a head.
            bytes += width * 2 * (heads + keyHeads) + 4 * configuration.numAttentionHeads
            // The gate, what it is multiplied with, and from the portable operators the gate's activation.
            bytes += width * (hasOwnKernels ? 2 : 3) * configuration.intermediateSize
            bytes += Self.inputs(adapted.map(\.linear), width)
            for (linear, update) in adapted {
                // Dropout's mask, and what it leaves where the two are not multiplied again.
                let isTogether = hasOwnKernels && update is any LowRankUpdate
                if update.dropout > 0 { bytes += (isTogether ? 1 : 2) * width * linear.inFeatures }
                // A changed weight's product is scaled or masked as a whole.
                if !(update is any AdditiveUpdate) { bytes += width * linear.outFeatures }
            }
            return bytes
        }
    }

    /// Inputs that are kept because a trained factor is multiplied with them; layers side by side share theirs.
    private static func inputs(_ adapted: [Linear], _ width: Int) -> Int {
        var bytes = 0
        for roles: [LinearRole] in [[.query, .key, .value], [.gate, .up], [.down]] {
            if let linear = adapted.first(where: { roles.contains($0.role) }) { bytes += width * linear.inFeatures }
        }
        return bytes
    }
}
