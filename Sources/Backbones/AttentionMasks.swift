import Torch

/// Which keys each token of a forward pass sees; made once and shared by all layers with the same window.
final class AttentionMasks {
    private let time: Int
    private let past: Int
    private let given: Tensor?
    private let device: Device
    private var windows: [Int: Tensor] = [:]
    private var causal: Tensor?

    init(time: Int, past: Int, given: Tensor?, device: Device) {
        self.time = time
        self.past = past
        self.given = given
        self.device = device
    }

    /// The mask of a layer, in the form that attention is fastest with.
    ///
    /// - Returns: A bool mask that broadcasts to `[batch, heads, time, keys]`, or nil with the flag for plain causal
    ///   attention, or neither where every token sees every key.
    func mask(slidingWindow: Int?) throws -> (tensor: Tensor?, isCausal: Bool) {
        let window = slidingWindow.flatMap { $0 < past + time ? $0 : nil }
        if given == nil && window == nil {
            if time == 1 { return (nil, false) }
            if past == 0 { return (nil, true) }
        }
        guard let window else { return (try given ?? causalMask(), false) }
        if let known = windows[window] { return (known, false) }
        // Row i is position past + i; it sees keys down to past + i - window + 1.
        let visible = try callTensor("aten::triu", ones(), past - window + 1)
        let mask = try callTensor("aten::logical_and", given ?? causalMask(), visible)
        windows[window] = mask
        return (mask, false)
    }

    private func ones() throws -> Tensor { try Tensor.ones([time, past + time], dtype: .bool, device: device) }

    private func causalMask() throws -> Tensor {
        if let causal { return causal }
        let mask = try callTensor("aten::tril", ones(), past)
        causal = mask
        return mask
    }
}
