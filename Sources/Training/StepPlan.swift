/// The rows of one forward pass of an optimiser step.
public struct MicroBatch: Sendable, Hashable {
    /// The numbers of the rows in the data set.
    public let rows: [Int]
    /// The place of each row among the rows of the step.
    public let places: [Int]
    /// The tokens of each row.
    public let lengths: [Int]

    /// The place of its first row: a name that no other pass of the step has.
    public var place: Int { places.first ?? 0 }
}

/// An optimiser step: its rows, and the forward passes in which they lie.
///
/// A function of seed, step and the rows' lengths, so every process of a run knows the whole step, and nothing of it
/// needs saving.
public struct StepPlan: Sendable, Hashable {
    /// The optimiser steps before it.
    public let step: Int
    /// The numbers of its rows in the data set, in the order in which the run takes them.
    public let rows: [Int]
    /// Its forward passes, which together hold every place of `rows` once.
    public let microBatches: [MicroBatch]
    private let layout: BatchLayout

    /// Lays out a step.
    ///
    /// - Parameters:
    ///   - step: The optimiser steps before it.
    ///   - rows: The numbers of its rows in the data set.
    ///   - lengths: The tokens of each.
    ///   - layout: How rows share forward passes.
    public init(step: Int, rows: [Int], lengths: [Int], layout: BatchLayout) {
        self.step = step
        self.rows = rows
        self.layout = layout
        microBatches = layout.passes(of: lengths).map { places in
            MicroBatch(rows: places.map { rows[$0] }, places: places, lengths: places.map { lengths[$0] })
        }
    }

    /// The forward passes of one of several processes that share the step.
    ///
    /// Passes go to the process with the least to do so far, the largest first. Where there are fewer passes than
    /// processes, those with the most to do are halved as long as they have two rows; a process may get none.
    ///
    /// - Parameters:
    ///   - rank: The process, from 0.
    ///   - size: The number of processes.
    public func share(rank: Int, of size: Int) -> [MicroBatch] {
        guard size > 1 else { return microBatches }
        var passes = microBatches
        while passes.count < size {
            let divisible = passes.indices.filter { passes[$0].rows.count > 1 }
            guard let largest = divisible.max(by: { cost(passes[$0]) < cost(passes[$1]) }) else { break }
            passes.replaceSubrange(largest...largest, with: halves(of: passes[largest]))
        }
        var loads = [Int](repeating: 0, count: size)
        var mine: [MicroBatch] = []
        for pass in passes.sorted(by: { (-cost($0), $0.place) < (-cost($1), $1.place) }) {
            guard let least = loads.indices.min(by: { (loads[$0], $0) < (loads[$1], $1) }) else { break }
            loads[least] += cost(pass)
            if least == rank { mine.append(pass) }
        }
        return mine.sorted { $0.place < $1.place }
    }

    private func cost(_ pass: MicroBatch) -> Int { layout.cost(of: pass.lengths) }

    private func halves(of pass: MicroBatch) -> [MicroBatch] {
        let middle = pass.rows.count / 2
        return [0..<middle, middle..<pass.rows.count].map { part in
            MicroBatch(
                rows: Array(pass.rows[part]), places: Array(pass.places[part]), lengths: Array(pass.lengths[part]))
        }
    }
}
