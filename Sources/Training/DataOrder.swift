import Torch

/// Which rows each optimiser step of a run takes; a function of seed and step, so that there is no position to save.
///
/// What a step takes does not depend on how its rows are laid out in forward passes, nor on how many processes share
/// them: `batch_size * gradient_accumulation_steps` rows, whatever happens. See ``StepPlan``.
package struct DataOrder: Sendable {
    private let epochRows: EpochRows
    private let rowsPerStep: Int
    private var epoch = -1
    private var order: [Int] = []

    /// The rows of an epoch.
    private var count: Int { epochRows.count }

    /// Lays out a run, of which each step takes `rowsPerStep` rows, the last of an epoch what is left.
    package init(_ epochRows: EpochRows, rowsPerStep: Int) {
        self.epochRows = epochRows
        self.rowsPerStep = rowsPerStep
    }

    /// Lays out a run over `count` rows of which an epoch takes each once.
    package init(seed: Seed, count: Int, rowsPerStep: Int) {
        self.init(EpochRows(count: count, seed: seed), rowsPerStep: rowsPerStep)
    }

    /// The optimiser steps of one pass over the data.
    package var stepsPerEpoch: Int { (count + rowsPerStep - 1) / rowsPerStep }

    /// The rows of a step, counted from 0.
    package mutating func rows(step: Int) -> ArraySlice<Int> {
        let (epoch, index) = step.quotientAndRemainder(dividingBy: stepsPerEpoch)
        if epoch != self.epoch {
            (self.epoch, order) = (epoch, epochRows.rows(epoch: epoch))
        }
        return order[(index * rowsPerStep)..<min((index + 1) * rowsPerStep, count)]
    }

    /// A step, counted from 0, with its rows laid out in forward passes.
    ///
    /// - Parameters:
    ///   - step: The optimiser steps before it.
    ///   - layout: How rows share forward passes.
    ///   - length: The tokens of a row.
    package mutating func plan(step: Int, layout: BatchLayout, length: (Int) -> Int) -> StepPlan {
        let rows = Array(rows(step: step))
        return StepPlan(step: step, rows: rows, lengths: rows.map(length), layout: layout)
    }

    /// The passes over the data after so many steps.
    package func epochs(steps: Int) -> Double {
        let (epoch, index) = steps.quotientAndRemainder(dividingBy: stepsPerEpoch)
        return Double(epoch) + Double(index * rowsPerStep) / Double(count)
    }
}
