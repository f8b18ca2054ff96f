import TestSupport
import Testing
import Training

@Suite struct ProgressLineTests {
    @Test func aTerminalSeesOneLineAndAtTheEndAPlainOne() {
        let screen = Screen(width: 100)
        let progress = ProgressLine(total: 200, output: screen.output(isTerminal: true))
        for step in 1...52 {
            screen.time += 0.5
            progress.update(state(step))
        }
        #expect(
            screen.lines == [
                " 52/200  ━━━━━━━───────────────────────  loss 1.2345  lr 2.00e-04  1.2k tok/s  812 MB  ETA 1m 14s"
            ])
        progress.message("step 52/200  eval loss 1.5000")
        #expect(screen.lines.count == 2)
        #expect(screen.lines[0] == "step 52/200  eval loss 1.5000")
        #expect(screen.lines[1].hasPrefix(" 52/200  ━"))
        screen.time += 74
        progress.update(state(200))
        progress.finish()
        #expect(
            screen.lines == [
                "step 52/200  eval loss 1.5000",
                "step 200/200  epoch 2.00  loss 1.2345  lr 2.00e-04  1.2k tok/s  812 MB  1m 40s", "",
            ])
    }

    @Test(arguments: 1...140)
    func everyWidthIsKept(width: Int) {
        let screen = Screen(width: width)
        let progress = ProgressLine(total: 2000, output: screen.output(isTerminal: true))
        for step in [1, 1000, 2000] {
            screen.time += 100
            progress.update(state(step))
            #expect(screen.lines.count == 1)
            #expect(screen.lines[0].count <= max(1, width - 1))
        }
        let line = screen.lines[0]
        // What matters most is last to go.
        #expect(width <= 10 || line.hasPrefix("2000/2000"))
        #expect(line.contains("loss") == (width > 22))
        #expect(line.contains("ETA") == (width > 32))
        #expect(!line.contains("lr") || line.contains("tok/s"))
        #expect(!line.contains("MB") || (line.contains("lr") && line.contains("━━━━━━━━")))
        #expect(line.contains("MB") == (width > 75))
        progress.finish()
        #expect(screen.lines.count == 2 && screen.lines[1].isEmpty)
    }

    @Test func aTerminalIsDrawnOnAtMostTenTimesASecond() {
        let screen = Screen(width: 80)
        let progress = ProgressLine(total: 10_000, output: screen.output(isTerminal: true))
        for step in 1...10_000 {
            screen.time += 0.001
            progress.update(state(step))
        }
        #expect((90...101).contains(screen.writes))
        progress.finish()
        // The last state is shown although its redraw was not due.
        #expect(screen.lines[0].hasPrefix("step 10000/10000"))
    }

    @Test func withoutUnicodeTheBarIsASCII() {
        let screen = Screen(width: 90)
        let progress = ProgressLine(total: 4, output: screen.output(isTerminal: true, isUnicode: false))
        screen.time += 1
        progress.update(.init(step: 1, loss: .nan))
        #expect(screen.lines == ["1/4  #######-----------------------  loss nan  ETA 3.0s"])
    }

    @Test func offATerminalLinesComeAtOnceAndThenEveryFewSeconds() {
        let screen = Screen(width: 80)
        let progress = ProgressLine(total: 300, output: screen.output(isTerminal: false))
        for step in 1...300 {
            screen.time += 0.1
            progress.update(state(step))
        }
        progress.finish()
        let lines = screen.lines.dropLast()
        #expect(lines.first == "step 1/300  epoch 0.01  loss 1.2345  lr 2.00e-04  1.2k tok/s  812 MB  ETA 30s")
        #expect(lines.last == "step 300/300  epoch 3.00  loss 1.2345  lr 2.00e-04  1.2k tok/s  812 MB  30s")
        // 30 seconds: the first, five or so between, the last; no sign but text.
        #expect((6...8).contains(lines.count))
        #expect(lines.allSatisfy { $0.allSatisfy { $0.isASCII && $0 >= " " } })
    }

    @Test func aLongRunOffATerminalDoesNotFloodItsLog() {
        let screen = Screen(width: 80)
        let progress = ProgressLine(total: 36_000, output: screen.output(isTerminal: false))
        for step in 1...36_000 {
            screen.time += 1
            progress.update(state(step))
        }
        progress.finish()
        #expect((590...620).contains(screen.lines.count))
    }

    @Test func aSetNumberOfStepsReplacesTheClock() {
        let screen = Screen(width: 80)
        let progress = ProgressLine(total: 95, every: 10, output: screen.output(isTerminal: false))
        for step in 1...95 {
            screen.time += 60
            progress.update(state(step))
        }
        progress.finish()
        let steps = screen.lines.dropLast().map { $0.split(separator: " ")[1] }
        #expect(steps == ["10/95", "20/95", "30/95", "40/95", "50/95", "60/95", "70/95", "80/95", "90/95", "95/95"])
    }

    @Test func theTimeLeftFollowsThePaceOfThisProcess() {
        let screen = Screen(width: 80)
        let progress = ProgressLine(total: 1000, startingAt: 500, output: screen.output(isTerminal: false))
        // A slow first step (loading, compiling) must be forgotten.
        screen.time += 20
        progress.update(state(501))
        #expect(screen.lines[0].hasSuffix("ETA 2h 46m"))
        for step in 502...700 {
            screen.time += 0.2
            progress.update(state(step))
        }
        screen.time += 0.2
        progress.update(state(701))
        #expect(screen.lines.dropLast().last?.contains("ETA 1m 0") == true)
    }

    @Test func aRunThatFailsLeavesItsLastStateOnALineOfItsOwn() {
        let screen = Screen(width: 80)
        do {
            let progress = ProgressLine(total: 10, output: screen.output(isTerminal: true))
            progress.update(.init(step: 3, loss: 2))
        }
        #expect(screen.lines == ["step 3/10  loss 2.0000  ETA 0.0s", ""])
    }

    @Test func aRunThatMeasuredNothingLeavesNothing() {
        for isTerminal in [true, false] {
            let screen = Screen(width: 80)
            let progress = ProgressLine(total: 10, output: screen.output(isTerminal: isTerminal))
            progress.finish()
            #expect(screen.lines == [""])
        }
    }

    private func state(_ step: Int) -> ProgressLine.State {
        .init(
            step: step, epoch: Double(step) / 100, loss: 1.23454, learningRate: 2e-4, tokensPerSecond: 1234,
            memoryBytes: 812_000_000)
    }
}

/// A terminal, as far as a progress line uses one: text, return, line break, and "erase to the end of the line".
private final class Screen {
    private(set) var lines = [""]
    private(set) var writes = 0
    var time = 100.0
    private var column = 0
    private let width: Int

    init(width: Int) { self.width = width }

    func output(isTerminal: Bool, isUnicode: Bool = true) -> ProgressLine.Output {
        ProgressLine.Output(
            isTerminal: isTerminal, isUnicode: isUnicode, width: { self.width }, write: { self.write($0) },
            now: { self.time })
    }

    private func write(_ text: String) {
        writes += 1
        var rest = Substring(text)
        while let sign = rest.popFirst() {
            var line = Array(lines[lines.count - 1])
            switch sign {
            case "\r": column = 0
            case "\n":
                lines.append("")
                column = 0
                continue
            case "\u{1B}":
                #expect(rest.hasPrefix("[K"))
                rest = rest.dropFirst(2)
                line.removeSubrange(min(column, line.count)...)
            default:
                if column < line.count { line[column] = sign } else { line.append(sign) }
                column += 1
            }
            lines[lines.count - 1] = String(line)
        }
    }
}
