import Torch

/// What a linear layer does in its block.
public enum LinearRole: String, Sendable, CaseIterable {
    case query, key, value, output
    case gate, up, down
    /// The projection onto the vocabulary.
    case head
}

/// How the heads of attention lie in a projection: `count` runs of `dimension` features, head by head.
public struct HeadLayout: Hashable, Sendable {
    /// Which side of the weight is divided into heads.
    public enum Side: Sendable { case input, output }

    /// The number of heads; fewer for keys and values under grouped-query attention.
    public var count: Int
    /// The features of one head.
    public var dimension: Int
    /// Query, key and value projections have heads on their outputs, the output projection on its inputs.
    public var side: Side
}

/// An adapter's part in one linear layer.
///
/// It gets the layer's input and computes the adapted output; ``Linear/base(_:)`` gives the frozen product. So an
/// additive update, a scaling of the output and a replaced weight are all one call.
public protocol LinearAdapter: AnyObject {
    /// The adapted output of `linear`.
    ///
    /// - Parameters:
    ///   - input: `[..., in]`.
    ///   - linear: The layer with its frozen weight.
    ///   - context: The forward pass.
    /// - Returns: `[..., out]`.
    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor
    /// The same output as what is added to the frozen product, where it is no more than a low-rank product.
    ///
    /// Layers whose adapters say so are computed together, and faster; then ``output(for:of:in:)`` is not called.
    ///
    /// - Returns: The term, or nil (the default) where the adapter does anything else.
    func lowRankTerm(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm?
}

extension LinearAdapter {
    /// Nothing is known of the adapter.
    public func lowRankTerm(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm? { nil }
}

/// `y = x W^T + b` with a frozen weight and a slot for an adapter.
public final class Linear {
    /// The path in the checkpoint, such as `model.layers.3.self_attn.q_proj`.
    public let path: String
    /// `[out, in]`.
    public let weight: Parameter
    /// `[out]`, or nil.
    public let bias: Parameter?
    /// What the layer does in its block.
    public let role: LinearRole
    /// The index of the block, or nil outside the stack of blocks.
    public let layer: Int?
    /// How attention's heads lie in the weight, or nil.
    public let heads: HeadLayout?
    /// What adapts the layer, or nil.
    public var adapter: (any LinearAdapter)?

    /// Makes a layer over frozen tensors.
    public convenience init(
        path: String, weight: Tensor, bias: Tensor? = nil, role: LinearRole, layer: Int? = nil, heads: HeadLayout? = nil
    ) {
        self.init(
            path: path, weight: Parameter(path: path + ".weight", frozen: weight), bias: bias, role: role, layer: layer,
            heads: heads)
    }

    /// Makes a layer over a parameter, which may be packed.
    package init(
        path: String, weight: Parameter, bias: Tensor? = nil, role: LinearRole, layer: Int? = nil,
        heads: HeadLayout? = nil
    ) {
        self.path = path
        self.weight = weight
        self.bias = bias.map { Parameter(path: path + ".bias", frozen: $0) }
        self.role = role
        self.layer = layer
        self.heads = heads
    }

    /// The size of the input.
    public var inFeatures: Int { weight.frozen.size(1) }
    /// The size of the output.
    public var outFeatures: Int { weight.frozen.size(0) }
    /// The tensors of the layer.
    public var parameters: [Parameter] { [weight] + (bias.map { [$0] } ?? []) }

    /// Whether nothing stands in for weight and bias, and no gradient flows into them.
    package var isFrozen: Bool { weight.isFrozen && bias?.isFrozen != false }

    /// Whether the weight is multiplied as it is packed: where no gradient is wanted of what is rounded there.
    var multipliesPacked: Bool {
        weight.packed?.multipliesPacked == true && weight.replacement == nil && !isGradEnabled
    }

    /// The product without the adapter, `[..., in]` to `[..., out]`.
    ///
    /// - Throws: `TorchError` when the input's size differs.
    public func base(_ input: Tensor) throws -> Tensor { try product(input, bias) }

    /// The product with the weight alone, `[..., in]` to `[..., out]`.
    ///
    /// - Throws: `TorchError` when the input's size differs.
    public func unbiased(_ input: Tensor) throws -> Tensor { try product(input, nil) }

    private func product(_ input: Tensor, _ bias: Parameter?) throws -> Tensor {
        if multipliesPacked, let packed = weight.packed {
            let product = try packed.product(input)
            return try bias.map { try product + $0.value() } ?? product
        }
        let isPlain = weight.packed == nil
        guard weight.isFrozen, !isPlain || bias?.isFrozen != false, runsOwnKernels(input),
            weight.frozen.dtype == input.dtype
        else { return try linear(input, weight.value(), bias?.value()) }
        if let bias, !bias.isFrozen {
            // What is unpacked must not stay for the backward pass because the bias is trained.
            return try frozenLinears([FrozenLinear(weight: weight.frozen)], input)[0] + bias.value()
        }
        return try frozenLinears([FrozenLinear(weight: weight.frozen, bias: bias?.frozen)], input)[0]
    }

    /// The product as the model uses it, `[..., in]` to `[..., out]`.
    ///
    /// - Throws: `TorchError` when the input's size differs; what the adapter throws.
    public func callAsFunction(_ input: Tensor, _ context: Context) throws -> Tensor {
        guard !context.usesAdapters, parameters.contains(where: { $0.replacement != nil }) else {
            return try Linear.outputs(of: [self], for: input, context)[0]
        }
        return try parameters.pretrained { try Linear.outputs(of: [self], for: input, context)[0] }
    }
}
