import Foundation

/// A picture of a run: the training and the evaluation loss over the steps, as an SVG file that needs nothing else.
///
/// The training loss is a smoothed line over the faint measured one; evaluations are marked points. Losses that are not
/// numbers break the line and are marked at the foot. A picture of very many points stays small.
public struct LossPlot: Sendable {
    /// A loss at a step.
    public struct Point: Sendable, Hashable {
        /// The optimiser steps taken.
        public let step: Int
        /// The loss; it may be infinite or no number.
        public let loss: Double

        /// A point of a curve.
        public init(step: Int, loss: Double) {
            self.step = step
            self.loss = loss
        }
    }

    /// The heading.
    public var title: String
    /// A second, smaller heading, such as the model, the method and the data; it may be empty.
    public var subtitle: String
    /// The training losses in any order.
    public var training: [Point]
    /// The evaluation losses in any order.
    public var evaluation: [Point]

    /// A picture of the given curves.
    public init(title: String, subtitle: String = "", training: [Point], evaluation: [Point] = []) {
        self.title = title
        self.subtitle = subtitle
        self.training = training
        self.evaluation = evaluation
    }

    /// A picture of the losses in a log.
    public init(title: String, subtitle: String = "", metrics: [Metrics]) {
        self.init(
            title: title, subtitle: subtitle,
            training: metrics.compactMap { line in line.loss.map { Point(step: line.step, loss: $0) } },
            evaluation: metrics.compactMap { line in line.evalLoss.map { Point(step: line.step, loss: $0) } })
    }

    /// The SVG document.
    public func svg() -> String { LossDrawing(self).document() }
}

/// The parts of the picture, in the order in which they are painted.
private struct LossDrawing {
    private let plot: LossPlot
    private let training: PlotCurve
    private let smoothed: [PlotCurve.Point]
    private let evaluation: PlotCurve
    private let x: PlotAxis
    private let y: PlotAxis

    /// The size of the picture and the box inside its axes, in pixels.
    private let size = (width: 860.0, height: 500.0)
    private let box: (left: Double, right: Double, top: Double, bottom: Double)
    private let hasSubtitle: Bool

    private static let columns = 700
    private let blue = "#2563b0"
    private let orange = "#d9730d"
    private let red = "#c22f3d"

    init(_ plot: LossPlot) {
        self.plot = plot
        let steps = (plot.training + plot.evaluation).map { Double($0.step) }
        x = PlotAxis(steps: steps.min().map { $0...(steps.max() ?? $0) })
        training = PlotCurve(plot.training, range: x.range, width: Self.columns)
        evaluation = PlotCurve(plot.evaluation, range: x.range, width: Self.columns)
        let span = x.range.upperBound - x.range.lowerBound
        let spacing = span / Double(max(1, training.columns.count))
        let shown = Self.shownLosses(training.sortedLosses, evaluation.sortedLosses)
        // Few points are drawn as they are: there is no noise to tell from the course.
        smoothed =
            training.columns.count < 12
            ? [] : training.smoothed(radius: max(span / 40, 1.2 * spacing), limit: shown?.upperBound ?? 0)
        y = PlotAxis(losses: shown)
        hasSubtitle = !plot.subtitle.isEmpty
        box = (left: 80, right: 776, top: hasSubtitle ? 98 : 78, bottom: 442)
    }

    /// The losses to show: all of them, unless a few spikes would press the rest of the curve flat.
    private static func shownLosses(_ training: [Double], _ evaluation: [Double]) -> ClosedRange<Double>? {
        let calm = training.isEmpty ? [] : [training[0], training[(training.count - 1) * 98 / 100]]
        let always = calm + [evaluation.first, evaluation.last].compactMap { $0 }
        guard let low = always.min(), let high = always.max() else { return nil }
        let top = max(high, training.last ?? high)
        let isSpiky = training.count >= 12 && top - low > 2.5 * (high - low)
        return low...(isSpiky ? high + 0.1 * (high - low) : top)
    }

    func document() -> String {
        let parts = [frame(), grid(), trainingLines(), evaluationLine(), strays(), lastValues(), heading(), legend()]
        return """
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(n(size.width)) \(n(size.height))" \
            width="\(n(size.width))" height="\(n(size.height))" role="img" aria-labelledby="title" \
            font-family="Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="13">
            <title id="title">\(escaped(plot.title))</title>
            <rect width="100%" height="100%" fill="#ffffff"/>
            \(parts.filter { !$0.isEmpty }.joined(separator: "\n"))
            </svg>

            """
    }

    // MARK: Axes

