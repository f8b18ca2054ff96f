/// Decimal numbers as the reference's JSON reader makes them.
///
/// It rounds twice, the digits and then their quotient by a power of ten, so about every fourth score of a Unigram
/// vocabulary comes out as the neighbour of the nearest number. Where two ways to write a word score alike, as `66` + `6`
/// and `6` + `66`, that decides.
enum ReferenceNumber {
    private static let powersOfTen = (0...308).map { Double("1e\($0)") ?? .infinity }

    /// What the reference reads for the shortest text of a number.
    static func read(_ value: Double) -> Double {
        var digits: UInt64 = 0
        var exponent = 0
        var isFraction = false
        let parts = value.magnitude.description.split(separator: "e", maxSplits: 1)
        for character in (parts.first ?? "").utf8 {
            guard character != UInt8(ascii: ".") else {
                isFraction = true
                continue
            }
            let (shifted, tooBig) = digits.multipliedReportingOverflow(by: 10)
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(character), !tooBig else { return value }
            let (next, overflows) = shifted.addingReportingOverflow(UInt64(character - UInt8(ascii: "0")))
            guard !overflows else { return value }
            digits = next
            if isFraction { exponent -= 1 }
        }
        if parts.count == 2 {
            guard let power = Int(parts[1]), abs(power) < 1000 else { return value }
            exponent += power
        }
        guard abs(exponent) < powersOfTen.count else { return value }
        let scale = powersOfTen[abs(exponent)]
        let result = exponent < 0 ? Double(digits) / scale : Double(digits) * scale
        return value.sign == .minus ? -result : result
    }
}
