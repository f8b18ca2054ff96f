import Formats
import Torch

/// How far measures of held-out rows would move with other rows of the same kind: percentiles over resampled rows.
package struct Bootstrap {
    /// How often rows are drawn anew.
    package var resamples = 1000
    /// The share of the resampled measures within the interval.
    package var level = 0.95
    /// Names the draws.
    package var seed = Seed(0)

    /// 1,000 resamples and 95%.
    package init() {}

    /// The interval of each measure.
    ///
    /// - Parameters:
    ///   - rows: What is drawn from, with replacement, as many as there are.
    ///   - measures: Measures some of them, by name.
    package func intervals<Row>(
        of rows: [Row], _ measures: ([Row]) -> KeyedList<Double>
    ) -> KeyedList<ClosedRange<Double>> {
        guard !rows.isEmpty else { return [:] }
        var stream = seed.stream("bootstrap")
        var values = KeyedList<[Double]>()
        for _ in 0..<max(1, resamples) {
            let drawn = rows.indices.map { _ in rows[stream.below(rows.count)] }
            for (name, value) in measures(drawn) where value.isFinite { values[name] = (values[name] ?? []) + [value] }
        }
        var intervals = KeyedList<ClosedRange<Double>>()
        for (name, found) in values {
            let sorted = found.sorted()
            func percentile(_ share: Double) -> Double {
                let place = share * Double(sorted.count - 1)
                let low = Int(place.rounded(.down))
                let high = min(low + 1, sorted.count - 1)
                return sorted[low] + (sorted[high] - sorted[low]) * (place - Double(low))
            }
            intervals[name] = percentile((1 - level) / 2)...percentile((1 + level) / 2)
        }
        return intervals
    }
}
