import Foundation

/// A curve of a plot, prepared so that it costs no more than the picture's columns, however many points it has.
struct PlotCurve {
    /// The points that share one column of the picture.
    struct Column {
        /// The mean step and loss.
        var step: Double
        var loss: Double
        /// The points counted in.
        var count: Double
        /// The points between which the curve swings in this column, in the order of their steps.
        var extremes: [Point]
        /// Whether a loss that is no number lies between the previous column and this one, or inside this one.
        var isAfterGap: Bool
    }

    struct Point {
        var step: Double
        var loss: Double
    }

    /// The columns that hold at least one number, in the order of their steps.
    private(set) var columns: [Column] = []
    /// The steps whose loss is no number (or too large to draw), at most one a column.
    private(set) var gaps: [Double] = []
    /// All numbers, ascending.
    let sortedLosses: [Double]

    /// Sorts points by step and gathers them in columns.
    ///
    /// - Parameters:
    ///   - points: Steps and losses in any order.
    ///   - range: The steps of the first and the last column; columns are of equal width.
    ///   - width: How many columns there are.
    init(_ points: [LossPlot.Point], range: ClosedRange<Double>, width: Int) {
        let ordered = points.sorted { $0.step < $1.step }
        sortedLosses = points.map(\.loss).filter(Self.isDrawable).sorted()
        let scale = Double(width) / (range.upperBound - range.lowerBound)
        // With fewer points than columns every point has its own, also where they crowd.
        let isCrowded = ordered.count > width
        var last: Int?
        var lastGap: Int?
        var isAfterGap = false
        for (index, point) in ordered.enumerated() {
            let step = Double(point.step)
            let column = isCrowded ? Int((step - range.lowerBound) * scale) : index
            if Self.isDrawable(point.loss) {
                let point = Point(step: step, loss: point.loss)
                if column == last, !isAfterGap {
                    columns[columns.count - 1].add(point)
                } else {
                    columns.append(Column(point, isAfterGap: isAfterGap))
                }
                last = column
                isAfterGap = false
            } else {
                if column != lastGap { gaps.append(step) }
                lastGap = column
                isAfterGap = true
            }
        }
    }

    /// Larger numbers are as good as infinite, and their differences might be.
    static func isDrawable(_ loss: Double) -> Bool { abs(loss) <= 1e100 }

    /// The curve with its noise taken out, without lag.
    ///
    /// In each column it has the value of the straight line that fits the columns around it best, near ones counting
    /// more (local linear regression with Gaussian weights). Unlike a moving mean it stays true at both ends, where a
    /// loss curve is steepest and where one reads it.
    ///
    /// - Parameters:
    ///   - radius: The standard deviation of the weights, in steps.
    ///   - limit: Larger losses count as this one, so that a lone spike does not lift all that is near it.
    /// - Returns: One point a column.
    func smoothed(radius: Double, limit: Double) -> [Point] {
        var start = 0
        return columns.map { center in
            while columns[start].step < center.step - 3 * radius { start += 1 }
            var (s0, s1, s2, t0, t1) = (0.0, 0.0, 0.0, 0.0, 0.0)
            for column in columns[start...] {
                let distance = (column.step - center.step) / radius
                if distance > 3 { break }
                let weight = column.count * exp(-0.5 * distance * distance)
                s0 += weight
                s1 += weight * distance
                s2 += weight * distance * distance
                t0 += weight * min(column.loss, limit)
                t1 += weight * min(column.loss, limit) * distance
            }
            let determinant = s0 * s2 - s1 * s1
            // A lone column, or several at one step, have no slope.
            let loss = determinant > 1e-9 * s0 * s0 ? (s2 * t0 - s1 * t1) / determinant : t0 / s0
            return Point(step: center.step, loss: loss)
        }
    }
}

extension PlotCurve.Column {
    fileprivate init(_ point: PlotCurve.Point, isAfterGap: Bool) {
        self.init(step: point.step, loss: point.loss, count: 1, extremes: [point], isAfterGap: isAfterGap)
    }

    fileprivate mutating func add(_ point: PlotCurve.Point) {
        count += 1
        step += (point.step - step) / count
        loss += (point.loss - loss) / count
        let candidates = extremes + [point]
        let low = candidates.indices.min { candidates[$0].loss < candidates[$1].loss } ?? 0
        let high = candidates.indices.max { candidates[$0].loss < candidates[$1].loss } ?? 0
        extremes = Set([low, high]).sorted().map { candidates[$0] }
    }
}
