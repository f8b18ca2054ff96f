import Formats
import PEFT
import Torch

extension LanguageModel {
    /// Trains an adapter of this model in a new run folder.
    ///
    /// - Parameters:
    ///   - adapter: What ``attach(_:_:seed:)`` made; it holds the trained values afterwards.
    ///   - data: The JSONL file to learn from; see ``Dataset``.
    ///   - evalData: A JSONL file of held-out rows.
    ///   - steps: Optimiser steps; nil: one pass over the data, or what `configure` says.
    ///   - output: The run folder, which is new or empty.
    ///   - showsProgress: Whether progress is written to standard error.
    ///   - configure: Changes the recipe's other settings.
    /// - Returns: What the run has come to.
    /// - Throws: What is wrong with the recipe, the data or the folder; ``TrainingError`` when the run cannot go on.
    @discardableResult
    public func train(
        _ adapter: Adapter, on data: String, evalData: String? = nil, steps: Int? = nil, output: String,
        showsProgress: Bool = true, configure: (inout Recipe) throws -> Void = { _ in }
    ) throws -> TrainingResult {
        var recipe = Recipe(model: name, data: data)
        recipe.evalData = evalData
        recipe.steps = steps
        try configure(&recipe)
        return try DistributedRun.run(resumes: false) { peers in
            try Trainer.run(in: output, peers, showsProgress: showsProgress) {
                try TrainingSetup(recipe, model: self, adapter: adapter)
            }
        }
    }
}
