import Torch

/// Chooses the layers that each step of IST trains, and keeps their scores.
///
/// What is drawn is a function of the seed, the step and the scores, which are buffers of the adapter: a resumed run
/// draws what an uninterrupted one would.
final class LayerSampler: TrainingHook {
    /// For each layer how much of its update counts.
    let gates: [Int: LayerGate]
    /// fp64 `[layers]`: the larger, the less a layer matters.
    let scores: Tensor
    /// int64 `[layers]`: 1 where the layer is trained in this step.
    let active: Tensor
    private let method: IST
    private let layers: [Int]
    /// The trained tensors of each layer.
    private let tensors: [[Tensor]]
    private let seed: Seed
    private var probe: LossProbe?

    init(_ method: IST, layers: [Int], _ attachment: Attachment, seed: Seed) throws {
        (self.method, self.layers, self.seed) = (method, layers, seed)
        gates = Dictionary(uniqueKeysWithValues: layers.map { ($0, LayerGate()) })
        tensors = layers.map { layer in
            let keys = attachment.updates.filter { $0.linear.layer == layer }.map { adapterKey($0.linear.path, "") }
            return attachment.trainables.filter { trainable in keys.contains { trainable.name.hasPrefix($0) } }
                .map(\.tensor)
        }
        scores = try Tensor.zeros([layers.count], dtype: .float64)
        active = try Tensor.ones([layers.count], dtype: .int64)
    }

    /// Scores need training rows, which only a trainer has.
    var requiresSchedule: Bool { true }

    func trainingBegins(totalSteps: Int, probe: LossProbe?) throws {
        guard probe != nil || !method.usesImportance || totalSteps <= method.scoreInterval else {
            throw PEFTError(
                "IST learns its scores from the loss of training rows; give trainingBegins(totalSteps:probe:) a probe, or "
                    + "set use_importance to false")
        }
        self.probe = probe
    }

    func stepBegins(_ step: Int) throws {
        if method.usesImportance, step > 0, step % method.scoreInterval == 0 {
            try changeScores(round: step / method.scoreInterval)
        }
        if step % method.updateInterval == 0 { try draw(step) }
        let flags: [Int] = try active.values()
        for (tensors, flag) in zip(tensors, flags) {
            for tensor in tensors { try tensor.requiringGrad(flag != 0) }
        }
    }

    func stepEnded(_ step: Int) throws {
        for tensor in tensors.flatMap({ $0 }) { try tensor.requiringGrad() }
    }

    /// Draws the layers of a step; those with low scores more often.
    private func draw(_ step: Int) throws {
        var stream = seed.stream("ist/update/\(step)")
        let values: [Double] = try scores.values()
        let weights = method.usesImportance ? values.map { sigmoid(-$0) } : values.map { _ in 1 }
        let chosen = Set(stream.choice(method.updateLayers ?? max(1, layers.count / 4), weights: weights))
        try withoutGrad { try active.copy(from: Tensor(layers.indices.map { chosen.contains($0) ? 1 : 0 })) }
    }

    /// Probes damped sets of layers on one batch and changes the scores by what they cost.
    private func changeScores(round: Int) throws {
        let values: [Double] = try scores.values()
        let probes = try damped(round: round, scores: values).map { set in
            defer { for index in set { gates[layers[index]]?.factor = 1 } }
            for index in set { gates[layers[index]]?.factor = method.scoreDamping }
            return (damped: set, loss: try probe?.loss(method.scoreRows, round) ?? 0)
        }
        try withoutGrad { try scores.copy(from: Tensor(method.changed(values, by: probes))) }
    }

    /// Different sets of layers to damp; those with high scores more often.
    private func damped(round: Int, scores: [Double]) -> [[Int]] {
        var stream = seed.stream("ist/score/\(round)")
        let count = method.scoreLayers ?? max(1, layers.count / 2)
        var sets: [[Int]] = []
        // There may be fewer different sets than are asked for, and rare ones may never be drawn.
        for _ in 0..<(100 * method.scoreProbes) where sets.count < method.scoreProbes {
            let set = stream.choice(count, weights: scores.map(sigmoid)).sorted()
            if !sets.contains(set) { sets.append(set) }
        }
        return sets
    }
}

extension RandomStream {
    /// Indices drawn one after the other with chances in proportion to the weights, none twice.
    package mutating func choice(_ count: Int, weights: [Double]) -> [Int] {
        var left = Array(weights.indices)
        return (0..<min(count, weights.count)).map { _ in
            var rest = uniform() * left.reduce(0) { $0 + weights[$1] }
            // Rounding may leave a little behind the last.
            let place = left.indices.first { (rest -= weights[left[$0]], rest < 0).1 } ?? left.count - 1
            return left.remove(at: place)
        }
    }
}
