import Formats

/// What a run has come to.
public struct TrainingResult: Sendable {
    /// The run folder.
    public var output = ""
    /// The folder of the trained adapter; nil where the run was interrupted.
    public var adapter: String?
    /// The optimiser steps taken, those before a resume included.
    public var steps = 0
    /// The optimiser steps of the whole run.
    public var totalSteps = 0
    /// The last reported training loss; nil when no step was taken.
    public var loss: Double?
    /// The loss on the held-out rows before the first step; nil without such rows, or when it was taken before a resume.
    public var evaluationBefore: Evaluation?
    /// The loss on the held-out rows after the last step; nil without such rows or when interrupted.
    public var evaluationAfter: Evaluation?
    /// The trained values.
    public var trainableParameters = 0
    /// The tokens seen.
    public var tokens = 0
    /// The seconds spent on steps, those before a resume included.
    public var seconds = 0.0
    /// The most memory that the process has had, in bytes.
    public var peakMemoryBytes = 0

    init(adapter: String? = nil, before: Evaluation?, after: Evaluation? = nil) {
        self.adapter = adapter
        evaluationBefore = before
        evaluationAfter = after
    }

    /// Whether a signal ended the run before its last step; it can be resumed.
    public var isInterrupted: Bool { adapter == nil }

    /// The result as an object, for `--json`.
    public var json: JSON {
        var object: KeyedList<JSON> = [
            "output": JSON(output), "adapter": adapter.map { JSON($0) } ?? .null, "steps": JSON(steps),
            "total_steps": JSON(totalSteps), "interrupted": JSON(isInterrupted),
            "trainable_parameters": JSON(trainableParameters), "tokens": JSON(tokens), "seconds": JSON(seconds),
            "peak_memory_bytes": JSON(peakMemoryBytes),
        ]
        if let loss { object["loss"] = JSON(loss) }
        if let evaluationBefore { object["eval_before"] = evaluationBefore.json() }
        if let evaluationAfter { object["eval_after"] = evaluationAfter.json() }
        return .object(object)
    }
}
