import Foundation

/// One HTML page of a comparison that needs nothing else: the table, the training curves on one plot, and the metric over
/// the number of trained values with the Pareto front.
public struct ComparisonPage {
    private let report: ComparisonReport
    private let title: String
    private let subtitle: String

    private static let colours = [
        "#2563b0", "#d9730d", "#2f8f4e", "#c22f3d", "#7b4fb5", "#8a5a3b", "#cf5fa8", "#5f6b7a", "#9a9a1c", "#1a9fb0",
    ]
    /// Dashes tell curves apart that share a colour.
    private static let dashes = ["", "7 4", "2 3", "9 3 2 3"]

    /// Prepares the page of a report.
    ///
    /// - Parameters:
    ///   - report: What was found.
    ///   - title: The heading.
    ///   - subtitle: What all methods shared.
    public init(_ report: ComparisonReport, title: String, subtitle: String) {
        self.report = report
        self.title = title
        self.subtitle = subtitle
    }

    /// The HTML document.
    public func html() -> String {
        let failures = report.failures.map { "<p>\(escaped($0.name)): not in the table: \(escaped($0.reason))</p>" }
        return """
            <!doctype html>
            <html lang="en">
            <meta charset="utf-8">
            <title>\(escaped(title))</title>
            <style>
            body { font: 15px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; color: #1f2937; max-width: 1080px; \
            margin: 2em auto; padding: 0 1em }
            h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } p.sub { color: #6b7280 }
            table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
            th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap }
            th:first-child, td:first-child { text-align: left } tr.front td:first-child { font-weight: 600 }
            svg { width: 100%; height: auto }
            </style>
            <h1>\(escaped(title))</h1>
            <p class="sub">\(escaped(subtitle))</p>
            \(table())
            \(failures.joined(separator: "\n"))
            <h2>\(escaped(report.metric)) over trained values</h2>
            \(scatter())
            <h2>Training loss over steps (first seed)</h2>
            \(curves())
            </html>

            """
    }

    private func table() -> String {
        let front = Set(report.front.map(\.name))
        let head = report.headings.map { "<th>\(escaped($0))</th>" }.joined()
        let rows = report.rows.map { row in
            let cells = report.cells(of: row, isOnFront: front.contains(row.name)).map { "<td>\(escaped($0))</td>" }
            return "<tr\(front.contains(row.name) ? " class=\"front\"" : "")>\(cells.joined())</tr>"
        }
        return "<table>\n<tr>\(head)</tr>\n\(rows.joined(separator: "\n"))\n</table>"
    }

    // MARK: Pictures

    /// Mean and spread of each method over the number of trained values, with the front as a line.
    private func scatter() -> String {
        guard !report.rows.isEmpty else { return "" }
        let counts = report.rows.map { log10(Double(max(1, $0.parameters))) }
        let spreads = report.rows.flatMap { row in [-1.0, 1].map { row.mean + $0 * (row.spread ?? 0) } }
        let chart = Chart(
            x: (counts.min() ?? 0).rounded(.down)...max((counts.max() ?? 1).rounded(.up), 1),
            y: PlotAxis(losses: (spreads.min() ?? 0)...(spreads.max() ?? 1)), xLabel: "trained values",
            yLabel: report.metric)
        let decades = Int(chart.x.lowerBound)...Int(chart.x.upperBound)
        var parts = [chart.frame(xTicks: decades.map { (Double($0), Units.count(Int(pow(10, Double($0))))) })]
        let front = report.front.sorted { $0.parameters < $1.parameters }
        let line = front.map { (log10(Double(max(1, $0.parameters))), $0.mean) }
        parts.append(chart.path(line, colour: "#9ca3af", dash: "4 4"))
        for (index, row) in report.rows.enumerated() {
            parts.append(chart.point(log10(Double(max(1, row.parameters))), row, colour: colour(index)))
        }
        return chart.document(parts)
    }

    private func curves() -> String {
        let points = report.rows.flatMap(\.curve).filter { $0.loss.isFinite }
        guard !points.isEmpty else { return "" }
        let steps = points.map { Double($0.step) }
        let losses = points.map(\.loss)
        let axis = PlotAxis(steps: (steps.min() ?? 0)...(steps.max() ?? 1))
        let chart = Chart(
            x: axis.range, y: PlotAxis(losses: (losses.min() ?? 0)...(losses.max() ?? 1)), xLabel: "step",
            yLabel: "training loss")
        var parts = [chart.frame(xTicks: axis.ticks.map { ($0, axis.label($0)) })]
        for (index, row) in report.rows.enumerated() {
            let line = row.curve.filter { $0.loss.isFinite }.map { (Double($0.step), $0.loss) }
            let dash = Self.dashes[index / Self.colours.count % Self.dashes.count]
            parts.append(chart.path(line, colour: colour(index), dash: dash))
            parts.append(chart.legend(index, row.name, colour: colour(index), dash: dash))
        }
        return chart.document(parts)
    }

    private func colour(_ index: Int) -> String { Self.colours[index % Self.colours.count] }
}

