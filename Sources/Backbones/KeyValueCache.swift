import Torch

/// The keys and values of the tokens seen so far, layer by layer, in memory taken once.
public final class KeyValueCache {
    /// The tokens that fit.
    public let capacity: Int
    /// The tokens that every layer holds, virtual ones not counted.
    public private(set) var length = 0
    /// The virtual tokens in front of them.
    private(set) var leading = 0
    private var keys: [Tensor?]
    private var values: [Tensor?]
    /// The tokens' positions, `[batch or 1, length]`, once a pass has given some; until then the n-th is at n.
    private var positions: Tensor?

    /// Makes an empty cache for a model of `layers` blocks.
    public init(layers: Int, capacity: Int) {
        self.capacity = capacity
        keys = Array(repeating: nil, count: layers)
        values = Array(repeating: nil, count: layers)
    }

    /// Adds the keys and values of new tokens in one layer.
    ///
    /// - Parameters:
    ///   - key: `[batch, heads, new, dim]`.
    ///   - value: `[batch, heads, new, dim]`.
    /// - Returns: All keys and values of the layer, `[batch, heads, length + new, dim]`.
    /// - Throws: `ModelError` when the capacity is exceeded; `TorchError` when the shapes differ from earlier ones.
    func append(_ key: Tensor, _ value: Tensor, layer: Int) throws -> (key: Tensor, value: Tensor) {
        let new = key.size(2)
        // The first pass brings the virtual tokens along.
        let start = length == 0 ? 0 : leading + length
        guard start + new <= leading + capacity else {
            throw ModelError(
                "\(start + new - leading) tokens do not fit into a key/value cache of \(capacity)")
        }
        let allKeys = try keys[layer] ?? store(like: key)
        let allValues = try values[layer] ?? store(like: value)
        (keys[layer], values[layer]) = (allKeys, allValues)
        try allKeys.narrowed(2, start: start, length: new).copy(from: key)
        try allValues.narrowed(2, start: start, length: new).copy(from: value)
        return (
            try allKeys.narrowed(2, start: 0, length: start + new),
            try allValues.narrowed(2, start: 0, length: start + new)
        )
    }

    /// Whether the n-th token is at position n.
    var countsPositions: Bool { positions == nil }

    /// The memory of one layer, `[batch, heads, capacity, dim]` each, taken now where no token has been added.
    ///
    /// - Throws: `TorchError` when memory is short.
    func memory(layer: Int, heads: Int, dimension: Int) throws -> (keys: Tensor, values: Tensor) {
        if let key = keys[layer], let value = values[layer] { return (key, value) }
        let shape = [1, heads, capacity, dimension]
        let new = (keys: try Tensor.empty(shape), values: try Tensor.empty(shape))
        (keys[layer], values[layer]) = (new.keys, new.values)
        return new
    }

    /// Notes the positions of the tokens of a pass that begins, before they are counted.
    ///
    /// - Parameters:
    ///   - given: `[batch, time]`, or nil for those that follow on from the cache.
    ///   - time: How many tokens there are.
    ///   - device: Where the model lives.
    /// - Returns: The positions of all tokens with the new ones, `[batch or 1, length + time]`; nil where the n-th is
    ///   at n.
    /// - Throws: `TorchError` when the batch differs from earlier ones.
    func notePositions(_ given: Tensor?, time: Int, device: Device) throws -> Tensor? {
        guard given != nil || positions != nil else { return nil }
        let new = try given ?? Tensor.arange(length, length + time, device: device).unsqueezed(0)
        guard length > 0 else {
            positions = new
            return new
        }
        let old =
            try positions?.narrowed(1, start: 0, length: length)
            ?? Tensor.arange(0, length, device: device).unsqueezed(0)
        let rows = max(old.size(0), new.size(0))
        let all = try Tensor.concatenate(
            [old.expanded([rows, -1]), new.expanded([rows, -1])], dimension: 1)
        positions = all
        return all
    }

    /// Says how many virtual tokens the first pass brings, before it adds anything.
    func begin(leading: Int) { self.leading = leading }

    /// Counts tokens that all layers have been given.
    func advance(by count: Int) { length += count }

    /// Forgets the tokens from `length` on.
    public func truncate(to length: Int) {
        self.length = min(self.length, max(0, length))
        if self.length == 0 { leading = 0 }
    }

    /// Forgets all rows of the batch but some.
    ///
    /// - Parameter rows: int64, the rows that stay, in their new order.
    /// - Throws: `TorchError` when there is no such row.
    public func keep(rows: Tensor) throws {
        func kept(_ tensor: Tensor?) throws -> Tensor? {
            guard let tensor else { return nil }
            let chosen = try tensor.narrowed(2, start: 0, length: leading + length).gathered(rows)
            let result = try store(like: chosen)
            try result.narrowed(2, start: 0, length: leading + length).copy(from: chosen)
            return result
        }
        for layer in keys.indices {
            keys[layer] = try kept(keys[layer])
            values[layer] = try kept(values[layer])
        }
        if let all = positions, all.size(0) > 1 { positions = try all.gathered(rows) }
    }

    private func store(like tensor: Tensor) throws -> Tensor {
        let shape = tensor.shape
        return try Tensor.empty(
            [shape[0], shape[1], leading + capacity, shape[3]], dtype: tensor.dtype, device: tensor.device)
    }
}
