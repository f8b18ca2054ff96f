import Formats

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// A run that had to stop because a loss or a gradient is no finite number.
///
/// Nothing of the step is in the adapter: its values are those before the step. ``RunLayout/failure`` holds what is
/// needed to see it again.
public struct TrainingFailure: Error, CustomStringConvertible, Sendable {
    /// The step that could not be taken, from 1.
    public let step: Int
    /// The first module of the forward pass whose output is not finite, or the last whose gradient is not; nil where no
    /// single one is to blame.
    public let module: String?
    /// The weight or trainable tensor that is to blame, or whose gradient is not finite; nil where the numbers outgrow
    /// the dtype.
    public let tensor: String?
    /// The lines in the data of the rows with which it happens, each by itself; all of a forward pass where none alone
    /// does it.
    public let lines: [Int]
    /// Those rows by their numbers in the data set.
    let rows: [Int]
    /// One sentence: what, where, why, what to do.
    public let description: String
}

extension TrainingFailure {
    /// Writes what is needed to see it again: step, rows with their tokens, seed, recipe, and the newest checkpoint, which
    /// a resumed run would go on from.
    ///
    /// - Parameters:
    ///   - layout: The run folder.
    ///   - recipe: The run's.
    ///   - rows: The rows of ``lines``.
    /// - Throws: `FormatError` when the file cannot be written.
    func write(to layout: RunLayout, _ recipe: Recipe, rows: [Example]) throws {
        let checkpoint = try layout.checkpoints().last?.path
        let json: JSON = [
            "error": JSON(description), "step": JSON(step), "module": module.map { JSON($0) } ?? .null,
            "tensor": tensor.map { JSON($0) } ?? .null, "seed": JSON(recipe.seed), "data": JSON(recipe.data),
            "rows": JSON(
                rows.map { row in
                    [
                        "line": JSON(row.line), "ids": JSON(row.ids.map { JSON($0) }),
                        "supervised": JSON(row.supervised.map { JSON($0) }),
                    ]
                }),
            "checkpoint": checkpoint.map { JSON($0) } ?? .null, "recipe": recipe.json,
        ]
        try AtomicFile.write(json.pythonText(indent: 2) + "\n", to: layout.failure)
    }
}

extension RunLayout {
    /// What is needed to repeat a failure, where the run ended in one.
    public var failure: String { joined(path, "failure.json") }

    /// Forgets the failure of an earlier attempt.
    func removeFailure() { try? FileManager.default.removeItem(atPath: failure) }
}
