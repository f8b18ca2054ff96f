import Torch

/// Everything about one forward pass that is not the model or the tokens.
public struct Context {
    /// int64 `[batch, time]` or `[time]`; by default counted on from the cache.
    public var positions: Tensor?
    /// One more than the largest position, where `positions` is given.
    public var length: Int?
    /// bool `[batch, 1, time, keys]`, true where attended; by default causal.
    public var mask: Tensor?
    /// The rows of a packed sequence; nil where every row of the batch is one.
    public var segments: Segments?
    /// The keys and values of earlier tokens; new ones are added to it.
    public var cache: KeyValueCache?
    /// Which adapter each row uses, where several share the model.
    public var routing: Routing?
    /// Whether adapters act; off, the model is the pretrained one.
    public var usesAdapters = true
    /// Where dropout masks come from; nil outside training, when nothing is dropped.
    public var dropout: DropoutSource?

    /// Sees what each module computes, with the module's path, in the order of the pass; what it throws ends the pass.
    public var observer: ((_ module: String, _ output: Tensor) throws -> Void)?

    /// Makes a context: by default one of evaluation, causal, without a cache.
    public init(cache: KeyValueCache? = nil, usesAdapters: Bool = true, dropout: DropoutSource? = nil) {
        self.cache = cache
        self.usesAdapters = usesAdapters
        self.dropout = dropout
    }
}

extension Context {
    /// Shows a module's output to the observer.
    ///
    /// - Returns: The output.
    func observed(_ output: Tensor, _ module: @autoclosure () -> String) throws -> Tensor {
        try observer?(module(), output)
        return output
    }
}

/// Names the dropout masks of one forward pass, so that a resumed run drops what the uninterrupted one would.
public struct DropoutSource: Sendable {
    private let seed: Seed
    private let pass: String

    /// Makes the source of one forward pass.
    ///
    /// - Parameters:
    ///   - seed: The run's seed.
    ///   - pass: A name that no other forward pass of the run has, such as `12/3` for a step and its micro-batch.
    public init(seed: Seed, pass: String) {
        self.seed = seed
        self.pass = pass
    }

    /// Zeroes elements with the given probability and scales the others so that the mean stays.
    ///
    /// - Parameters:
    ///   - tensor: Any shape.
    ///   - probability: In `0..<1`.
    ///   - name: The place in the model, which names the mask.
    /// - Throws: `TorchError` when memory is short.
    public func apply(_ tensor: Tensor, probability: Double, name: String) throws -> Tensor {
        try mask(for: tensor, probability: probability, name: name).map { try tensor * $0 } ?? tensor
    }

    /// What ``apply(_:probability:name:)`` multiplies with: zero, or one over the probability of keeping.
    ///
    /// - Returns: The tensor's shape and dtype, or nil where nothing is dropped.
    /// - Throws: `TorchError` when memory is short.
    public func mask(for tensor: Tensor, probability: Double, name: String) throws -> Tensor? {
        guard probability > 0 else { return nil }
        let generator = try Generator(seed.stream("dropout/\(pass)/\(name)"), device: tensor.device)
        let mask = try Tensor.empty(tensor.shape, dtype: tensor.dtype, device: tensor.device)
        try call("aten::bernoulli_.float", mask, 1 - probability, generator)
        return try mask / (1 - probability)
    }
}
