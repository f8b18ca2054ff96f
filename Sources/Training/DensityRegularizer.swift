import Backbones
import Torch

/// DEFT (arXiv 2402.01911): a smooth share of the activations in the blocks' MLPs that are not zero.
///
/// `D = mean phi(a)` with `phi(a) = a^2 / (a^2 + eps)` over the features, the tokens of a sequence (what fills it up
/// left out), the sequences of the step and the blocks, for the output `a` of the activation function: of the gate,
/// where the MLP has one. It is worked out in fp32.
package struct DensityRegularizer: Regularizer {
    let weight: Double
    let epsilon: Double

    package let measures = ["density"]
    package let rowMeasures = ["density"]

    package init(weight: Double, epsilon: Double) {
        self.weight = weight
        self.epsilon = epsilon
    }

    package func prepare(_ pass: ForwardPass) { pass.tap(Self.modules(of: pass.model.backbone)) }

    package func results(of pass: ForwardPass) throws -> (terms: [LossTerm], measures: [Double]) {
        let weights = try Self.tokenWeights(pass.batch)
        let activation = pass.model.backbone.configuration.activation
        let gates = try Self.gates(pass)
        let densities = try gates.map { try density(of: $0, activation, weights: weights) }
        let sum = try Tensor.stack(densities).mean()
        let value: Double = try sum.detached().item()
        return ([LossTerm(sum, per: .sequences, weight: weight)], [value / pass.totals[.sequences]])
    }

    /// The exact share, in percent, of activations that are not zero, for each row.
    package func rows(of pass: ForwardPass) throws -> [[Double]] {
        let activation = pass.model.backbone.configuration.activation
        let gates = try Self.gates(pass)
        var shares = [Double](repeating: 0, count: pass.batch.starts.count)
        for gate in gates {
            let isSet = try callTensor("aten::ne.Scalar", activation(gate.to(dtype: .float32)), 0)
            let tokens: [Float] = try isSet.to(dtype: .float32).mean([1]).values()
            for (index, (start, length)) in zip(pass.batch.starts, pass.batch.lengths).enumerated() {
                let sum = tokens[start..<(start + length)].reduce(0.0) { $0 + Double($1) }
                shares[index] += 100 * sum / Double(max(length, 1) * gates.count)
            }
        }
        let each = max(1, shares.count / max(1, pass.examples.count))
        return pass.examples.indices.map { row in
            [shares[(row * each)..<((row + 1) * each)].reduce(0, +) / Double(each)]
        }
    }

    /// The modules whose outputs the activation function is applied to.
    private static func modules(of backbone: any Backbone) -> [String] {
        backbone.linears.filter { $0.role == .gate }.map(\.path)
    }

    /// What goes into the activation functions, `[rows * time, features]` a block.
    private static func gates(_ pass: ForwardPass) throws -> [Tensor] {
        let modules = modules(of: pass.model.backbone)
        let tokens = pass.batch.ids.count
        let outputs = try modules.compactMap { module in
            try pass.output(of: module).map { try $0.reshaped([-1, $0.size(-1)]) }
        }
        guard !outputs.isEmpty, outputs.allSatisfy({ $0.size(0) == tokens }) else {
            throw TrainingError(
                "density_weight: the activations of the blocks do not belong to the rows' tokens one by one; use a method "
                    + "without virtual tokens")
        }
        return outputs
    }

    /// For each token of the batch one over the tokens of its sequence, 0 where it only fills up: fp32 `[rows * time]`.
    private static func tokenWeights(_ batch: Batch) throws -> Tensor {
        var weights = [Float](repeating: 0, count: batch.ids.count)
        for (start, length) in zip(batch.starts, batch.lengths) {
            for token in start..<(start + length) { weights[token] = 1 / Float(length) }
        }
        return try Tensor(weights).to(device: batch.ids.device)
    }

    /// `phi` of activations, elementwise.
    package func smoothCount(_ activations: Tensor) throws -> Tensor {
        let squares = try activations.squared()
        return try squares / (squares + epsilon)
    }

    /// The sum over tokens, each with its weight, of the mean over features, for `[n, features]`.
    ///
    /// The gradient is made at once, so that of each block one tensor is kept and not one an operator.
    private func density(
        of gate: Tensor, _ activation: LlamaConfiguration.Activation, weights: Tensor
    ) throws -> Tensor {
        let needsGradient = isGradEnabled && gate.requiresGrad
        return try withCustomGradient("activation_density", inputs: [gate]) {
            try withGradEnabled(needsGradient) {
                let input = try gate.detached().to(dtype: .float32).requiringGrad(needsGradient)
                let means = try smoothCount(activation(input)).mean([1])
                let sum = try (means * weights).sum()
                let gradient = needsGradient ? try gradients(of: [sum], with: [input])[0] : nil
                let kept = try gradient?.to(dtype: gate.dtype)
                return (try sum.detached(), { incoming in [try kept.map { try $0 * incoming.to(dtype: $0.dtype) }] })
            }
        }
    }
}
