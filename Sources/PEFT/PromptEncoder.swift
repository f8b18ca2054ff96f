import Backbones
import Torch

/// The network that P-tuning makes its vectors by: linear layers with ReLU between them, behind a bidirectional LSTM
/// over the vectors where there is one.
struct PromptEncoder {
    let network: PTuning.Network
    /// The features of a vector.
    let width: Int
    /// The width inside.
    let inner: Int
    /// The layers of the LSTM.
    let layers: Int
    /// The probability of zeroing an element between these.
    let dropout: Double

    /// A tensor as torch names it, and how far from zero it starts.
    typealias Part = (name: String, shape: [Int], bound: Double)

    /// All tensors, without the vectors.
    var shapes: [Part] {
        switch network {
        case .none: []
        case .mlp: linears([width, inner, inner, width])
        case .lstm: (0..<layers).flatMap(recurrent) + linears([2 * inner, 2 * inner, width])
        }
    }

    private func linears(_ sizes: [Int]) -> [Part] {
        zip(sizes, sizes.dropFirst()).enumerated().flatMap { index, size in
            let bound = 1 / Double(size.0).squareRoot()
            return [
                ("mlp_head.\(2 * index).weight", [size.1, size.0], bound),
                ("mlp_head.\(2 * index).bias", [size.1], bound),
            ]
        }
    }

    /// One layer of the LSTM, in both directions.
    private func recurrent(_ layer: Int) -> [Part] {
        let bound = 1 / Double(inner).squareRoot()
        let inputs = layer == 0 ? width : 2 * inner
        return ["l\(layer)", "l\(layer)_reverse"].flatMap { place in
            [
                ("lstm_head.weight_ih_\(place)", [4 * inner, inputs], bound),
                ("lstm_head.weight_hh_\(place)", [4 * inner, inner], bound),
                ("lstm_head.bias_ih_\(place)", [4 * inner], bound),
                ("lstm_head.bias_hh_\(place)", [4 * inner], bound),
            ]
        }
    }

    /// The vectors in front, `[n, width]`, of those that are trained and the network's tensors.
    func vectors(_ parts: [Tensor], _ context: Context?) throws -> Tensor {
        var values = parts[0]
        var linears = parts[1...]
        for layer in 0..<(network == .lstm ? layers : 0) {
            if layer > 0 {
                values =
                    try context?.dropout?.apply(values, probability: dropout, name: "p_tuning.lstm.\(layer)") ?? values
            }
            let state = try Tensor.zeros([2, 1, inner], device: values.device)
            let (hasBiases, isTraining, isBidirectional, isBatchFirst) = (true, false, true, true)
            values = try callTensors(
                "aten::lstm.input", values.unsqueezed(0), [state, state], Array(linears.prefix(8)), hasBiases, 1, 0.0,
                isTraining, isBidirectional, isBatchFirst)[0].squeezed(0)
            linears = linears.dropFirst(8)
        }
        for (index, position) in stride(from: linears.startIndex, to: linears.endIndex, by: 2).enumerated() {
            values = try linear(index > 0 ? relu(values) : values, linears[position], linears[position + 1])
        }
        return values
    }
}
