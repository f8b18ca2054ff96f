import Formats
import Foundation
import Torch

/// Takes ranks away from the directions that matter least, over all layers, while AdaLoRA is trained.
///
/// After step `t` of `T` (from 1), with the values after the step and the step's gradients, for every value `p`:
/// `I = |p grad|`, `I' = beta1 I' + (1 - beta1) I`, `U = beta2 U + (1 - beta2) |I - I'|` while `t < T - tfinal`.
/// Direction `k` of a layer scores `I' U` of `E_k` plus the means of `I' U` over row `k` of `A` and column `k` of `B`.
/// In every `deltaT`-th step after `tinit`, and in step `T - tfinal`, `E` becomes zero for as many directions of the
/// model with the lowest scores as are beyond the budget; after that the same ones stay zero. Where scores are equal,
/// the earlier direction goes first.
final class AdaLoRASchedule: TrainingHook {
    private let method: AdaLoRA
    private let triplets: [AdaLoRATriplet]
    /// For each layer and each of A, B and E.
    private let importance: [[Tensor]]
    private let uncertainty: [[Tensor]]
    /// 1 where the last cut has left the direction, `[r, 1]` for each layer.
    private let kept: [Tensor]
    /// 1 after the last cut, `[1]`.
    private let isCut: Tensor
    private var totalSteps: Int?

    init(_ method: AdaLoRA, _ triplets: [AdaLoRATriplet]) throws {
        self.method = method
        self.triplets = triplets
        importance = try triplets.map { try [$0.a, $0.b, $0.e].map { try $0.zerosLike() } }
        uncertainty = try triplets.map { try [$0.a, $0.b, $0.e].map { try $0.zerosLike() } }
        kept = try triplets.map { try Tensor.ones($0.e.shape, device: $0.e.device) }
        isCut = try Tensor.zeros([1])
        totalSteps = method.totalSteps
    }

    let requiresSchedule = true

    /// What a resumed run needs.
    var buffers: KeyedList<Tensor> {
        var buffers: KeyedList<Tensor> = ["base_model.lora_cut": isCut]
        for (index, triplet) in triplets.enumerated() {
            for (name, place) in zip(["lora_A", "lora_B", "lora_E"], 0...) {
                buffers[adapterKey(triplet.path, name + ".importance")] = importance[index][place]
                buffers[adapterKey(triplet.path, name + ".uncertainty")] = uncertainty[index][place]
            }
            buffers[adapterKey(triplet.path, "lora_E.kept")] = kept[index]
        }
        return buffers
    }

    func trainingBegins(totalSteps: Int) throws {
        if let stated = method.totalSteps, stated != totalSteps {
            throw PEFTError(
                "total_step: the run has \(totalSteps) steps, found \(stated); leave total_step unset, or ask for as many"
            )
        }
        guard method.firstSteps < totalSteps - method.lastSteps else {
            throw PEFTError(
                "tinit and tfinal: expected together less than the \(totalSteps) steps of the run, found "
                    + "\(method.firstSteps) and \(method.lastSteps)")
        }
        self.totalSteps = totalSteps
    }

    func stepEnded(_ step: Int) throws {
        guard let totalSteps else { return }
        let (number, last) = (step + 1, totalSteps - method.lastSteps)
        try withoutGrad {
            if number < last { try updateScores() }
            if number > last {
                for (triplet, kept) in zip(triplets, kept) { try triplet.e.copy(from: triplet.e * kept) }
            } else if number == last || (number > method.firstSteps && number % method.interval == 0) {
                let masks = try self.masks(budget: method.budget(at: number, of: totalSteps, layers: triplets.count))
                for (triplet, mask) in zip(triplets, masks) { try triplet.e.copy(from: triplet.e * mask) }
                guard number == last else { return }
                for (kept, mask) in zip(kept, masks) { try kept.copy(from: mask) }
                try isCut.fill(1)
            }
        }
    }

    private func updateScores() throws {
        for (index, triplet) in triplets.enumerated() {
            for (place, value) in [triplet.a, triplet.b, triplet.e].enumerated() {
                guard let gradient = value.grad else { continue }
                let (mean, spread) = (importance[index][place], uncertainty[index][place])
                let now = try (value * gradient).absolute()
                try mean.multiply(by: method.beta1)
                try mean.add(now, times: 1 - method.beta1)
                try spread.multiply(by: method.beta2)
                try spread.add((now - mean).absolute(), times: 1 - method.beta2)
            }
        }
    }

    /// The scores of all directions, layer by layer.
    package func scores() throws -> [Float] {
        try triplets.indices.flatMap { index in
            let (a, b, e) = (try score(index, 0), try score(index, 1), try score(index, 2))
            return try (e.reshaped([-1]) + a.mean([1]) + b.mean([0])).values(as: Float.self)
        }
    }

    private func score(_ index: Int, _ place: Int) throws -> Tensor {
        try importance[index][place] * uncertainty[index][place]
    }

    /// 1 for the directions within the budget and 0 for the others, `[r, 1]` for each layer.
    private func masks(budget: Int) throws -> [Tensor] {
        let scores = try scores()
        var masks = [Float](repeating: 1, count: scores.count)
        let order = scores.indices.sorted { (scores[$0], $0) < (scores[$1], $1) }
        for index in order.prefix(max(0, scores.count - budget)) { masks[index] = 0 }
        var start = 0
        return try triplets.map { triplet in
            let rank = triplet.e.size(0)
            defer { start += rank }
            return try Tensor(Array(masks[start..<(start + rank)]), shape: [rank, 1]).to(device: triplet.e.device)
        }
    }

    /// The tensors without the directions that the last cut took.
    func exported() throws -> (method: any Method, tensors: KeyedList<Tensor>) {
        var (method, tensors) = (method, KeyedList<Tensor>())
        method.totalSteps = totalSteps
        let isPruned = try isCut.item(as: Float.self) == 1
        if isPruned { method.rankPattern = RankPattern() }
        for (triplet, kept) in zip(triplets, kept) {
            let flags: [Float] = try kept.values()
            let rows = isPruned ? flags.indices.filter { flags[$0] == 1 } : Array(flags.indices)
            let places = try Tensor(rows, shape: [rows.count]).to(device: triplet.e.device)
            method.rankPattern?.kept[RankPattern.key(triplet.path)] = flags.map { $0 == 1 }
            tensors[adapterKey(triplet.path, "lora_A")] = try triplet.a.detached().gathered(places)
            tensors[adapterKey(triplet.path, "lora_B")] = try triplet.b.detached().gathered(places, dimension: 1)
            tensors[adapterKey(triplet.path, "lora_E")] = try triplet.e.detached().gathered(places)
        }
        return (method, tensors)
    }
}

extension AdaLoRA {
    /// How many directions of the model keep their strength after a step.
    ///
    /// - Parameters:
    ///   - step: The step, from 1.
    ///   - totalSteps: The steps of the run.
    ///   - layers: The number of adapted layers.
    package func budget(at step: Int, of totalSteps: Int, layers: Int) -> Int {
        let (first, last) = (initialRank * layers, targetRank * layers)
        if step <= firstSteps { return first }
        if step >= totalSteps - lastSteps { return last }
        let left = 1 - Double(step - firstSteps) / Double(totalSteps - lastSteps - firstSteps)
        return Int(Double(first - last) * pow(left, 3) + Double(last))
    }
}
