import Torch

/// Unmasks scalars between the backward pass and the step, and clears the gradients of all others.
final class Unmasking: TrainingHook {
    private let method: ID3
    private let copies: [Trainable]
    /// bool, one of the shape of each trained tensor: the scalars that are trained.
    let masks: [Tensor]
    private let seed: Seed
    private var horizon: Int

    /// Closes masks over all trained tensors; decay acts where they are open.
    init(_ method: ID3, of attachment: inout Attachment, _ seed: Seed) throws {
        masks = try attachment.trainables.map {
            try Tensor.zeros($0.tensor.shape, dtype: .bool, device: $0.tensor.device)
        }
        for (index, mask) in masks.enumerated() {
            if case .all = attachment.trainables[index].decay { attachment.trainables[index].decay = .only(mask) }
            attachment.buffers[attachment.trainables[index].name + ".unmasked"] = mask
        }
        (self.method, copies, self.seed) = (method, attachment.trainables, seed)
        horizon = method.maxSteps ?? 1
    }

    var requiresSchedule: Bool { method.maxSteps == nil }

    func trainingBegins(totalSteps: Int) throws { horizon = method.maxSteps ?? max(totalSteps, 1) }

    func gradientsAreReady(_ step: Int) throws {
        try withoutGrad {
            let count = self.count(at: step)
            if method.rule == .anew { for mask in masks { try mask.fill(0) } }
            if count > 0 {
                for (mask, chosen) in zip(masks, try topEntries(count, of: scores())) {
                    try call("aten::logical_or_", mask, chosen)
                }
            }
            for (copy, mask) in zip(copies, masks) {
                if let gradient = copy.tensor.grad { try call("aten::mul_.Tensor", gradient, mask) }
            }
        }
    }

    /// The scalars that a step unmasks: as even a share of the budget as there is, the larger ones first.
    private func count(at step: Int) -> Int {
        switch method.rule {
        case .increment, .anew:
            guard step < horizon else { return method.rule == .anew ? method.budget / horizon : 0 }
            let (base, rest) = method.budget.quotientAndRemainder(dividingBy: horizon)
            return step < rest ? base + 1 : base
        case .once, .smallest, .random: return step == 0 ? method.budget : 0
        }
    }

    /// The scores of all scalars, negative infinity for those that are unmasked.
    private func scores() throws -> [Tensor] {
        try zip(copies, masks).map { copy, mask in
            try callTensor("aten::masked_fill.Scalar", score(of: copy), mask, -Double.infinity)
        }
    }

    private func score(of copy: Trainable) throws -> Tensor {
        switch method.rule {
        case .smallest: return try copy.tensor.absolute().negated()
        case .random:
            let generator = try Generator(seed.stream("id3/" + copy.name), device: copy.tensor.device)
            let scores = try copy.tensor.detached().zerosLike()
            return try callTensor("aten::uniform_", scores, 0.0, 1.0, generator)
        case .increment, .once, .anew:
            // As the logarithm, for powers that no number has room for; zero has one all the same.
            let gradient = try copy.tensor.grad?.absolute() ?? copy.tensor.zerosLike()
            if method.exponent == 0 { return gradient }
            let size = try (copy.tensor.absolute() + method.epsilon).log()
            return try callTensor("aten::clamp_min", gradient, 1e-38).log() - size * method.exponent
        }
    }
}
