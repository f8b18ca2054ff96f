import Backbones
import Formats
import Torch

/// IST: LoRA of which each step trains a sampled part of the layers, chosen by a learnt score. arXiv 2410.11772
///
/// Every layer `l` has a score `v_l`, 0 at first; the LARGER it is, the LESS the layer matters. A step trains N_u layers
/// drawn with weights `sigmoid(-v_l)`. Every few steps R sets of N_s layers, drawn with weights `p_l = sigmoid(v_l)`, are
/// damped in turn: their updates count `damping` times, and the loss of one batch of training rows tells what that
/// costs. With the reward `q_k = exp(-loss_k)` less the mean of all R, `v_l += eta q_k p_l (1 - p_l)` for each damped
/// layer.
///
/// What is trained is LoRA (or DoRA, by `use_dora`), and is saved as such.
public struct IST: Method {
    /// The value of `peft_type` in recipes; folders hold LoRA's.
    public static let peftType = "IST"
    /// The hyper-parameters.
    public static let fields: [Field<IST>] =
        LoRA.fields.map { $0.within(\.lora) } + [
            Field("update_layers", \.updateLayers, "layers trained in a step; null: a quarter of them"),
            Field("update_interval", \.updateInterval, "steps between draws of these layers"),
            Field("use_importance", \.usesImportance, "whether scores are learnt; else layers are drawn evenly (RST)"),
            Field("score_layers", \.scoreLayers, "layers damped in a probe; null: half of them"),
            Field("score_damping", \.scoreDamping, "what the updates of damped layers are multiplied by"),
            Field("score_probes", \.scoreProbes, "sets of damped layers for one change of the scores"),
            Field("score_lr", \.scoreRate, "learning rate of the scores"),
            Field("score_interval", \.scoreInterval, "steps between changes of the scores"),
            Field("score_rows", \.scoreRows, "training rows by which damped layers are judged"),
        ]

    /// The wrapped method.
    public var lora = LoRA()
    /// N_u.
    public var updateLayers: Int?
    /// The steps between draws of the trained layers.
    public var updateInterval = 1
    /// Whether scores are learnt.
    public var usesImportance = true
    /// N_s.
    public var scoreLayers: Int?
    /// The factor of damped updates.
    public var scoreDamping = 0.25
    /// R.
    public var scoreProbes = 3
    /// eta.
    public var scoreRate = 10.0
    /// The steps between changes of the scores.
    public var scoreInterval = 10
    /// The rows of a probe.
    public var scoreRows = 16

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try lora.validate()
        for (value, name) in [
            (updateLayers ?? 1, "update_layers"), (updateInterval, "update_interval"),
            (scoreLayers ?? 1, "score_layers"), (scoreInterval, "score_interval"), (scoreRows, "score_rows"),
        ] { try requirePositive(value, name) }
        try requirePositive(scoreRate, "score_lr")
        guard scoreProbes > 1 else {
            throw PEFTError("score_probes: expected at least 2, found \(scoreProbes); one reward less itself is zero")
        }
        guard scoreDamping >= 0, scoreDamping < 1 else {
            throw PEFTError("score_damping: expected a number in 0..<1, found \(scoreDamping)")
        }
    }

    /// LoRA with what the seed decides.
    public func resolved(seed: Seed) -> IST {
        var method = self
        method.lora = lora.resolved(seed: seed)
        return method
    }

    /// The values of LoRA's tensors in all layers.
    ///
    /// - Throws: `PEFTError` when a pattern is not valid.
    public func trainedCount(in points: AttachPoints) throws -> Double { try lora.trainedCount(in: points) }

    /// Makes LoRA's tensors, and the sampler that says which of them train in a step.
    ///
    /// - Throws: `PEFTError` when a layer does not fit or there are fewer layers than are to be drawn.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = try lora.attach(to: points, seed: seed)
        let layers = Set(attachment.updates.compactMap(\.linear.layer)).sorted()
        for (count, name) in [(updateLayers, "update_layers"), (scoreLayers, "score_layers")] {
            guard let count, count > layers.count else { continue }
            throw PEFTError("\(name): expected at most the \(layers.count) adapted layers, found \(count)")
        }
        let sampler = try LayerSampler(self, layers: layers, attachment, seed: seed)
        attachment.updates = attachment.updates.map { linear, update in
            guard let gate = linear.layer.flatMap({ sampler.gates[$0] }) else { return (linear, update) }
            switch update {
            case let update as LoRAUpdate: return (linear, GatedLoRA(update: update, gate: gate))
            case let update as DoRAUpdate: return (linear, GatedDoRA(update: update, gate: gate))
            default: return (linear, update)
            }
        }
        attachment.buffers["ist.scores"] = sampler.scores
        attachment.buffers["ist.active"] = sampler.active
        attachment.hook = sampler
        attachment.export = attachment.export ?? { [lora, saved = attachment.trainables.tensors] in (lora, saved) }
        return attachment
    }

    /// The scores after probes of one batch.
    ///
    /// - Parameters:
    ///   - scores: Those before.
    ///   - probes: The damped layers and the loss of each, in nats a token.
    package func changed(_ scores: [Double], by probes: [(damped: [Int], loss: Double)]) -> [Double] {
        let chances = scores.map(sigmoid)
        let rewards = probes.map { exponential(-$0.loss) }
        let mean = rewards.reduce(0, +) / Double(max(rewards.count, 1))
        var changed = scores
        for (probe, reward) in zip(probes, rewards) {
            for layer in probe.damped {
                changed[layer] += scoreRate * (reward - mean) * chances[layer] * (1 - chances[layer])
            }
        }
        return changed
    }
}

/// `1 / (1 + exp(-x))`.
func sigmoid(_ value: Double) -> Double { 1 / (1 + exponential(-value)) }
