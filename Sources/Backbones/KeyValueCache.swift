import Torch

/// The keys and values of the tokens seen so far, layer by layer, in memory taken once.
public final class KeyValueCache {
    /// The tokens that fit.
    public let capacity: Int
    /// The tokens that every layer holds.
    public private(set) var length = 0
    private var keys: [Tensor?]
    private var values: [Tensor?]

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
        guard length + new <= capacity else {
            throw ModelError("\(length + new) tokens do not fit into a key/value cache of \(capacity)")
        }
        let allKeys = try keys[layer] ?? store(like: key)
        let allValues = try values[layer] ?? store(like: value)
        (keys[layer], values[layer]) = (allKeys, allValues)
        try allKeys.narrowed(2, start: length, length: new).copy(from: key)
        try allValues.narrowed(2, start: length, length: new).copy(from: value)
        return (
            try allKeys.narrowed(2, start: 0, length: length + new),
            try allValues.narrowed(2, start: 0, length: length + new)
        )
    }

    /// Counts tokens that all layers have been given.
    func advance(by count: Int) { length += count }

    /// Forgets the tokens from `length` on.
    public func truncate(to length: Int) { self.length = min(self.length, max(0, length)) }

    private func store(like tensor: Tensor) throws -> Tensor {
        let shape = tensor.shape
        return try Tensor.zeros([shape[0], shape[1], capacity, shape[3]], dtype: tensor.dtype, device: tensor.device)
    }
}
