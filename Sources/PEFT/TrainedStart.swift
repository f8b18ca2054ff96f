import Formats
import Torch

extension Attachment {
    /// Adds a tensor that is trained.
    ///
    /// - Parameters:
    ///   - key: The key in the adapter's file, such as ``adapterKey(_:_:)`` makes.
    ///   - values: What it starts as.
    ///   - device: Where the model lives.
    ///   - learningRateFactor: What the learning rate is multiplied by.
    ///   - decay: Which elements weight decay shrinks.
    /// - Returns: The leaf that gets the gradient, fp32.
    /// - Throws: `TorchError` when memory is short.
    mutating func train(
        _ key: String, from values: Tensor, on device: Device, learningRateFactor: Double = 1,
        decay: Trainable.Decay = .all
    ) throws -> Tensor {
        var made = try Trainable(key, values, device: device)
        made.learningRateFactor = learningRateFactor
        made.decay = decay
        trainables.append(made)
        return made.tensor
    }
}

extension [Trainable] {
    /// The tensors by their keys, as they are saved.
    var tensors: KeyedList<Tensor> {
        var tensors = KeyedList<Tensor>()
        for trainable in self { tensors[trainable.name] = trainable.tensor }
        return tensors
    }
}

extension Seed {
    /// Numbers drawn evenly within a bound from the stream of a name; zeros where the bound is 0.
    func uniform(_ name: String, _ shape: [Int], within bound: Double) throws -> Tensor {
        var stream = self.stream(name)
        return try bound > 0 ? Tensor.uniform(shape, in: -bound..<bound, from: &stream) : Tensor.zeros(shape)
    }

    /// Numbers drawn around zero from the stream of a name.
    func normal(_ name: String, _ shape: [Int], deviation: Double = 1) throws -> Tensor {
        var stream = self.stream(name)
        return try Tensor.normal(shape, standardDeviation: deviation, from: &stream)
    }

    /// The seed that a setting names by the 64 bits of a whole number; this one where it names none.
    func replaced(by setting: Int?) -> Seed { setting.map { Seed(UInt64(bitPattern: Int64($0))) } ?? self }
}

extension Method {
    /// The method with the seed written down in a setting that leaves it open.
    func writing(_ seed: Seed, in setting: WritableKeyPath<Self, Int?>) -> Self {
        var method = self
        method[keyPath: setting] = self[keyPath: setting] ?? Int(truncatingIfNeeded: seed.value)
        return method
    }
}
