import Formats
import Foundation
import TestSupport
import Testing
import Training

@Suite struct LossPlotTests {
    @Test func pointsLieWhereTheAxesSay() async throws {
        var generator = SeededGenerator(seed: 41)
        for trial in 0..<8 {
            let scale = pow(10, Double(trial - 4))
            let offset = trial % 2 == 0 ? 0 : 3 * scale
            let training = (1...10).map {
                LossPlot.Point(step: $0 * (1 << trial), loss: offset + scale * generator.uniform())
            }
            let picture = try await Picture(LossPlot(title: "t", training: training.shuffled(using: &generator)))
            let drawn = try #require(picture.lines.first)
            #expect(drawn.count == 1)
            for (position, point) in try zip(#require(drawn.first), training) {
                // Coordinates are rounded to a tenth of a pixel.
                #expect(try abs(position.x - picture.x(point.step)) < 0.11)
                #expect(try abs(position.y - picture.y(point.loss)) < 0.11)
            }
            #expect(drawn.first?.count == 10)
        }
    }

    @Test func headingsLegendAndLastValuesAreThere() async throws {
        let training = (1...200).map { LossPlot.Point(step: $0, loss: 1 + exp(-Double($0) / 20)) }
        let evaluation = [(0, 2.0), (100, 0.95), (200, 1.125)].map { LossPlot.Point(step: $0.0, loss: $0.1) }
        let picture = try await Picture(
            LossPlot(
                title: "A <b> & \"c\"\u{0}\u{1B}", subtitle: "SmolLM2 · LoRA", training: training,
                evaluation: evaluation))
        let words = Set(picture.texts.map(\.words))
        #expect(words.isSuperset(of: ["A <b> & \"c\"  ", "SmolLM2 · LoRA", "step", "loss", "training (smoothed)"]))
        #expect(words.contains("evaluation (lowest 0.950 at step 100)"))
        #expect(words.contains("1.125"))
        // Smoothing must not move a curve that has no noise: the true last value is 1.00005.
        #expect(words.contains("1.000"))
        // The evaluations and the end of the smoothed line.
        #expect(picture.elements["circle"]?.array?.count == 3 + 1 + 1)
        #expect(picture.lines.count == 3)
    }

    @Test func smoothingTakesOutNoiseButNotTheCourse() async throws {
        var generator = SeededGenerator(seed: 42)
        let truth = { (step: Int) in 1 + 2 * exp(-Double(step) / 150) }
        let training = (1...1000).map { LossPlot.Point(step: $0, loss: truth($0) + 0.2 * generator.normal()) }
        let picture = try await Picture(LossPlot(title: "", training: training))
        let smooth = try #require(picture.lines.last?.first)
        var worst = 0.0
        for position in smooth {
            let step = try Int(picture.step(position.x).rounded())
            worst = try max(worst, abs(picture.loss(position.y) - truth(step)))
        }
        // A fiftieth of the points counts in each place, so noise of 0.2 shrinks to about 0.03; twice that at the ends.
        #expect(worst < 0.12)
        #expect(smooth.count > 600)
    }

    @Test(arguments: 0...3)
    func veryFewPointsAreAPicture(count: Int) async throws {
        let training = (0..<count).map { LossPlot.Point(step: $0 + 1, loss: 2.5 - Double($0)) }
        let picture = try await Picture(LossPlot(title: "few", training: training))
        #expect(picture.texts.contains { $0.words == "nothing recorded yet" } == (count == 0))
        #expect(picture.lines.first?.first?.count ?? 0 == count)
        #expect(picture.elements["circle"]?.array?.count ?? 0 == count)
    }

    @Test(arguments: [0.693147, -2, 1e-7, 1e-90, 123_456.789, 0, .leastNonzeroMagnitude])
    func aConstantLiesInTheMiddleAndZeroAtTheFoot(value: Double) async throws {
        let training = (1...50).map { LossPlot.Point(step: $0, loss: value) }
        let picture = try await Picture(LossPlot(title: "constant", training: training))
        let heights = try #require(picture.lines.last).flatMap { $0.map(\.y) }
        #expect(heights.count == 50)
        #expect(Set(heights).count == 1)
        #expect(heights.allSatisfy { abs(value) < 1e-100 ? $0 == 442 : (220...300).contains($0) })
    }

    @Test func lossesThatAreNoNumbersBreakTheLine() async throws {
        let bad: [Int: Double] = [3: .nan, 6: .infinity, 7: -.infinity, 10: .nan]
        let training = (1...10).map { LossPlot.Point(step: $0, loss: bad[$0] ?? 2) }
        let picture = try await Picture(LossPlot(title: "gaps", training: training))
        #expect(picture.lines.first?.map(\.count) == [2, 2, 2])
        #expect(picture.texts.contains { $0.words == "not a number" })
        #expect(picture.strokes("#c22f3d").count == 4)

        let many = (1...50_000).map { LossPlot.Point(step: $0, loss: $0 == 25_000 ? .nan : 1) }
        let large = try await Picture(LossPlot(title: "gaps", training: many))
        #expect(large.lines.last?.count == 2)
        #expect(large.strokes("#c22f3d").count == 1)

        let only = (1...20).map { LossPlot.Point(step: $0, loss: .nan) }
        #expect(try await Picture(LossPlot(title: "gaps", training: only)).lines.isEmpty)
    }

    @Test func aFewSpikesDoNotPressTheCurveFlat() async throws {
        var generator = SeededGenerator(seed: 43)
        let training = (1...400).map { step in
            LossPlot.Point(step: step, loss: step % 150 == 0 ? 1e6 : 1 + 0.5 * generator.uniform())
        }
        let picture = try await Picture(LossPlot(title: "spikes", training: training))
        #expect(try picture.y(1) - picture.y(1.5) > 200)
        // Two arrowheads point at them, and the smoothed line stays in the picture.
        #expect(picture.paths.filter { $0["fill"]?.string == "#2563b0" }.count == 2)
        #expect(picture.lines.last?.first?.allSatisfy { (78...442).contains($0.y) } == true)
    }

