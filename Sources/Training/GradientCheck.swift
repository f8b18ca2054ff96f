import PEFT
import Torch

/// Sees to it that everything that is said to be trained is: a tensor that nothing depends on would be saved as it
/// began, without a word.
package struct GradientCheck {
    /// The steps whose gradients are looked at: a factor behind one that begins at zero has none before that one has
    /// moved.
    private static let steps = 3

    private var seen = 0
    private var hasMoved = false
    /// The trainables whose gradients were all zero so far.
    private var silent: [Int]?

    /// Begins to look.
    package init() {}

    /// Looks at the gradients of a step.
    ///
    /// - Parameters:
    ///   - adapter: What is trained.
    ///   - step: The step, from 1.
    ///   - learningRate: The step's; without one nothing moves.
    /// - Returns: A warning, or nil.
    /// - Throws: ``TrainingError`` when a trainable has no gradient at all.
    package mutating func check(_ adapter: Adapter, step: Int, learningRate: Double) throws -> String? {
        guard seen < Self.steps else { return nil }
        if silent == nil { try requireGradients(adapter, step: step) }
        // A method that trains its tensors in turns lets the others have none.
        silent = try (silent ?? Array(adapter.trainables.indices)).filter { index in
            guard adapter.trainables[index].tensor.requiresGrad else { return false }
            guard let gradient = adapter.trainables[index].tensor.grad else { return true }
            return try gradient.count == 0 || gradient.absolute().maximum().item(as: Double.self) == 0
        }
        if hasMoved || silent?.isEmpty == true { seen += 1 }
        if learningRate > 0 { hasMoved = true }
        guard seen == Self.steps, let silent, let first = silent.first else { return nil }
        return "\(silent.count) of \(adapter.trainables.count) trainable tensors have had gradients of zero only, the "
            + "first is \(adapter.trainables[first].name); they do not learn"
    }

    private func requireGradients(_ adapter: Adapter, step: Int) throws {
        let missing = adapter.trainables.filter { $0.tensor.requiresGrad && $0.tensor.grad == nil }.map(\.name)
        guard let first = missing.first else { return }
        throw TrainingError(
            "step \(step): \(missing.count) of \(adapter.trainables.count) trainable tensors get no gradient, the first "
                + "is \(first); the method does not use them in this model")
    }
}

extension Adapter {
    /// What to say when weights that the adapter changes are all zeros, as in a file that was not written to its end;
    /// nil when none is.
    ///
    /// - Throws: `TorchError` when an operator fails.
    package func zeroWeightNote() throws -> String? {
        func isZero(_ tensor: Tensor) throws -> Bool {
            try tensor.count == 0 || tensor.absolute().maximum().item(as: Double.self) == 0
        }
        let zeros = try withoutGrad {
            try updates.map(\.linear.weight).filter { weight in
                // Nearly always the first row tells.
                try isZero(weight.frozen.selected(0, 0)) && isZero(weight.frozen)
            }
        }
        guard let first = zeros.first else { return nil }
        return "\(zeros.count) of the \(updates.count) adapted weights are all zeros, the first is \(first.path); look "
            + "whether the model's file is whole"
    }
}
