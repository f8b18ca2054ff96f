import Torch

/// Which keys each token of a forward pass sees; made once and shared by all layers with the same window.
final class AttentionMasks {
    private let time: Int
    private let past: Int
    private let given: Tensor?
    private let positions: (queries: Tensor, keys: Tensor)?
    /// The tokens of each row of a packed sequence, of which each sees its own row; nil for any other.
    let segments: [Int]?
    private let device: Device
    private var rows: [Int: AttentionMasks] = [:]
    private var shifted: [Int: AttentionMasks] = [:]
    private var windows: [Int: Tensor] = [:]
    /// By window, 0 for none.
    private var biases: [Int: Tensor] = [:]
    private var causal: Tensor?

    /// Describes a pass.
    ///
    /// - Parameters:
    ///   - time: How many tokens there are.
    ///   - past: How many keys the cache holds before them.
    ///   - given: The pass's own mask, see ``Context/mask``.
    ///   - positions: `[batch or 1, time]` and `[batch or 1, past + time]`; nil where the n-th key is at position n.
    ///   - segments: The rows of a packed sequence.
    ///   - device: Where the model lives.
    init(
        time: Int, past: Int = 0, given: Tensor? = nil, positions: (queries: Tensor, keys: Tensor)? = nil,
        segments: Segments? = nil, device: Device
    ) {
        self.time = time
        self.past = past
        self.given = given
        self.positions = positions
        self.segments = segments?.lengths
        self.device = device
    }

    /// The masks of one row of a packed sequence; rows of one length share theirs.
    func row(length: Int) -> AttentionMasks {
        if let known = rows[length] { return known }
        let masks = AttentionMasks(time: length, device: device)
        rows[length] = masks
        return masks
    }

    /// The masks of a layer with so many keys in front, at the first positions; layers with as many share theirs.
    func behind(_ prefix: Int) throws -> AttentionMasks {
        if let known = shifted[prefix] { return known }
        let front = try Tensor.arange(0, prefix, device: device).unsqueezed(0)
        let masks = AttentionMasks(
            time: time, past: past + prefix, given: try given?.widened(by: prefix),
            positions: try positions.map { queries, keys in
                let front = try front.expanded([keys.size(0), -1])
                return (queries, try Tensor.concatenate([front, keys], dimension: 1))
            }, device: device)
        shifted[prefix] = masks
        return masks
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
        let mask = try callTensor("aten::logical_and", given ?? causalMask(), visible(window))
        windows[window] = mask
        return (mask, false)
    }

    /// How many tokens each sees at most, where it sees all earlier ones of this pass but for the window; nil where the
    /// pass has a mask of its own or keys of earlier passes.
    func plainWindow(_ slidingWindow: Int?) -> Int? {
        guard given == nil, past == 0, time > 1 else { return nil }
        guard let slidingWindow, slidingWindow < time else { return time }
        return positions == nil ? slidingWindow : nil
    }

    /// The mask of a layer as what is added to scores: zero where attended, else the lowest finite number, so that a
    /// token that sees nothing gets no NaN.
    ///
    /// - Returns: A tensor that broadcasts to `[batch, heads, time, keys]`.
    func bias(slidingWindow: Int?, dtype: DType) throws -> Tensor {
        let window = slidingWindow ?? 0
        if let known = biases[window] { return known }
        let visible = try mask(slidingWindow: slidingWindow).tensor ?? causalMask()
        let lowest = dtype == .bfloat16 ? -0x1.fep127 : -Double(Float.greatestFiniteMagnitude)
        let bias = try Tensor.zeros(visible.shape, dtype: dtype, device: device)
        try call("aten::masked_fill_.Scalar", bias, callTensor("aten::logical_not", visible), lowest)
        biases[window] = bias
        return bias
    }

    /// Which keys are less than `window` positions behind each token.
    private func visible(_ window: Int) throws -> Tensor {
        // Row i is position past + i; it sees keys down to past + i - window + 1.
        guard let positions else { return try ones().upperTriangle(diagonal: past - window + 1) }
        // [batch, 1, time, 1] and [batch, 1, 1, keys]
        let oldest = try (positions.queries - (window - 1)).unsqueezed(1).unsqueezed(-1)
        return try callTensor("aten::ge.Tensor", positions.keys.unsqueezed(1).unsqueezed(1), oldest)
    }

    private func ones() throws -> Tensor { try Tensor.ones([time, past + time], dtype: .bool, device: device) }

    private func causalMask() throws -> Tensor {
        if let causal { return causal }
        let mask = try callTensor("aten::tril", ones(), past)
        causal = mask
        return mask
    }
}
