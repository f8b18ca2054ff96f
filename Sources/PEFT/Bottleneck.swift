import Backbones
import Torch

/// A network `scale * (U f(D h + c_D) + c_U)` beside or behind a sublayer, or on a stream; through masks it is the sum of
/// such over branches that share weights and biases, the upper bias added once.
final class Bottleneck: SublayerAdapter {
    static let (downName, upName) = ("adapter_down", "adapter_up")

    /// One of the two linear maps.
    private struct Side {
        /// `[out, in]`.
        let weight: Tensor
        /// `[out]`.
        let bias: Tensor
        /// bool `[branches, out, in]`, or nil for one branch that sees all.
        let masks: Tensor?
    }

    private let down: Side
    private let up: Side
    private let settings: BottleneckSettings
    private let path: String
    private let input: BottleneckInput

    /// Makes the tensors that are trained.
    ///
    /// - Parameters:
    ///   - settings: The width, the activation, the scale and the dropout.
    ///   - path: What the tensors' keys and the dropout are named by.
    ///   - hidden: The features of what it reads and gives.
    ///   - input: What it reads of a sublayer.
    ///   - attachment: What the tensors are added to.
    ///   - device: Where the model lives.
    ///   - start: The first values of a weight, by its name and shape.
    ///   - masks: Its masks.
    init(
        _ settings: BottleneckSettings, at path: String, of hidden: Int, reading input: BottleneckInput,
        in attachment: inout Attachment, on device: Device, start: (String, [Int]) throws -> Tensor,
        masks: (String, [Int]) throws -> Tensor? = { _, _ in nil }
    ) throws {
        func side(_ name: String, _ shape: [Int]) throws -> Side {
            let key = adapterKey(path, name)
            let masks = try masks(name, shape)
            let weight = try attachment.train(
                key + ".weight", from: start(name, shape), on: device, decay: masks.map(Trainable.Decay.seen) ?? .all)
            let bias = try attachment.train(key + ".bias", from: Tensor.zeros([shape[0]]), on: device)
            return Side(weight: weight, bias: bias, masks: masks)
        }
        let width = try settings.width(hidden)
        down = try side(Self.downName, [width, hidden])
        up = try side(Self.upName, [hidden, width])
        (self.settings, self.path, self.input) = (settings, path, input)
    }

    func output(
        _ output: Tensor, from input: Tensor, stream: Tensor, of sublayer: Sublayer, in context: Context
    ) throws -> Tensor {
        let source =
            switch self.input {
            case .output: output
            case .sum: try stream + output
            case .input: input
            case .stream: stream
            }
        return try output + self(source, context)
    }

    /// What it makes of `[..., hidden]`, in the same shape and dtype.
    func callAsFunction(_ source: Tensor, _ context: Context) throws -> Tensor {
        let dtype = source.dtype
        let (weights, biases) = try stacked()
        let inner = try settings.nonLinearity(linear(source, weights.down.to(dtype: dtype), biases.to(dtype: dtype)))
        let kept = try context.dropout?.apply(inner, probability: settings.dropout, name: path + ".adapter") ?? inner
        let change = try linear(kept, weights.up.to(dtype: dtype), up.bias.to(dtype: dtype))
        return try settings.scale == 1 ? change : change * settings.scale
    }

    /// All branches as one bottleneck of their common width: `[branches * r, in]`, `[out, branches * r]`, and the lower
    /// biases, which all branches share.
    private func stacked() throws -> (weights: (down: Tensor, up: Tensor), biases: Tensor) {
        guard let downMasks = down.masks, let upMasks = up.masks else {
            return ((down.weight, up.weight), down.bias)
        }
        let (branches, width) = (downMasks.size(0), down.weight.size(0))
        let lower = try (down.weight * downMasks).reshaped([branches * width, -1])
        let upper = try (up.weight * upMasks).permuted([1, 0, 2]).reshaped([up.weight.size(0), -1])
        return ((lower, upper), try down.bias.unsqueezed(0).expanded([branches, -1]).reshaped([-1]))
    }
}
