import Torch

/// Which rows each epoch takes from data of one or several weighted sources, and in which order: a function of the
/// seed and the epoch, so that nothing needs saving.
///
/// A source of `n` rows with weight `w` gives `n * w` rows an epoch, rounded: each of its rows as often as `w` has
/// ones, and for the rest of `w` a part of its rows once more. The parts are cut one after the other from a circle of
/// the rows in an order that the seed gives, so that over many epochs all rows have their turn equally often.
package struct EpochRows: Sendable {
    private struct Part: Sendable {
        let start: Int
        let rows: Int
        /// How often each row is taken.
        let whole: Int
        /// How many rows are taken once more.
        let extra: Int
        /// The order of the circle that they are cut from.
        let circle: [Int]
    }

    private let seed: Seed
    private let parts: [Part]
    /// The rows of an epoch, those that are taken more than once counted as often.
    package let count: Int

    /// Lays out the epochs of a run.
    ///
    /// - Parameters:
    ///   - sources: For each source its rows and its weight; rows are numbered through from 0.
    ///   - seed: The seed of the run.
    package init(_ sources: [(rows: Int, weight: Double)], seed: Seed) {
        self.seed = seed
        var start = 0
        var parts: [Part] = []
        for (index, source) in sources.enumerated() {
            let whole = Int(max(0, min(source.weight, 1e4)))
            let rest = Double(source.rows) * (min(source.weight, 1e4) - Double(whole))
            var extra = min(source.rows, Int(max(0, rest).rounded()))
            // However small its share, a source that was named is not left out.
            if whole == 0, extra == 0, source.rows > 0 { extra = 1 }
            var stream = seed.stream("data/weight/\(index)")
            let circle = extra == 0 ? [] : stream.permutation(source.rows)
            parts.append(Part(start: start, rows: source.rows, whole: whole, extra: extra, circle: circle))
            start += source.rows
        }
        self.parts = parts
        count = parts.reduce(0) { $0 + $1.rows * $1.whole + $1.extra }
    }

    /// One source that an epoch takes whole.
    package init(count: Int, seed: Seed) {
        self.init([(count, 1)], seed: seed)
    }

    /// The rows that an epoch takes of a source.
    package func count(ofSource index: Int) -> Int {
        parts.indices.contains(index) ? parts[index].rows * parts[index].whole + parts[index].extra : 0
    }

    /// The rows of an epoch in the order in which a run takes them.
    package func rows(epoch: Int) -> [Int] {
        var stream = seed.stream("data/epoch/\(epoch)")
        let order = stream.permutation(count)
        if parts.count == 1, parts[0].whole == 1, parts[0].extra == 0 { return order }
        let chosen = parts.flatMap { rows(of: $0, epoch: epoch) }
        return order.map { chosen[$0] }
    }

    private func rows(of part: Part, epoch: Int) -> [Int] {
        var rows: [Int] = []
        rows.reserveCapacity(part.rows * part.whole + part.extra)
        for _ in 0..<part.whole { rows += part.start..<(part.start + part.rows) }
        guard part.extra > 0 else { return rows }
        // Where the circle goes on after the parts of the epochs before.
        let begin = (epoch % part.rows) * part.extra % part.rows
        for step in 0..<part.extra { rows.append(part.start + part.circle[(begin + step) % part.rows]) }
        return rows
    }
}
