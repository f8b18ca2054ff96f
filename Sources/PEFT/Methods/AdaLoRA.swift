import Backbones
import Formats
import Torch

/// AdaLoRA: updates in the form of a singular value decomposition, whose directions compete for a budget of ranks over
/// the whole model while they are trained. arXiv 2303.10512
///
/// With `A [r, in]`, `B [out, r]`, the strengths `E [r, 1]`, `r = init_r` and `s = lora_alpha / (init_r + 1e-5)`,
///
///     dW = s B (E * A)
///
/// The loss of a step grows by `orth_reg_weight` times the mean of `||A A^T - I||` and `||B^T B - I||` over all factors.
/// Which directions keep their strength is told by ``AdaLoRASchedule``.
///
/// Saved are `base_model.model.<path>.lora_A`, `lora_B` and `lora_E`, as peft has them; after the last cut only the
/// directions that are left, which `rank_pattern` names by `<path>.lora_E`. A folder with a pattern is trained on
/// without further cuts.
///
/// At the start `A` and `B` are normal with deviation 0.02, and `E` is zero.
public struct AdaLoRA: Method {
    /// The value of `peft_type`.
    public static let peftType = "ADALORA"
    /// The hyper-parameters.
    public static let fields: [Field<AdaLoRA>] = [
        Field("init_r", \.initialRank, "rank of every layer at the start"),
        Field("target_r", \.targetRank, "mean rank of the layers at the end"),
        Field("lora_alpha", \.loraAlpha, "the update is scaled by lora_alpha / init_r; 0 or less stands for init_r"),
        Field("lora_dropout", \.loraDropout, "probability of zeroing an element of the adapter's input"),
        Field("tinit", \.firstSteps, "steps before ranks are cut"),
        Field("tfinal", \.lastSteps, "steps after the last cut"),
        Field("deltaT", \.interval, "steps between two cuts"),
        Field("beta1", \.beta1, "share of the past in a value's importance"),
        Field("beta2", \.beta2, "share of the past in the importance's uncertainty"),
        Field("orth_reg_weight", \.penaltyWeight, "weight of the factors' distance from orthogonality in the loss"),
        Field("total_step", \.totalSteps, "steps of the whole training; null: those of the run"),
        Field("init_lora_weights", \.startsAtZero, "false: everything starts random; for tests"),
        Field("rank_pattern", \.rankPattern, "directions that are left of each layer; written after the last cut"),
    ]
    /// What peft 0.21.2 writes for `ADALORA` beside the fields that Graft computes with: those of LoRA.
    public static var folderFields: FolderFields {
        var fields = LoRA.folderFields
        for (key, value) in ["r": 8, "use_rslora": false, "use_dora": false, "alpha_pattern": [:]] as KeyedList<JSON> {
            fields.neutral[key] = value
        }
        // peft computes nothing with these for this type.
        fields.inert.formUnion(["r", "use_rslora", "alpha_pattern"])
        fields.own = []
        return fields
    }

