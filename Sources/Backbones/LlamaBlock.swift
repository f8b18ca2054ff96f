import Torch

/// One block: attention and MLP, each on normalised input and added to the stream.
final class LlamaBlock: TransformerBlock {
    let path: String
    let layer: Int
    /// Attention as a whole.
    let attentionSublayer: Sublayer
    /// The MLP as a whole.
    let mlpSublayer: Sublayer
    private let selfAttention: LlamaAttention
    private let gatedMLP: LlamaMLP
    private let inputNorm: RMSNorm
    private let postAttentionNorm: RMSNorm

    init(_ configuration: LlamaConfiguration, layer: Int, _ weights: LlamaWeights) throws {
        path = "model.layers.\(layer)"
        self.layer = layer
        selfAttention = try LlamaAttention(configuration, layer: layer, path: path + ".self_attn", weights)
        gatedMLP = try LlamaMLP(configuration, layer: layer, path: path + ".mlp", weights)
        attentionSublayer = Sublayer(
            path: path + ".self_attn", role: .attention, layer: layer, width: configuration.hiddenSize)
        mlpSublayer = Sublayer(path: path + ".mlp", role: .mlp, layer: layer, width: configuration.hiddenSize)
        inputNorm = try weights.norm(
            path + ".input_layernorm", [configuration.hiddenSize], epsilon: configuration.rmsNormEps)
        postAttentionNorm = try weights.norm(
            path + ".post_attention_layernorm", [configuration.hiddenSize], epsilon: configuration.rmsNormEps)
    }

    var linears: [Linear] { selfAttention.linears + gatedMLP.linears }

    var attentionState: AttentionState { selfAttention.state }

    var parts: PackedDecoder.Block {
        PackedDecoder.Block(
            linears: linears, inputNorm: inputNorm.weight, attentionNorm: postAttentionNorm.weight,
            queryNorm: selfAttention.queryNorm?.weight, keyNorm: selfAttention.keyNorm?.weight)
    }

    var parameters: [Parameter] {
        let norms = [inputNorm.weight, postAttentionNorm.weight]
        return selfAttention.parameters + gatedMLP.linears.flatMap(\.parameters) + norms
    }

    func attention(_ states: Tensor, _ pass: BlockPass) throws -> Tensor {
        try attention(inputNorm(states, pass.context), stream: states, pass)
    }

    func mlp(_ states: Tensor, _ pass: BlockPass) throws -> Tensor {
        try mlp(postAttentionNorm(states, pass.context), stream: states, pass)
    }

    func callAsFunction(_ states: Tensor, _ pass: BlockPass) throws -> Tensor {
        let (stream, delta) = try self(states, adding: nil, pass)
        return try delta.map { try stream + $0 } ?? stream
    }

    /// Returns the stream, and what is still to be added to it.
    func callAsFunction(
        _ states: Tensor, adding delta: Tensor?, _ pass: BlockPass
    ) throws -> (states: Tensor, delta: Tensor?) {
        let input = try inputNorm(states, adding: delta, pass.context)
        let attended = try postAttentionNorm(
            input.sum, adding: attention(input.normed, stream: input.sum, pass), pass.context)
        let output = try mlp(attended.normed, stream: attended.sum, pass)
        guard pass.context.observer != nil else { return (attended.sum, output) }
        return (try pass.context.observed(attended.sum + output, path), nil)
    }

    private func attention(_ normed: Tensor, stream: Tensor, _ pass: BlockPass) throws -> Tensor {
        try attentionSublayer.adapted(selfAttention(normed, pass), from: normed, stream: stream, pass.context)
    }

    private func mlp(_ normed: Tensor, stream: Tensor, _ pass: BlockPass) throws -> Tensor {
        try mlpSublayer.adapted(gatedMLP(normed, pass.context), from: normed, stream: stream, pass.context)
    }
}

/// The gated MLP: `down(act(gate(x)) * up(x))`.
private final class LlamaMLP {
    private let gate: Linear
    private let up: Linear
    private let down: Linear
    private let path: String
    private let activation: LlamaConfiguration.Activation

    init(_ configuration: LlamaConfiguration, layer: Int, path: String, _ weights: LlamaWeights) throws {
        activation = configuration.activation
        let (hidden, inner) = (configuration.hiddenSize, configuration.intermediateSize)
        func projection(_ name: String, _ role: LinearRole, out: Int, in inputs: Int) throws -> Linear {
            try weights.linear(
                "\(path).\(name)", role, layer: layer, out: out, in: inputs, hasBias: configuration.mlpBias)
        }
        gate = try projection("gate_proj", .gate, out: inner, in: hidden)
        up = try projection("up_proj", .up, out: inner, in: hidden)
        down = try projection("down_proj", .down, out: hidden, in: inner)
        self.path = path
    }

    var linears: [Linear] { [gate, up, down] }

    func callAsFunction(_ input: Tensor, _ context: Context) throws -> Tensor {
        let inner = try Linear.outputs(of: [gate, up], for: input, context)
        let product =
            try activation == .silu ? swiglu(gate: inner[0], up: inner[1]) : activation(inner[0]) * inner[1]
        return try down(context.observed(product, path + ".act_fn"), context)
    }
}