    private func frame() -> String {
        let width = box.right - box.left
        let height = box.bottom - box.top
        let middle = n((box.top + box.bottom) / 2)
        return """
            <clipPath id="box"><rect x="\(n(box.left))" y="\(n(box.top))" width="\(n(width))" height="\(n(height))"/>\
            </clipPath>
            \(text("step", x: (box.left + box.right) / 2, y: box.bottom + 44, color: "#4b5563", anchor: "middle"))
            <text x="20" y="\(middle)" fill="#4b5563" text-anchor="middle" transform="rotate(-90 20 \(middle))">\
            loss</text>
            """
    }

    private func grid() -> String {
        let rows = y.ticks.map { tick in
            let at = n(yPosition(tick))
            return """
                <line x1="\(n(box.left))" x2="\(n(box.right))" y1="\(at)" y2="\(at)" stroke="#e5e7eb"/>
                \(text(y.label(tick), x: box.left - 10, y: yPosition(tick) + 4.5, color: "#6b7280", anchor: "end"))
                """
        }
        let columns = x.ticks.map { tick in
            let at = n(xPosition(tick))
            return """
                <line x1="\(at)" x2="\(at)" y1="\(n(box.bottom))" y2="\(n(box.bottom + 5))" stroke="#9ca3af"/>
                \(text(x.label(tick), x: xPosition(tick), y: box.bottom + 21, color: "#6b7280", anchor: "middle"))
                """
        }
        let foot = """
            <line x1="\(n(box.left))" x2="\(n(box.right))" y1="\(n(box.bottom))" y2="\(n(box.bottom))" stroke="#9ca3af"/>
            """
        return (rows + [foot] + columns).joined(separator: "\n")
    }

    // MARK: Curves

    private func trainingLines() -> String {
        let measured = path(of: training) { $0.extremes }
        guard !smoothed.isEmpty else { return line(measured, color: blue, width: 2) + marks(training, color: blue) }
        var index = -1
        let smooth = path(of: training) { _ in
            index += 1
            return [smoothed[index]]
        }
        return line(measured, color: blue, width: 1, opacity: 0.32) + "\n" + line(smooth, color: blue, width: 2.4)
    }

    private func evaluationLine() -> String {
        line(path(of: evaluation) { $0.extremes }, color: orange, width: 1.8) + marks(evaluation, color: orange)
    }

    private func path(of curve: PlotCurve, points: (PlotCurve.Column) -> [PlotCurve.Point]) -> String {
        var data = ""
        for column in curve.columns {
            for (index, point) in points(column).enumerated() {
                let isStart = data.isEmpty || (column.isAfterGap && index == 0)
                data += "\(isStart ? "M" : "L")\(n(xPosition(point.step))) \(n(yPosition(point.loss)))"
            }
        }
        return data
    }

    private func line(_ data: String, color: String, width: Double, opacity: Double = 1) -> String {
        guard !data.isEmpty else { return "" }
        return """
            <path d="\(data)" fill="none" stroke="\(color)" stroke-width="\(n(width))" stroke-opacity="\(opacity)" \
            stroke-linejoin="round" stroke-linecap="round" clip-path="url(#box)"/>
            """
    }

    /// Dots on points that are few enough to be told apart.
    private func marks(_ curve: PlotCurve, color: String) -> String {
        guard curve.columns.count <= 60 else { return "" }
        return curve.columns.flatMap(\.extremes).map { point in
            "\n" + dot(x: xPosition(point.step), y: yPosition(point.loss), radius: 4, color: color)
        }.joined()
    }

    /// Crosses at the foot for losses that are no numbers, arrowheads at the top for spikes beyond it.
    private func strays() -> String {
        let foot = box.bottom - 8
        var free = -Double.infinity
        let crosses = (training.gaps + evaluation.gaps).map(xPosition).sorted().filter { at in
            defer { if at >= free { free = at + 11 } }
            return at >= free
        }.map { at in
            let (left, right) = (n(at - 3.5), n(at + 3.5))
            return """
                <path d="M\(left) \(n(foot - 3.5))L\(right) \(n(foot + 3.5))M\(left) \(n(foot + 3.5))L\(right) \
                \(n(foot - 3.5))" stroke="\(red)" stroke-width="1.6" stroke-linecap="round"/>
                """
        }
        let spikes = training.columns.flatMap(\.extremes).filter { $0.loss > y.range.upperBound }.map { point in
            let (at, tip) = (xPosition(point.step), box.top + 1)
            return """
                <path d="M\(n(at)) \(n(tip))l4 7h-8z" fill="\(blue)"/>
                """
        }
        return (crosses + spikes).joined(separator: "\n")
    }

    // MARK: Words

