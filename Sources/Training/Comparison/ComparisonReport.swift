import Formats
import Foundation

/// What a comparison has found, a row a method.
public struct ComparisonReport: Sendable {
    /// One method.
    public struct Row: Sendable {
        /// The method with its settings.
        public let name: String
        /// The learning rate that the search chose.
        public let learningRate: Double
        /// The metric of each seed.
        public let values: [Double]
        /// The trained values.
        public let parameters: Int
        /// The adapter's folder in bytes.
        public let adapterBytes: Int
        /// The most memory of a process, in bytes, the median over seeds.
        public let peakBytes: Int
        /// The seconds of a step, the median over seeds.
        public let secondsPerStep: Double
        /// The training loss by step of the first seed.
        public let curve: [LossPlot.Point]

        /// The mean of the metric.
        public var mean: Double { values.reduce(0, +) / Double(max(1, values.count)) }

        /// The sample standard deviation over seeds; nil for one seed.
        public var spread: Double? {
            guard values.count > 1 else { return nil }
            let sum = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
            return (sum / Double(values.count - 1)).squareRoot()
        }
    }

    /// The metric's name.
    public let metric: String
    /// Whether a smaller value is better.
    public let lessIsBetter: Bool
    /// The methods, the best first.
    public let rows: [Row]
    /// What could not be trained, and why.
    public let failures: [(name: String, reason: String)]

    /// Gathers trials.
    public init(_ trials: [ComparisonTrial], of comparison: Comparison) {
        metric = comparison.metric
        lessIsBetter = comparison.lessIsBetter
        var rows: [Row] = []
        var failures: [(name: String, reason: String)] = []
        for arm in comparison.arms {
            let own = trials.filter { $0.arm == arm.name }
            let final = own.filter { $0.phase == .final && $0.value != nil }
            guard let first = final.first else {
                let reason = own.compactMap(\.failure).last ?? "not trained yet"
                failures.append((arm.name, reason))
                continue
            }
            rows.append(
                Row(
                    name: arm.name, learningRate: first.learningRate, values: final.compactMap(\.value),
                    parameters: first.parameters, adapterBytes: first.adapterBytes,
                    peakBytes: Self.median(final.map(\.peakBytes)),
                    secondsPerStep: Self.median(final.map(\.secondsPerStep)), curve: first.curve))
        }
        let sign: Double = comparison.lessIsBetter ? 1 : -1
        self.rows = rows.sorted { sign * $0.mean < sign * $1.mean }
        self.failures = failures
    }

    /// The score as a fraction, more being better: for a loss the mean probability of a token, `exp(-loss)`.
    public func score(of row: Row) -> Double {
        switch metric {
        case "perplexity": 1 / row.mean
        case _ where lessIsBetter: exp(-row.mean)
        default: row.mean
        }
    }

    /// The rows that no other beats in both the metric and the number of trained values.
    public var front: [Row] {
        rows.filter { row in
            !rows.contains { other in
                let isBetter = lessIsBetter ? other.mean < row.mean : other.mean > row.mean
                return other.parameters <= row.parameters && isBetter
                    || other.parameters < row.parameters && other.mean == row.mean
            }
        }
    }

    private static func median<Value: Comparable>(_ values: [Value]) -> Value {
        let sorted = values.sorted()
        return sorted[sorted.count / 2]
    }
}

extension ComparisonReport {
    /// The rows as a table for a terminal.
    public var text: String { table.text() + notes.map { $0 + "\n" }.joined() }

    /// The rows as a table in Markdown.
    public var markdown: String { table.markdown() + notes.map { "\n" + $0 + "\n" }.joined() }

    /// What is said below the table.
    private var notes: [String] { failures.map { "\($0.name): not in the table: \($0.reason)" } }

    private var table: TextTable {
        let words = [headings.first, headings.last]
        var table = TextTable(headings.map { words.contains($0) ? .left($0) : .right($0) })
        let front = Set(front.map(\.name))
        for row in rows { table.append(cells(of: row, isOnFront: front.contains(row.name))) }
        return table
    }

    /// The cells of a row, in the order of ``headings``.
    func cells(of row: Row, isOnFront: Bool) -> [String] {
        [
            row.name, Units.loss(row.mean), row.spread.map { "± " + Units.loss($0) } ?? "",
            "\(row.parameters)", Units.bytes(row.adapterBytes), Units.bytes(row.peakBytes),
            Units.fixed(row.secondsPerStep, decimals: 3),
            Units.fixed(pptScore(score(of: row), parameters: row.parameters), decimals: 4),
            Units.scientific(row.learningRate), isOnFront ? "yes" : "",
        ]
    }

    /// The headings of the columns.
    var headings: [String] {
        [
            "method", metric, "spread", "parameters", "adapter", "peak memory", "s/step", "PPT", "learning rate",
            "front",
        ]
    }

    /// The rows as JSON.
    public var json: JSON {
        let front = Set(front.map(\.name))
        return [
            "metric": .string(metric),
            "methods": JSON(
                rows.map { row in
                    [
                        "method": .string(row.name), "mean": JSON(row.mean),
                        "spread": row.spread.map { JSON($0) } ?? .null,
                        "values": JSON(row.values.map { JSON($0) }), "parameters": JSON(row.parameters),
                        "adapter_bytes": JSON(row.adapterBytes), "peak_memory_bytes": JSON(row.peakBytes),
                        "seconds_per_step": JSON(row.secondsPerStep), "learning_rate": JSON(row.learningRate),
                        "ppt": JSON(pptScore(score(of: row), parameters: row.parameters)),
                        "front": .bool(front.contains(row.name)),
                    ]
                }),
            "failed": JSON(failures.map { ["method": .string($0.name), "reason": .string($0.reason)] }),
        ]
    }
}