    @Test func aHundredThousandPointsStaySmallAndKeepTheirExtremes() async throws {
        var generator = SeededGenerator(seed: 44)
        var training = (1...100_000).map { LossPlot.Point(step: $0, loss: 2 + 0.1 * generator.normal()) }
        training[33_332] = LossPlot.Point(step: 33_333, loss: 1.25)
        let plot = LossPlot(title: "large", training: training)
        #expect(plot.svg().utf8.count < 60_000)
        let picture = try await Picture(plot)
        let lowest = try #require(picture.lines.first?.first?.max { $0.y < $1.y })
        #expect(try abs(lowest.x - picture.x(33_333)) < 0.11)
        #expect(try abs(lowest.y - picture.y(1.25)) < 0.11)
    }

    @Test func noNumbersMakeADocumentThatCannotBeDrawn() async throws {
        let steps = [0, 1, -5, 1000, Int.max, Int.max - 1, 1 << 40]
        let losses: [Double] = [
            0, -1, 1e300, -1e300, 1e100, -1e100, 1e99, .infinity, .nan, .leastNonzeroMagnitude, 1e-101, 1,
            1.000_000_000_1, 1e15,
        ]
        var generator = SeededGenerator(seed: 45)
        for _ in 0..<60 {
            func points(_ count: Int) -> [LossPlot.Point] {
                (0..<Int.random(in: 0...count, using: &generator)).compactMap { _ in
                    guard let step = steps.randomElement(using: &generator) else { return nil }
                    return losses.randomElement(using: &generator).map { LossPlot.Point(step: step, loss: $0) }
                }
            }
            let picture = try await Picture(LossPlot(title: "odd", training: points(20), evaluation: points(4)))
            let positions = picture.lines.flatMap { $0.flatMap { $0 } }
            #expect(positions.allSatisfy { (80...776).contains($0.x) && (-400...900).contains($0.y) })
        }
    }

    @Test func aLogBecomesTwoCurves() {
        var lines = (1...3).map { Metrics(step: $0) }
        lines[0].loss = 2
        lines[1].evalLoss = 1.5
        lines[2].loss = 1
        let plot = LossPlot(title: "log", metrics: lines)
        #expect(plot.training == [.init(step: 1, loss: 2), .init(step: 3, loss: 1)])
        #expect(plot.evaluation == [.init(step: 2, loss: 1.5)])
    }
}

/// An SVG file as Python's XML parser reads it, with the axes recovered from their labels.
private struct Picture {
    let elements: JSON
    let texts: [(words: String, x: Double, y: Double, anchor: String)]
    let paths: [JSON]

    init(_ plot: LossPlot) async throws {
        let elements = try await withTemporaryFolder { folder in
            let path = try folder.write(plot.svg(), to: "loss.svg")
            return try await Oracle.shared.call("report.svg", ["path": JSON(path)])
        }
        self.elements = elements
        texts = (elements["text"]?.array ?? []).compactMap { text in
            guard let words = text["words"]?.string, let x = text["x"]?.string.flatMap(Double.init),
                let y = text["y"]?.string.flatMap(Double.init), let anchor = text["text-anchor"]?.string
            else { return nil }
            return (words, x, y, anchor)
        }
        paths = elements["path"]?.array ?? []
    }

    func strokes(_ color: String) -> [JSON] { paths.filter { $0["stroke"]?.string == color } }

    /// The curves in the order in which they are painted; each is a list of unbroken lines.
    var lines: [[[(x: Double, y: Double)]]] {
        paths.filter { $0["clip-path"] != nil }.map { path in
            (path["d"]?.string ?? "").split(separator: "M").map { line in
                line.split(separator: "L").map { point in
                    let parts = point.split(separator: " ").map { Double($0) ?? .nan }
                    return parts.count == 2 ? (parts[0], parts[1]) : (.nan, .nan)
                }
            }
        }
    }

    func x(_ step: Int) throws -> Double { try xAxis.position(Double(step)) }
    func y(_ loss: Double) throws -> Double { try yAxis.position(loss) }
    func step(_ x: Double) throws -> Double { try xAxis.value(x) }
    func loss(_ y: Double) throws -> Double { try yAxis.value(y) }

    /// Tick labels stand below the axis at its foot, and left of the other one with their base line 4.5 lower.
    private var xAxis: Scale {
        Scale(texts.filter { $0.y == 463 }.map { (value($0.words), $0.x) })
    }

    private var yAxis: Scale {
        Scale(texts.filter { $0.anchor == "end" }.map { (value($0.words), $0.y - 4.5) })
    }

    private func value(_ label: String) -> Double { Double(label.filter { $0 != "," }) ?? .nan }

    /// The straight line through the first and the last tick.
    private struct Scale {
        let ticks: [(value: Double, position: Double)]

        init(_ ticks: [(Double, Double)]) { self.ticks = ticks.map { (value: $0.0, position: $0.1) } }

        func position(_ value: Double) throws -> Double {
            let (first, last) = try (#require(ticks.first), #require(ticks.last))
            try #require(ticks.count >= 2)
            let share = (value - first.value) / (last.value - first.value)
            return first.position + share * (last.position - first.position)
        }

        func value(_ position: Double) throws -> Double {
            let (first, last) = try (#require(ticks.first), #require(ticks.last))
            let share = (position - first.position) / (last.position - first.position)
            return first.value + share * (last.value - first.value)
        }
    }
}
