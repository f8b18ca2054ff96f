import Torch

extension Linear {
    /// The outputs of layers that share an input, as the model uses them.
    ///
    /// Where all weights are frozen, packed or not, and no adapter does more than add a low-rank product, the layers are
    /// computed together.
    ///
    /// - Parameters:
    ///   - layers: The layers, at least one.
    ///   - input: `[..., in]`.
    ///   - context: The forward pass.
    /// - Returns: `[..., out]` for each layer.
    /// - Throws: `TorchError` when the input's size differs; what adapters throw.
    static func outputs(of layers: [Linear], for input: Tensor, _ context: Context) throws -> [Tensor] {
        if let together = try frozen(layers, input, context) {
            return try zip(layers, frozenLinears(together, input)).map { try context.observed($1, $0.path) }
        }
        return try layers.map { layer in
            guard let adapter = layer.adapter, context.usesAdapters else {
                return try context.observed(layer.base(input), layer.path)
            }
            return try context.observed(adapter.output(for: input, of: layer, in: context), layer.path)
        }
    }

    /// The layers as what is multiplied and added, or nil where one of them is more than that.
    private static func frozen(_ layers: [Linear], _ input: Tensor, _ context: Context) throws -> [FrozenLinear]? {
        guard runsOwnKernels(input) else { return nil }
        var parts: [FrozenLinear] = []
        for layer in layers {
            guard layer.isFrozen, layer.weight.frozen.dtype == input.dtype, !layer.multipliesPacked else { return nil }
            var part = FrozenLinear(weight: layer.weight.frozen, bias: layer.bias?.frozen)
            if let adapter = layer.adapter, context.usesAdapters {
                guard let term = try adapter.lowRankTerm(for: input, of: layer, in: context) else { return nil }
                part.term = term
            }
            parts.append(part)
        }
        return parts
    }
}
