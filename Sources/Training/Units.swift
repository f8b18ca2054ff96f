import Foundation

/// Numbers written for people to read, in the same way in every table, plan and progress line.
package enum Units {
    /// A time span: `0.4s`, `12s`, `1m 05s`, `2h 03m`, `3d 04h`.
    ///
    /// A span that is negative counts as zero; one that is not finite is written as `?`.
    ///
    /// - Parameter seconds: The span in seconds.
    package static func duration(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e15 else { return "?" }
        // Below ten seconds tenths matter. 9.95 rounds up to "10.0", which belongs to the next form.
        if seconds < 9.95 { return fixed(max(0, seconds), decimals: 1) + "s" }
        let whole = Int(seconds.rounded())
        switch whole {
        case ..<60: return "\(whole)s"
        case ..<3600: return "\(whole / 60)m \(twoDigits(whole % 60))s"
        case ..<86_400: return "\(whole / 3600)h \(twoDigits(whole / 60 % 60))m"
        default: return "\(whole / 86_400)d \(twoDigits(whole / 3600 % 24))h"
        }
    }

    /// A count: `999`, `1.2k`, `12.3k`, `123k`, `4.9M`, `1.2B`.
    package static func count(_ count: Int) -> String {
        count.magnitude < 1000 ? "\(count)" : scaled(Double(count), ["", "k", "M", "B", "T"]) { $0 < 99.95 ? 1 : 0 }
    }

    /// A count that need not be whole, such as tokens a second: as ``count(_:)``, and `?` when it is not finite.
    package static func count(_ count: Double) -> String {
        guard count.isFinite, abs(count) < 1e15 else { return "?" }
        return Self.count(Int(count.rounded()))
    }

    /// A size in decimal units (1 kB = 1000 bytes), to three digits: `512 B`, `1.23 kB`, `12.3 MB`, `123 GB`.
    ///
    /// - Parameter bytes: The size in bytes.
    package static func bytes(_ bytes: Int) -> String {
        guard bytes.magnitude >= 1000 else { return "\(bytes) B" }
        return scaled(Double(bytes), [" B", " kB", " MB", " GB", " TB", " PB", " EB"]) {
            $0 < 9.995 ? 2 : $0 < 99.95 ? 1 : 0
        }
    }

    /// A number with exactly so many digits after the point, rounded half to even as C does; `nan`, `inf`, `-inf`.
    package static func fixed(_ value: Double, decimals: Int) -> String {
        String(format: "%.\(max(0, decimals))f", value)
    }

    /// A loss: four digits after the point, in exponent form when that would show none or far too many digits.
    package static func loss(_ value: Double) -> String {
        let size = abs(value)
        let isPlain = size == 0 || !size.isFinite || (size >= 0.001 && size < 100_000)
        return isPlain ? fixed(value, decimals: 4) : scientific(value)
    }

    /// A number in exponent form with three digits, as learning rates are written: `2.00e-04`.
    package static func scientific(_ value: Double) -> String { String(format: "%.2e", value) }

    /// A share of one as per cent: `0.0312` is `3.12%`.
    package static func percent(_ share: Double, decimals: Int = 2) -> String {
        fixed(share * 100, decimals: decimals) + "%"
    }

    /// `value` divided by the largest power of 1000 that leaves it at least one after rounding, and that power's sign.
    private static func scaled(_ value: Double, _ units: [String], decimals: (Double) -> Int) -> String {
        var rest = value
        var unit = 0
        // 999.5 and above would print as "1000": it is one of the next unit.
        while abs(rest) >= 999.5, unit < units.count - 1 {
            rest /= 1000
            unit += 1
        }
        return fixed(rest, decimals: decimals(abs(rest))) + units[unit]
    }

    private static func twoDigits(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
}
