import Torch

/// What merging an adapter into a model has written, and what rounding cost.
public struct MergeReport: Sendable {
    /// A tensor that the adapter changed.
    public struct Change: Sendable {
        /// Its name in the merged model.
        public let name: String
        /// The dtype that it is stored in.
        public let dtype: DType
        /// The norm of the adapter's update, `||W' - W||`.
        public let update: Double
        /// The norm of what rounding to the dtype destroyed, `||round(W') - W'||`.
        public let loss: Double
        /// Where the adapter was trained over quantised weights: how far quantising had moved this one,
        /// `||W - dequant(quant(W))||`.
        public internal(set) var quantisation: Double?
        /// What rounding destroyed, as a share of the update; 0 for an update of zero.
        public var relativeLoss: Double { update > 0 ? loss / update : 0 }
    }

    /// The folder of the merged model.
    public let folder: String
    /// The weights that the adapter was merged into, in words.
    public let base: String
    /// The tensors that the adapter changed, in the order of the checkpoint.
    public let changes: [Change]
    /// The number of all tensors.
    public let tensorCount: Int
    /// Whether the output head is a tensor of its own now, where the base model shares it with the embedding.
    public let isUntied: Bool

    /// What rounding destroyed in all changed tensors together, as a share of the update.
    public var relativeLoss: Double {
        let update = changes.reduce(0) { $0 + $1.update * $1.update }
        let loss = changes.reduce(0) { $0 + $1.loss * $1.loss }
        return update > 0 ? (loss / update).squareRoot() : 0
    }

    /// How far quantising had moved the changed tensors together, in lengths of the update; nil where none was quantised.
    public var relativeQuantisation: Double? {
        let moved = changes.compactMap(\.quantisation)
        let update = changes.reduce(0) { $0 + $1.update * $1.update }
        guard !moved.isEmpty, update > 0 else { return nil }
        return (moved.reduce(0) { $0 + $1 * $1 } / update).squareRoot()
    }
}

/// How far a merged model is from its base model with the adapter, over all positions of some prompts.
public struct MergeComparison: Sendable {
    /// The largest absolute difference of two logits.
    public let largestDifference: Double
    /// The largest absolute logit, to compare with.
    public let largestLogit: Double
    /// The share of positions at which both find the same token most likely.
    public let argmaxAgreement: Double
    /// The number of positions.
    public let positions: Int
}
