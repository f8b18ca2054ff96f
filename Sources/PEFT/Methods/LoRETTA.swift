import Backbones
import Formats
import Torch

/// LoRETTA-rep: LoRA whose two factors are tensor trains, so that a layer trains about a thousand values.
/// arXiv 2402.11417
///
/// With the trains `M_A [in, r]` and `M_B [r, out]` (see ``TensorTrain``) and `s = lora_alpha / r`,
///
///     dW = s (M_A M_B)^T
///
/// and all norms of the model are trained beside (`train_norms`).
///
/// Saved are the cores, `base_model.model.<path>.loretta_A.<k>` and `loretta_B.<k>`, each `[r_(k-1), n_k, r_k]`, with
/// `tensor_rank` between neighbours. The modes `n_k` of the widths in the authors' tables are theirs; those of other
/// sizes are close to each other and at most 16, those of the rows before those of the columns.
///
/// At the start entries of a core are normal, so that the matrix's have the variance `1 / (rows + columns)`. What is
/// done about the update that they make is `init_weights`: `zero` begins with a last core of zeros in `M_B`, `subtract`
/// takes the start off the base (`init_seed` keeps what it was drawn from), `random` does nothing.
public struct LoRETTA: Method {
    /// The value of `peft_type`.
    public static let peftType = "LORETTA_REP"
    /// The hyper-parameters.
    public static let fields: [Field<LoRETTA>] = [
        Field("r", \.r, "rank of the update"),
        Field("lora_alpha", \.loraAlpha, "the update is scaled by lora_alpha / r"),
        Field("lora_dropout", \.loraDropout, "probability of zeroing an element of the adapter's input"),
        Field("tensor_rank", \.tensorRank, "rank between the cores of a tensor train"),
        Field("train_norms", \.trainsNorms, "train the weights of all norms, too"),
        Field("init_weights", \.initialization, "how the update starts at zero, or random"),
        Field("init_seed", \.initialSeed, "what init_weights subtract was drawn from; null: the run's seed"),
    ]

    /// What is done about the update that random cores make.
    public enum Initialization: String, FieldValue, CaseIterable {
        /// The last core of the second train is zero.
        case zero
        /// The start is taken off the base.
        case subtract
        /// Nothing: the output changes at once, as in the authors' code.
        case random
    }

    /// The rank of the update.
    public var r = 8
    /// The scale times the rank.
    public var loraAlpha = 16.0
    /// The probability of zeroing an element of the adapter's input.
    public var loraDropout = 0.0
    /// The rank between the cores.
    public var tensorRank = 5
    /// Whether the weights of all norms are trained, too.
    public var trainsNorms = true
    /// What is done about the update that random cores make.
    public var initialization = Initialization.zero
    /// What a start that is taken off the base was drawn from.
    public var initialSeed: Int?

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(r, "r")
        try requirePositive(tensorRank, "tensor_rank")
        try requireProbability(loraDropout, "lora_dropout")
    }

    /// The method with the seed of a start that is taken off the base.
    public func resolved(seed: Seed) -> LoRETTA {
        initialization == .subtract ? writing(seed, in: \.initialSeed) : self
    }

    /// The values of the cores and of the norms.
    ///
    /// - Throws: `PEFTError` when a layer is too small for the rank.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        if let small = points.linears.first(where: { min($0.inFeatures, $0.outFeatures) < r }) {
            throw PEFTError("r: expected at most the smaller size of \(small.path), found \(r)")
        }
        return points.linears.reduce(norms(of: points).reduce(0) { $0 + Double($1.frozen.count) }) { sum, layer in
            sum + train(rows: layer.inFeatures, columns: r).count + train(rows: r, columns: layer.outFeatures).count
        }
    }

    private func norms(of points: AttachPoints) -> [Parameter] {
        trainsNorms ? points.backbone.parameters.filter { $0.modulePath.hasSuffix("norm") } : []
    }

    /// Makes the cores of every layer, and copies of the norms.
    ///
    /// - Throws: `PEFTError` when a pattern is not valid; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let seed = initialization == .subtract ? seed.replaced(by: initialSeed) : seed
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            func cores(_ name: String, of train: TensorTrain) throws -> [Tensor] {
                var stream = seed.stream("\(layer.path).\(name)")
                let variance = 1 / Double(train.rows + train.columns)
                return try train.start(variance: variance, from: &stream).enumerated().map { index, core in
                    try attachment.train(adapterKey(layer.path, "\(name).\(index)"), from: core, on: points.device)
                }
            }
            let a = train(rows: layer.inFeatures, columns: r)
            let b = train(rows: r, columns: layer.outFeatures)
            var update = LoRETTAUpdate(
                a: (a, try cores("loretta_A", of: a)), b: (b, try cores("loretta_B", of: b)),
                scale: loraAlpha / Double(r), dropout: loraDropout)
            if initialization == .zero { try update.b.cores.last?.fill(0) }
            if initialization == .subtract { update.initial = try update.factors() }
            attachment.updates.append((layer, update))
        }
        try points.addCopies(of: norms(of: points), to: &attachment, decay: .all)
        return attachment
    }

    private func train(rows: Int, columns: Int) -> TensorTrain {
        TensorTrain(rows: rows, columns: columns, rank: tensorRank, updateRank: r)
    }
}

/// `dW = s (M_A M_B)^T`, less the product that the base was relieved of.
struct LoRETTAUpdate: LowRankUpdate {
    let a: (train: TensorTrain, cores: [Tensor])
    let b: (train: TensorTrain, cores: [Tensor])
    let scale: Double
    let dropout: Double
    /// Where the start was taken off the base: what was.
    var initial: (down: Tensor, up: Tensor)?

    func factors() throws -> (down: Tensor, up: Tensor) {
        let down = try a.train.matrix(a.cores).transposed()
        let up = try b.train.matrix(b.cores).transposed()
        return try less(initial, (down, up))
    }
}
