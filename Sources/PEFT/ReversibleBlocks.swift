import Backbones
import Torch

/// Two coupled streams: `y1 = lambda x1 + F(x2)`, `y2 = beta x2 + G(y1)`, from which the inputs are found again.
package struct ReversibleLayer {
    /// A function of a stream, in the stream's shape and dtype.
    package typealias Part = (_ stream: Tensor, _ pass: BlockPass) throws -> Tensor
    /// The streams in front of a layer or behind it.
    package typealias Streams = (first: Tensor, second: Tensor)

    let f: Part
    let g: Part
    let lambda: Double
    let beta: Double
    /// Whether what comes out is `(y2, y1)`.
    let isSwapped: Bool
    /// Every tensor that gets a gradient from F and G.
    let trained: [Tensor]

    /// The streams behind the layer.
    package func callAsFunction(_ x: Streams, _ pass: BlockPass) throws -> Streams {
        let first = try x.first * lambda + f(x.second, pass)
        let second = try x.second * beta + g(first, pass)
        return isSwapped ? (second, first) : (first, second)
    }

    /// The streams in front of the layer.
    package func inverse(_ output: Streams, _ pass: BlockPass) throws -> Streams {
        let y = isSwapped ? (first: output.second, second: output.first) : output
        let second = try (y.second - g(y.first, pass)) / beta
        return (try (y.first - f(second, pass)) / lambda, second)
    }

    /// The streams in front of the layer with the gradients of both and of the trained tensors, from those behind it.
    func backward(
        _ output: Streams, _ gradient: Streams, _ pass: BlockPass
    ) throws -> (input: Streams, gradient: Streams, trained: [Tensor?]) {
        let y = isSwapped ? (first: output.second, second: output.first) : output
        let dy = isSwapped ? (first: gradient.second, second: gradient.first) : gradient
        let throughG = try differentiated(g, at: y.first, dy.second, pass)
        let second = try (y.second - throughG.value) / beta
        let dFirst = try throughG.input.map { try dy.first + $0 } ?? dy.first
        let throughF = try differentiated(f, at: second, dFirst, pass)
        let first = try (y.first - throughF.value) / lambda
        let dSecond = try throughF.input.map { try dy.second * beta + $0 } ?? dy.second * beta
        let sums = try zip(throughG.trained, throughF.trained).map { a, b -> Tensor? in
            guard let a, let b else { return a ?? b }
            return try a + b
        }
        return ((first, second), (try dFirst * lambda, dSecond), sums)
    }

    /// A part's value without a record, and the gradients of its stream and of the trained tensors.
    private func differentiated(
        _ part: Part, at stream: Tensor, _ gradient: Tensor, _ pass: BlockPass
    ) throws -> (value: Tensor, input: Tensor?, trained: [Tensor?]) {
        try withGradEnabled(true) {
            let input = try stream.detached().requiringGrad()
            let value = try part(input, pass)
            let found = try gradients(of: [value], with: [input] + trained, gradOutputs: [gradient])
            return (try value.detached(), found[0], Array(found.dropFirst()))
        }
    }
}

/// Runs blocks as two coupled streams, and backwards from the streams behind the last: no activation is kept.
///
/// Both streams begin as the embedded tokens; their mean is what leaves the blocks. They are fp32, or wider where the
/// model is, because each layer backwards divides rounding errors by its factors.
package final class ReversibleBlocks: BlockExecution {
    /// The lower layers that are run backwards; the others compute the same and keep their activations.
    package let reversible: Int
    /// After so many layers the streams are kept, so that errors do not grow over all layers.
    package let interval: Int
    /// A layer for a block.
    package let layer: (any TransformerBlock) throws -> ReversibleLayer

    init(reversible: Int, interval: Int, layer: @escaping (any TransformerBlock) throws -> ReversibleLayer) {
        self.reversible = reversible
        self.interval = min(interval, max(reversible, 1))
        self.layer = layer
    }

    package func run(_ blocks: [any TransformerBlock], _ states: Tensor, _ pass: BlockPass) throws -> Tensor {
        let streams = try self.streams(blocks, states, pass)
        return try ((streams.first + streams.second) * 0.5).to(dtype: states.dtype)
    }

    /// Both streams behind the last block.
    package func streams(
        _ blocks: [any TransformerBlock], _ states: Tensor, _ pass: BlockPass
    ) throws -> ReversibleLayer.Streams {
        let layers = try blocks.map(layer)
        let start = try states.dtype == .float64 ? states : states.to(dtype: .float32)
        var streams = (first: start, second: start)
        // A cache would get its keys twice, and an observer see everything twice.
        let isTraining = isGradEnabled && pass.context.cache == nil && pass.context.observer == nil
        let kept = isTraining ? min(reversible, layers.count) : 0
        for begin in stride(from: 0, to: kept, by: interval) {
            streams = try reversed(layers[begin..<min(begin + interval, kept)], streams, pass)
        }
        for layer in layers[kept...] { streams = try layer(streams, pass) }
        return streams
    }

    package func memory(blocks: Int, width: Int) -> BlockMemory {
        let count = min(reversible, blocks)
        return BlockMemory(recomputed: count, keptBytes: (count + interval - 1) / interval * 2 * max(width, 4))
    }

    /// Layers of which only the streams behind the last are kept.
    private func reversed(
        _ layers: ArraySlice<ReversibleLayer>, _ streams: ReversibleLayer.Streams, _ pass: BlockPass
    ) throws -> ReversibleLayer.Streams {
        let inputs = [streams.first, streams.second] + layers.flatMap(\.trained)
        let count = inputs.count
        let outputs = try withCustomGradient("reversible blocks", inputs: inputs) {
            var end = (first: try streams.first.detached(), second: try streams.second.detached())
            for layer in layers { end = try layer(end, pass) }
            return (
                [end.first, end.second],
                { [end] incoming in
                    guard let known = incoming.compactMap({ $0 }).first else {
                        return Array(repeating: nil, count: count)
                    }
                    var gradient = (
                        first: try incoming[0] ?? known.zerosLike(), second: try incoming[1] ?? known.zerosLike()
                    )
                    var (streams, trained): (ReversibleLayer.Streams, [Tensor?]) = (end, [])
                    for layer in layers.reversed() {
                        let below = try layer.backward(streams, gradient, pass)
                        (streams, gradient) = (below.input, below.gradient)
                        trained = below.trained + trained
                    }
                    return [gradient.first, gradient.second] + trained
                }
            )
        }
        return (outputs[0], outputs[1])
    }
}
