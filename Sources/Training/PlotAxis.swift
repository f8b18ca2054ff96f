import Foundation

/// One axis of a plot: the range of values shown and the round values labelled on it.
struct PlotAxis {
    /// The values at the two ends; the lower one is less than the upper one.
    let range: ClosedRange<Double>
    /// The labelled values, ascending, all inside the range.
    let ticks: [Double]
    /// The digits after the point that tell the ticks apart.
    let decimals: Int

    /// An axis of step counts: whole ticks, and from zero unless the data begin far from it.
    init(steps: ClosedRange<Double>?) {
        let last = max(1, steps?.upperBound ?? 1)
        let first = max(0, steps?.lowerBound ?? 0)
        let start = first <= last / 4 ? 0 : min(first, last - max(1, last * 1e-6))
        self.init(range: start...last, count: 7, smallestStep: 1)
    }

    /// An axis of losses, with some air above and below; it does not pass zero if the data do not.
    init(losses: ClosedRange<Double>?) {
        let data = losses ?? 0...1
        let size = max(abs(data.lowerBound), abs(data.upperBound))
        let span = data.upperBound - data.lowerBound
        // A constant gets a band around it. So does what differs only by rounding: ticks could not be told apart.
        let air = span > max(size * 1e-6, 1e-100) ? span * 0.05 : size > 1e-100 ? size * 0.1 : 0.5
        let low = data.lowerBound - air
        self.init(range: (data.lowerBound >= 0 ? max(0, low) : low)...(data.upperBound + air), count: 6)
    }

    /// - Parameters:
    ///   - count: About how many ticks are wanted.
    ///   - smallestStep: The least distance of two ticks.
    private init(range: ClosedRange<Double>, count: Int, smallestStep: Double = 0) {
        self.range = range
        let wanted = max(smallestStep, (range.upperBound - range.lowerBound) / Double(count))
        // The first of 1, 2, 2.5 and 5 times a power of ten that is not less than the wanted distance.
        let exponent = log10(wanted).rounded(.down)
        let power = pow(10, exponent)
        let fits = [1, 2, 2.5, 5, 10].first { factor in
            let step = factor * power
            return step >= wanted * 0.999_999 && (smallestStep < 1 || step == step.rounded())
        }
        let step = (fits ?? 10) * power
        decimals = max(0, Int(-exponent) + (fits == 2.5 ? 1 : fits == 10 ? -1 : 0))

        let first = (range.lowerBound / step - 1e-9).rounded(.up)
        let last = (range.upperBound / step + 1e-9).rounded(.down)
        // Counted, not summed up: a sum gathers rounding errors.
        let steps = max(0, min(20, last - first))
        ticks = last < first ? [] : (0...Int(steps)).map { (first + Double($0)) * step }
    }

    /// The label of a tick: `1,500`, `0.25`, `2.5e+12`.
    func label(_ value: Double) -> String {
        let size = abs(value)
        if size >= 1e9 || decimals > 6 { return String(format: "%.4g", value) }
        let text = Units.fixed(value, decimals: decimals)
        guard decimals == 0, size >= 1000 else { return text }
        var grouped: [Character] = []
        for (index, digit) in text.reversed().enumerated() {
            if index > 0, index % 3 == 0, digit != "-" { grouped.append(",") }
            grouped.append(digit)
        }
        return String(grouped.reversed())
    }
}
