import Formats
import PEFT
import Torch

/// AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101): Adam with weight decay beside the gradient, as
/// `torch.optim.AdamW` computes it.
///
/// Moments are fp32. Each trainable's own learning-rate factor and choice of decayed elements count.
public final class AdamW {
    /// The settings that a step does not change.
    public struct Settings: Sendable {
        /// Decay rate of the mean of gradients.
        public var beta1 = 0.9
        /// Decay rate of the mean of squared gradients.
        public var beta2 = 0.999
        /// What is added to the root in the denominator.
        public var epsilon = 1e-8
        /// Decoupled weight decay.
        public var weightDecay = 0.0

        /// Makes the settings with their usual values.
        public init() {}
    }

    /// The settings.
    public let settings: Settings
    /// The steps taken.
    public private(set) var step = 0
    /// The steps in which each trainable had a gradient, by which its moments are corrected; fp32, as the operator
    /// reads them.
    private let counts: [Tensor]
    private let trainables: [Trainable]
    /// Means of gradients, in the order of the trainables.
    private let means: [Tensor]
    /// Means of squared gradients, in the same order.
    private let squares: [Tensor]
    /// Trainables by learning-rate factor: one fused call each.
    private let groups: [(factor: Double, members: [Int])]

    /// Makes an optimiser with moments of zero.
    ///
    /// - Throws: `TorchError` when memory is short.
    public init(_ trainables: [Trainable], settings: Settings = Settings()) throws {
        self.trainables = trainables
        self.settings = settings
        means = try trainables.map { try $0.tensor.detached().zerosLike() }
        squares = try trainables.map { try $0.tensor.detached().zerosLike() }
        counts = try trainables.map { try Tensor.zeros([], device: $0.tensor.device) }
        let factors = trainables.map(\.learningRateFactor)
        groups = Set(factors).sorted().map { factor in
            (factor, trainables.indices.filter { factors[$0] == factor })
        }
    }

    /// Changes the trainables by their gradients; those without one stay.
    ///
    /// - Parameter learningRate: The learning rate, before each trainable's own factor.
    /// - Throws: `TorchError` when an operator fails.
    public func step(learningRate: Double) throws {
        step += 1
        try withoutGrad {
            for group in groups {
                let members = group.members.filter { trainables[$0].tensor.grad != nil }
                guard !members.isEmpty else { continue }
                try decay(members, by: learningRate * group.factor * settings.weightDecay)
                try update(members, learningRate: learningRate * group.factor)
            }
        }
    }

    /// `p *= 1 - amount`, where the trainable says so.
    private func decay(_ members: [Int], by amount: Double) throws {
        guard amount != 0 else { return }
        for trainable in members.map({ trainables[$0] }) {
            switch trainable.decay {
            case .none: break
            case .all: try trainable.tensor.multiply(by: 1 - amount)
            case .only(let mask): try call("aten::mul_.Tensor", trainable.tensor, (mask * -amount) + 1)
            }
        }
    }

    private func update(_ members: [Int], learningRate: Double) throws {
        let tensors = members.map { trainables[$0].tensor }
        let counts = members.map { self.counts[$0] }
        try call("aten::_foreach_add_.Scalar", counts, 1)
        let (amsgrad, maximise, decay) = (false, false, 0.0)
        try call(
            "aten::_fused_adamw_", tensors, tensors.compactMap(\.grad), members.map { means[$0] },
            members.map { squares[$0] }, [Tensor](), counts, learningRate, settings.beta1,
            settings.beta2, decay, settings.epsilon, amsgrad, maximise)
    }

    // MARK: State

    /// The moments by name: `exp_avg.<trainable>` and `exp_avg_sq.<trainable>`, and `step.<trainable>` for its count.
    var state: KeyedList<Tensor> {
        var state = KeyedList<Tensor>()
        for (index, trainable) in trainables.enumerated() {
            state.appendIfNew(key: "exp_avg." + trainable.name, value: means[index])
            state.appendIfNew(key: "exp_avg_sq." + trainable.name, value: squares[index])
            state.appendIfNew(key: "step." + trainable.name, value: counts[index])
        }
        return state
    }

    /// Goes on after `step` steps, once ``state`` has been filled from a checkpoint.
    func resume(step: Int) { self.step = step }
}

/// Scales gradients down so that the norm of all of them together is at most a limit, as
/// `torch.nn.utils.clip_grad_norm_` does.
///
/// - Parameters:
///   - gradients: The gradients, changed in place.
///   - limit: The largest norm; 0 leaves the gradients as they are.
/// - Returns: The norm before.
/// - Throws: `TorchError` when an operator fails.
package func clipNorm(of gradients: [Tensor], to limit: Double) throws -> Double {
    guard !gradients.isEmpty else { return 0 }
    return try withoutGrad {
        let norms = try callTensors("aten::_foreach_norm.Scalar", gradients, 2)
        let norm: Float = try Tensor.stack(norms).norm().item()
        if limit > 0, norm.isFinite {
            // In fp32 and in torch's order of operations, so that the scaled gradients are the same bit for bit.
            let factor = min(1 / (norm + 1e-6) * Float(limit), 1)
            if factor < 1 { try call("aten::_foreach_mul_.Scalar", gradients, Double(factor)) }
        }
        return Double(norm)
    }
}
