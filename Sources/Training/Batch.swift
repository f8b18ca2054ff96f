import Backbones
import Torch

/// Rows side by side, filled up at the right, with what the model learns to predict.
///
/// Attention is causal, so what fills a row up is never seen by its tokens, and no label says so: the supervised
/// positions are named one by one, whatever number the filling token has.
public struct Batch {
    /// int64 `[rows, time]`.
    public let ids: Tensor
    /// int64 `[n]`: positions in the flattened `[rows * time]` whose next token is part of the loss, row by row.
    public let positions: Tensor
    /// int64 `[n]`: the tokens that come next there.
    public let targets: Tensor
    /// The tokens of the rows, what fills them up not counted.
    public let tokens: Int
    /// For each row how many of its tokens are part of the loss.
    public let supervisedCounts: [Int]

    /// The tokens that are part of the loss.
    public var supervisedTokens: Int { supervisedCounts.reduce(0, +) }

    /// Lays out rows.
    ///
    /// - Parameters:
    ///   - examples: The rows.
    ///   - padding: The token that fills rows up.
    ///   - multiple: What the rows' length is a multiple of. In bf16 the CPU's matrix library keeps code and memory for
    ///     every shape that it meets; see ``lengthMultiple(of:)``.
    ///   - device: Where the batch goes.
    /// - Throws: `TorchError` when memory is short.
    public init(_ examples: [Example], padding: Int, multiple: Int = 1, device: Device = .cpu) throws {
        let time = Self.length(of: examples, multiple: multiple)
        var ids: [Int] = []
        var positions: [Int] = []
        var targets: [Int] = []
        ids.reserveCapacity(examples.count * time)
        for (row, example) in examples.enumerated() {
            for (index, isSupervised) in example.supervised.enumerated() where isSupervised && index > 0 {
                positions.append(row * time + index - 1)
                targets.append(example.ids[index])
            }
            ids += example.ids
            ids += repeatElement(padding, count: time - example.ids.count)
        }
        self.ids = try Tensor(ids, shape: [examples.count, time]).to(device: device)
        self.positions = try Tensor(positions).to(device: device)
        self.targets = try Tensor(targets).to(device: device)
        tokens = examples.reduce(0) { $0 + $1.ids.count }
        supervisedCounts = examples.map(\.supervisedCount)
    }
}

extension Batch {
    /// The length of a batch's rows.
    static func length(of examples: some Sequence<Example>, multiple: Int) -> Int {
        let longest = examples.map(\.ids.count).max() ?? 0
        return (longest + multiple - 1) / multiple * multiple
    }

    /// What the length of rows should be a multiple of for a model: few shapes in bf16 on the CPU, else no filling.
    static func lengthMultiple(of backbone: any Backbone) -> Int {
        backbone.device == .cpu && backbone.dtype == .bfloat16 ? 8 : 1
    }
}

/// Which rows each optimiser step of a run takes; a function of seed and step, so that there is no position to save.
struct DataOrder {
    private let epochRows: EpochRows
    private let rowsPerStep: Int
    private var epoch = -1
    private var order: [Int] = []

    /// The rows of an epoch.
    private var count: Int { epochRows.count }

    /// Lays out a run, of which each step takes `rowsPerStep` rows, the last of an epoch what is left.
    init(_ epochRows: EpochRows, rowsPerStep: Int) {
        self.epochRows = epochRows
        self.rowsPerStep = rowsPerStep
    }

    /// The optimiser steps of one pass over the data.
    var stepsPerEpoch: Int { (count + rowsPerStep - 1) / rowsPerStep }

    /// The rows of a step, counted from 0.
    mutating func rows(step: Int) -> ArraySlice<Int> {
        let (epoch, index) = step.quotientAndRemainder(dividingBy: stepsPerEpoch)
        if epoch != self.epoch {
            (self.epoch, order) = (epoch, epochRows.rows(epoch: epoch))
        }
        return order[(index * rowsPerStep)..<min((index + 1) * rowsPerStep, count)]
    }

    /// The passes over the data after so many steps.
    func epochs(steps: Int) -> Double {
        let (epoch, index) = steps.quotientAndRemainder(dividingBy: stepsPerEpoch)
        return Double(epoch) + Double(index * rowsPerStep) / Double(count)
    }
}