    /// The rank of every layer at the start.
    public var initialRank = 12
    /// The mean rank at the end.
    public var targetRank = 8
    /// The scale times the rank at the start.
    public var loraAlpha = 8.0
    /// The probability of zeroing an element of the adapter's input.
    public var loraDropout = 0.0
    /// The steps before ranks are cut.
    public var firstSteps = 0
    /// The steps after the last cut.
    public var lastSteps = 0
    /// The steps between two cuts.
    public var interval = 1
    /// The share of the past in importance.
    public var beta1 = 0.85
    /// The share of the past in uncertainty.
    public var beta2 = 0.85
    /// The weight of the distance from orthogonality.
    public var penaltyWeight = 0.5
    /// The steps of the whole training; nil: those of the run.
    public var totalSteps: Int?
    /// Whether the update is zero at the start.
    public var startsAtZero = true
    /// The directions that are left of each layer, or nil before the last cut.
    public var rankPattern: RankPattern?

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        for (name, value) in [("init_r", initialRank), ("target_r", targetRank), ("deltaT", interval)] {
            try requirePositive(value, name)
        }
        guard targetRank <= initialRank else {
            throw PEFTError("target_r: expected at most init_r, which is \(initialRank), found \(targetRank)")
        }
        try requireProbability(loraDropout, "lora_dropout")
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] {
            try requirePositive(value, name)
            try requireProbability(value, name)
        }
        for (name, value) in [("tinit", firstSteps), ("tfinal", lastSteps)] where value < 0 {
            throw PEFTError("\(name): expected a whole number of steps, 0 or more, found \(value)")
        }
        guard penaltyWeight >= 0 else {
            throw PEFTError("orth_reg_weight: expected a number, 0 or more, found \(penaltyWeight)")
        }
        for (key, kept) in rankPattern?.kept ?? [:] where kept.count != initialRank {
            throw PEFTError("rank_pattern: expected init_r, \(initialRank), values for \(key), found \(kept.count)")
        }
    }

    /// The values of A, B and E.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        points.linears.reduce(0) { $0 + Double(rank(of: $1)) * Double($1.inFeatures + $1.outFeatures + 1) }
    }

    private func rank(of layer: Linear) -> Int {
        rankPattern?.kept[RankPattern.key(layer.path)].map { $0.count { $0 } } ?? initialRank
    }

    /// Makes A, B and E of every layer.
    ///
    /// - Throws: `PEFTError` when the pattern names a layer that is not selected; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try requireLayers(of: rankPattern, in: points)
        var attachment = Attachment(trainables: [], updates: [])
        var triplets: [AdaLoRATriplet] = []
        for layer in points.linears {
            let rank = rank(of: layer)
            func trained(_ name: String, _ shape: [Int], deviation: Double) throws -> Tensor {
                let values = try seed.normal("\(layer.path).\(name)", shape, deviation: deviation)
                return try attachment.train(adapterKey(layer.path, name), from: values, on: points.device)
            }
            let triplet = AdaLoRATriplet(
                path: layer.path,
                a: try trained("lora_A", [rank, layer.inFeatures], deviation: startsAtZero ? 0.02 : 1),
                b: try trained("lora_B", [layer.outFeatures, rank], deviation: startsAtZero ? 0.02 : 1),
                e: try trained("lora_E", [rank, 1], deviation: startsAtZero ? 0 : 1))
            let scale = (loraAlpha > 0 ? loraAlpha : Double(initialRank)) / (Double(initialRank) + 1e-5)
            triplets.append(triplet)
            attachment.updates.append((layer, AdaLoRAUpdate(triplet: triplet, scale: scale, dropout: loraDropout)))
        }
        if penaltyWeight > 0 {
            attachment.penalty = { [penaltyWeight, triplets] in
                let distances = try triplets.flatMap { try $0.distancesFromOrthogonality() }
                return try Tensor.stack(distances).mean() * penaltyWeight
            }
        }
        guard rankPattern == nil else { return attachment }
        let schedule = try AdaLoRASchedule(self, triplets)
        attachment.hook = schedule
        attachment.buffers = schedule.buffers
        attachment.export = { try schedule.exported() }
        return attachment
    }

    private func requireLayers(of pattern: RankPattern?, in points: AttachPoints) throws {
        let paths = Set(points.linears.map { RankPattern.key($0.path) })
        guard let other = pattern?.kept.keys.first(where: { !paths.contains($0) }) else { return }
        throw PEFTError("rank_pattern: \(other) belongs to no selected layer; expected <path of a layer>.lora_E")
    }
}

/// The trained tensors of a layer.
struct AdaLoRATriplet {
    let path: String
    /// `[r, in]`.
    let a: Tensor
    /// `[out, r]`.
    let b: Tensor
    /// `[r, 1]`.
    let e: Tensor

    /// `||A A^T - I||` and `||B^T B - I||`.
    func distancesFromOrthogonality() throws -> [Tensor] {
        let identity = try Tensor.eye(a.size(0), device: a.device)
        return [
            try (a.matmul(a.transposed()) - identity).norm(), try (b.transposed().matmul(b) - identity).norm(),
        ]
    }
}

/// `dW = s B (E * A)`.
struct AdaLoRAUpdate: LowRankUpdate {
    let triplet: AdaLoRATriplet
    let scale: Double
    let dropout: Double

    func factors() throws -> (down: Tensor, up: Tensor) { (try triplet.a * triplet.e, triplet.b) }
}
