import Backbones
import Torch

/// How much of its update a layer's adapters add: less than all while the layer is damped.
final class LayerGate {
    var factor = 1.0
}

/// LoRA's update behind a gate.
struct GatedLoRA: LowRankUpdate {
    let update: LoRAUpdate
    let gate: LayerGate

    var dropout: Double { update.dropout }
    var scale: Double { update.scale * gate.factor }
    func factors() throws -> (down: Tensor, up: Tensor) { try update.factors() }
}

/// DoRA's update, whose direction stands behind a gate.
struct GatedDoRA: WeightUpdate {
    let update: DoRAUpdate
    let gate: LayerGate

    var dropout: Double { update.dropout }

    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        try damped.output(for: input, of: linear, in: context)
    }

    func merged(into weight: Tensor) throws -> Tensor { try damped.merged(into: weight) }

    private var damped: DoRAUpdate {
        var update = update
        update.direction.scale *= gate.factor
        return update
    }
}