    private func lastValues() -> String {
        var labels: [(y: Double, text: String, color: String)] = []
        let lastTraining = smoothed.last ?? training.columns.last?.extremes.last
        for (point, color) in [(lastTraining, blue), (evaluation.columns.last?.extremes.last, orange)] {
            guard let point else { continue }
            labels.append((min(max(yPosition(point.loss), box.top + 6), box.bottom - 4), value(point.loss), color))
        }
        // Labels that would overlap move apart by equal parts.
        if labels.count == 2, abs(labels[0].y - labels[1].y) < 17 {
            let upper = labels[0].y <= labels[1].y ? 0 : 1
            let middle = min((labels[0].y + labels[1].y) / 2, box.bottom - 12)
            labels[upper].y = middle - 8.5
            labels[1 - upper].y = middle + 8.5
        }
        let end = smoothed.last.map {
            [dot(x: xPosition($0.step), y: yPosition($0.loss), radius: 4, color: blue)]
        }
        return
            ((end ?? [])
            + labels.map {
                text($0.text, x: box.right + 10, y: $0.y + 4.5, color: $0.color, style: "font-weight=\"600\"")
            }).joined(separator: "\n")
    }

    private func heading() -> String {
        let title = text(
            shortened(plot.title, to: 72), x: box.left, y: 34, color: "#111827",
            style: "font-size=\"19\" font-weight=\"600\"")
        guard hasSubtitle else { return title }
        return title + "\n" + text(shortened(plot.subtitle, to: 110), x: box.left, y: 56, color: "#6b7280")
    }

    private func legend() -> String {
        var entries: [(sign: (Double) -> String, label: String)] = []
        let (row, blue, orange) = (box.top - 18, blue, orange)
        func stroke(_ color: String) -> (Double) -> String {
            {
                """
                <line x1="\(n($0))" x2="\(n($0 + 24))" y1="\(n(row))" y2="\(n(row))" stroke="\(color)" stroke-width="2.4" \
                stroke-linecap="round"/>
                """
            }
        }
        if !training.columns.isEmpty {
            entries.append((stroke(blue), smoothed.isEmpty ? "training" : "training (smoothed)"))
        }
        if !evaluation.columns.isEmpty {
            entries.append(
                ({ stroke(orange)($0) + dot(x: $0 + 12, y: row, radius: 4, color: orange) }, evaluationLabel))
        }
        if !(training.gaps + evaluation.gaps).isEmpty {
            entries.append(
                ({ text("×", x: $0 + 8, y: row + 6, color: red, style: "font-size=\"19\"") }, "not a number"))
        }
        guard !entries.isEmpty else {
            return text(
                "nothing recorded yet", x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2,
                color: "#9ca3af", anchor: "middle", style: "font-size=\"15\"")
        }
        var left = box.left
        return entries.map { entry in
            defer { left += 32 + Double(entry.label.count) * 6.8 + 24 }
            return entry.sign(left) + text(entry.label, x: left + 32, y: row + 4.5, color: "#374151")
        }.joined(separator: "\n")
    }

    /// The evaluation's name, with its lowest point where that is not the last one, so that overfitting is seen.
    private var evaluationLabel: String {
        let points = evaluation.columns.flatMap(\.extremes)
        guard points.count > 2, let best = points.min(by: { $0.loss < $1.loss }), let last = points.last,
            best.loss < last.loss
        else { return "evaluation" }
        return "evaluation (lowest \(value(best.loss)) at step \(n(best.step)))"
    }

    // MARK: Pieces

    private func xPosition(_ step: Double) -> Double {
        let share = (step - x.range.lowerBound) / (x.range.upperBound - x.range.lowerBound)
        return box.left + min(max(share, 0), 1) * (box.right - box.left)
    }

    /// Far spikes are held just outside the box, so that no coordinate grows beyond what viewers can draw.
    private func yPosition(_ loss: Double) -> Double {
        let share = (loss - y.range.lowerBound) / (y.range.upperBound - y.range.lowerBound)
        return box.bottom - min(max(share, -1), 2) * (box.bottom - box.top)
    }

    private func value(_ loss: Double) -> String {
        abs(loss) >= 1e5 || y.decimals > 6
            ? String(format: "%.4g", loss) : Units.fixed(loss, decimals: max(abs(loss) < 100 ? 3 : 1, y.decimals + 1))
    }

    private func dot(x: Double, y: Double, radius: Double, color: String) -> String {
        """
        <circle cx="\(n(x))" cy="\(n(y))" r="\(n(radius))" fill="\(color)" stroke="#ffffff" stroke-width="1.5"/>
        """
    }

    private func text(
        _ words: String, x: Double, y: Double, color: String, anchor: String = "start", style: String = ""
    ) -> String {
        """
        <text x="\(n(x))" y="\(n(y))" fill="\(color)" text-anchor="\(anchor)"\(style.isEmpty ? "" : " " + style)>\
        \(escaped(words))</text>
        """
    }

    /// A coordinate, to a tenth of a pixel.
    private func n(_ value: Double) -> String {
        let text = Units.fixed(value, decimals: 1)
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}

private func shortened(_ text: String, to length: Int) -> String {
    text.count <= length ? text : text.prefix(length - 1) + "…"
}
