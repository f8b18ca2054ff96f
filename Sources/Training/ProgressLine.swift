import Foundation

/// How far a run is: one live line on a terminal, plain lines now and then elsewhere, on standard error.
///
/// The live line fits the terminal's width and is drawn at most ten times a second. Off a terminal (a pipe, a log file)
/// the first step gets a line, then one follows every few seconds, more seldom the longer the run is.
package final class ProgressLine {
    /// Where the lines go.
    package struct Output {
        /// Whether a line can be drawn over.
        package var isTerminal: Bool
        /// Whether colours show.
        package var isColoured: Bool
        /// Whether signs outside ASCII show.
        package var isUnicode: Bool
        /// The columns of the terminal now.
        package var width: () -> Int
        /// Writes text without delay.
        package var write: (String) -> Void
        /// A clock in seconds that never goes back.
        package var now: () -> Double

        /// An output of one's own making.
        package init(
            isTerminal: Bool, isUnicode: Bool = true, width: @escaping () -> Int = { 80 },
            write: @escaping (String) -> Void, now: @escaping () -> Double = { ProcessInfo.processInfo.systemUptime }
        ) {
            self.isTerminal = isTerminal
            isColoured = isTerminal
            self.isUnicode = isUnicode
            self.width = width
            self.write = write
            self.now = now
        }

        /// Standard error, live if it is a terminal that can be drawn on.
        package static func standardError() -> Output {
            let environment = ProcessInfo.processInfo.environment
            let isDumb = environment["TERM"].map { $0.isEmpty || $0 == "dumb" } ?? true
            var output = Output(
                isTerminal: isatty(STDERR_FILENO) == 1 && !isDumb, isUnicode: hasUnicodeLocale(environment),
                width: terminalWidth, write: writeToStandardError)
            if environment["NO_COLOR"]?.isEmpty == false { output.isColoured = false }
            return output
        }
    }

    /// What is known after a step.
    ///
    /// What is `nil` is not shown.
    package struct State: Sendable {
        /// The steps done.
        package var step: Int
        /// The passes over the data, in parts of one.
        package var epoch: Double?
        /// The training loss.
        package var loss: Double?
        /// The learning rate of the step.
        package var learningRate: Double?
        /// The speed.
        package var tokensPerSecond: Double?
        /// The memory in use or the most that was, in bytes.
        package var memoryBytes: Int?

        /// The state after a step.
        package init(
            step: Int, epoch: Double? = nil, loss: Double? = nil, learningRate: Double? = nil,
            tokensPerSecond: Double? = nil, memoryBytes: Int? = nil
        ) {
            self.step = step
            self.epoch = epoch
            self.loss = loss
            self.learningRate = learningRate
            self.tokensPerSecond = tokensPerSecond
            self.memoryBytes = memoryBytes
        }
    }

    private let total: Int
    private let every: Int?
    private let output: Output
    private let start: Double
    private var pace: Pace
    private var state: State?
    private var lastDrawn = -Double.infinity
    /// Whether the live line is on the screen.
    private var isShowing = false
    /// Whether the last state is already in a plain line.
    private var isLogged = true

    /// Starts the clock of a run.
    ///
    /// - Parameters:
    ///   - total: The steps of the whole run.
    ///   - done: The steps done before, in a resumed run.
    ///   - every: Off a terminal: a line after each step that is a multiple of this, instead of by time.
    ///   - output: Where to write; standard error by default.
    package init(total: Int, startingAt done: Int = 0, every: Int? = nil, output: Output = .standardError()) {
        self.total = total
        self.every = every.map { max(1, $0) }
        self.output = output
        start = output.now()
        pace = Pace(step: done, time: start)
    }

    // A run that fails lets go of its progress line: what is printed next must not stand behind it.
    deinit { finish() }

    /// Takes in the state after a step and shows it if it is time to.
    package func update(_ state: State) {
        let now = output.now()
        pace.record(step: state.step, time: now)
        self.state = state
        isLogged = false
        if output.isTerminal {
            guard now - lastDrawn >= 0.1 else { return }
            lastDrawn = now
            draw(state)
        } else if isTimeForLine(state.step, now: now) {
            lastDrawn = now
            log(state)
        }
    }

    /// Writes a line that stays, such as an evaluation's result, above the live one.
    package func message(_ line: String) {
        clear()
        output.write(line + "\n")
        if output.isTerminal, let state { draw(state) }
    }

    /// Ends the display: takes the live line away and leaves a plain one with the last state.
    package func finish() {
        clear()
        if let state, !isLogged { log(state) }
        state = nil
    }

    private func isTimeForLine(_ step: Int, now: Double) -> Bool {
        if let every { return step % every == 0 || step >= total }
        // A day's run needs no line every 5 s: about a hundred lines tell its course, one a minute at the least.
        let left = pace.secondsLeft(total: total) ?? 0
        let interval = min(60, max(5, (now - start + left) / 100))
        return now - lastDrawn >= interval || step >= total
    }

    private func log(_ state: State) {
        let left = state.step < total ? pace.secondsLeft(total: total).map { ["ETA " + Units.duration($0)] } ?? [] : []
        let time = state.step < total ? left : [Units.duration(output.now() - start)]
        let epoch = state.epoch.map { ["epoch " + Units.fixed($0, decimals: 2)] } ?? []
        let parts = ["step \(state.step)/\(total)"] + epoch + state.figures.map(\.text) + time
        output.write(parts.joined(separator: "  ") + "\n")
        isLogged = true
    }

    private func draw(_ state: State) {
        // The last column stays free: some terminals wrap as soon as it is written.
        let width = max(1, output.width() - 1)
        let left = pace.secondsLeft(total: total).map { "ETA " + Units.duration($0) }
        let line = LiveLine(state: state, total: total, timeLeft: left, isUnicode: output.isUnicode).text(width: width)
        output.write("\r" + line + "\u{1B}[K")
        isShowing = true
    }

    private func clear() {
        guard isShowing else { return }
        output.write("\r\u{1B}[K")
        isShowing = false
    }
}