/// Axes of a picture and what is drawn between them.
private struct Chart {
    let x: ClosedRange<Double>
    let y: PlotAxis
    let xLabel: String
    let yLabel: String

    private static let size = (width: 1000.0, height: 520.0)
    private let box = (left: 80.0, right: 790.0, top: 20.0, bottom: 460.0)

    func document(_ parts: [String]) -> String {
        """
        <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(n(Self.size.width)) \(n(Self.size.height))" \
        font-size="13" role="img">
        \(parts.joined(separator: "\n"))
        </svg>
        """
    }

    func frame(xTicks: [(Double, String)]) -> String {
        let rows = y.ticks.map { tick in
            """
            <line x1="\(n(box.left))" x2="\(n(box.right))" y1="\(n(py(tick)))" y2="\(n(py(tick)))" stroke="#e5e7eb"/>
            \(text(y.label(tick), box.left - 8, py(tick) + 4, anchor: "end"))
            """
        }
        let columns = xTicks.map { text($0.1, px($0.0), box.bottom + 20, anchor: "middle") }
        let middle = (box.top + box.bottom) / 2
        let names = """
            \(text(xLabel, (box.left + box.right) / 2, box.bottom + 44, anchor: "middle"))
            <text x="18" y="\(n(middle))" fill="#4b5563" text-anchor="middle" transform="rotate(-90 18 \(n(middle)))">\
            \(escaped(yLabel))</text>
            """
        return (rows + columns + [names]).joined(separator: "\n")
    }

    func path(_ points: [(Double, Double)], colour: String, dash: String) -> String {
        guard !points.isEmpty else { return "" }
        let places = points.map { "\(n(px($0.0))) \(n(py($0.1)))" }
        return """
            <path d="M\(places.joined(separator: "L"))" fill="none" stroke="\(colour)" stroke-width="1.8" stroke-dasharray="\(dash)" \
            stroke-linejoin="round"/>
            """
    }

    func point(_ at: Double, _ row: ComparisonReport.Row, colour: String) -> String {
        let spread = row.spread ?? 0
        return """
            <line x1="\(n(px(at)))" x2="\(n(px(at)))" y1="\(n(py(row.mean - spread)))" y2="\(n(py(row.mean + spread)))" \
            stroke="\(colour)" stroke-width="2"/>
            <circle cx="\(n(px(at)))" cy="\(n(py(row.mean)))" r="4.5" fill="\(colour)" stroke="#fff"/>
            \(text(row.name, px(at) + 8, py(row.mean) - 5, colour: colour))
            """
    }

    func legend(_ index: Int, _ name: String, colour: String, dash: String) -> String {
        let (left, row) = (box.right + 14, box.top + 10 + Double(index) * 17)
        return """
            <line x1="\(n(left))" x2="\(n(left + 22))" y1="\(n(row))" y2="\(n(row))" stroke="\(colour)" \
            stroke-width="2.4" stroke-dasharray="\(dash)"/>
            \(text(name, left + 28, row + 4))
            """
    }

    private func px(_ value: Double) -> Double {
        box.left + (value - x.lowerBound) / (x.upperBound - x.lowerBound) * (box.right - box.left)
    }

    private func py(_ value: Double) -> Double {
        let share = (value - y.range.lowerBound) / (y.range.upperBound - y.range.lowerBound)
        return box.bottom - min(max(share, 0), 1) * (box.bottom - box.top)
    }

    private func text(
        _ words: String, _ x: Double, _ y: Double, anchor: String = "start", colour: String = "#4b5563"
    ) -> String {
        "<text x=\"\(n(x))\" y=\"\(n(y))\" fill=\"\(colour)\" text-anchor=\"\(anchor)\">\(escaped(words))</text>"
    }

    private func n(_ value: Double) -> String { Units.fixed(value, decimals: 1) }
}