extension ProgressLine.State {
    /// The figures in the order in which they are shown, the first to go when space is short having the least weight.
    fileprivate var figures: [(text: String, weight: Int)] {
        let all: [(String?, Int)] = [
            (loss.map { "loss " + Units.loss($0) }, 5),
            (learningRate.map { "lr " + Units.scientific($0) }, 2),
            (tokensPerSecond.map { Units.count($0) + " tok/s" }, 3),
            (memoryBytes.map(Units.bytes), 1),
        ]
        return all.compactMap { text, weight in text.map { ($0, weight) } }
    }
}

/// The layout of the live line: `52/200 ━━━━━━────── loss 1.2345  lr 2.00e-04  1.2k tok/s  812 MB  ETA 1m 05s`.
private struct LiveLine {
    let state: ProgressLine.State
    let total: Int
    let timeLeft: String?
    let isUnicode: Bool

    private let gap = "  "
    private let shortestBar = 8
    private let longestBar = 30

    /// The line in at most so many columns.
    ///
    /// The bar shrinks first, then figures leave from the least important on.
    func text(width: Int) -> String {
        // Padded to the total's digits, so that the line does not wander.
        let step = "\(state.step)"
        let head = String(repeating: " ", count: max(0, "\(total)".count - step.count)) + "\(step)/\(total)"
        var parts = state.figures
        if let timeLeft { parts.append((timeLeft, 4)) }

        while true {
            let tail = parts.map { gap + $0.text }.joined()
            let space = width - head.count - tail.count - gap.count
            if space >= shortestBar { return head + gap + bar(min(space, longestBar)) + tail }
            guard let least = parts.indices.min(by: { parts[$0].weight < parts[$1].weight }) else { break }
            // Three figures say more than a bar does.
            if parts.count <= 3, space + gap.count >= 0 { return head + tail }
            parts.remove(at: least)
        }
        return String(head.prefix(width))
    }

    private func bar(_ width: Int) -> String {
        let share = total > 0 ? min(1, max(0, Double(state.step) / Double(total))) : 1
        let full = Int(share * Double(width))
        let (done, rest) = isUnicode ? ("━", "─") : ("#", "-")
        return String(repeating: done, count: full) + String(repeating: rest, count: width - full)
    }
}

/// The speed of the steps of late, from which the time left follows.
private struct Pace {
    private var step: Int
    private var time: Double
    /// The mean seconds a step, where each step back counts 5% less, and the sum of those weights.
    private var mean = 0.0
    private var weight = 0.0

    init(step: Int, time: Double) {
        self.step = step
        self.time = time
    }

    mutating func record(step: Int, time: Double) {
        guard step > self.step else { return }
        let steps = Double(step - self.step)
        let decay = pow(0.95, steps)
        let total = weight * decay + (1 - decay)
        mean = (mean * weight * decay + (time - self.time) / steps * (1 - decay)) / total
        weight = total
        self.step = step
        self.time = time
    }

    /// The seconds until the run's last step; `nil` before the first step of this process.
    func secondsLeft(total: Int) -> Double? { weight > 0 ? mean * Double(max(0, total - step)) : nil }
}

private func hasUnicodeLocale(_ environment: [String: String]) -> Bool {
    // The first that is set and not empty counts, as the C library has it.
    let name = ["LC_ALL", "LC_CTYPE", "LANG"].lazy.compactMap { environment[$0] }.first { !$0.isEmpty } ?? ""
    let folded = name.uppercased()
    return folded.contains("UTF-8") || folded.contains("UTF8")
}

private func terminalWidth() -> Int {
    var size = winsize()
    guard ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
    return Int(size.ws_col)
}

/// Progress must not stop a run: a closed or full standard error is ignored.
private func writeToStandardError(_ text: String) {
    let bytes = Array(text.utf8)
    var written = 0
    while written < bytes.count {
        let count = bytes[written...].withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
        if count > 0 {
            written += count
        } else if errno != EINTR {
            return
        }
    }
}
