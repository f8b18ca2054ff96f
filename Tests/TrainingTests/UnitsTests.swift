import TestSupport
import Testing
import Training

@Suite struct UnitsTests {
    @Test(
        arguments: [
            (0, "0.0s"), (0.449, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.5, "1m 00s"),
            (65, "1m 05s"),
            (3599.4, "59m 59s"), (3599.5, "1h 00m"), (7380, "2h 03m"), (86_399.4, "23h 59m"), (86_400, "1d 00h"),
            (273_600, "3d 04h"), (-3, "0.0s"), (.infinity, "?"), (.nan, "?"),
        ] as [(Double, String)])
    func durationsChangeUnitOnlyAfterRounding(seconds: Double, text: String) {
        #expect(Units.duration(seconds) == text)
    }

    @Test(arguments: [
        (0, "0"), (999, "999"), (1000, "1.0k"), (1234, "1.2k"), (12_345, "12.3k"), (99_949, "99.9k"), (99_950, "100k"),
        (999_499, "999k"), (999_500, "1.0M"), (4_884_480, "4.9M"), (134_515_008, "135M"), (8_030_261_248, "8.0B"),
        (-1234, "-1.2k"),
    ])
    func countsKeepThreeDigitsAtMost(count: Int, text: String) {
        #expect(Units.count(count) == text)
    }

    @Test func ratesAreCountsThatNeedNotBeWhole() {
        #expect(Units.count(431.6) == "432")
        #expect(Units.count(1249.0) == "1.2k")
        #expect(Units.count(Double.nan) == "?")
        #expect(Units.count(Double.infinity) == "?")
    }

    @Test(arguments: [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_234_567, "1.23 MB"), (12_345_678, "12.3 MB"),
        (123_456_789, "123 MB"), (999_499_999, "999 MB"), (999_500_000, "1.00 GB"), (Int.max, "9.22 EB"),
        (Int.min, "-9.22 EB"),
    ])
    func sizesHaveThreeDigits(bytes: Int, text: String) {
        #expect(Units.bytes(bytes) == text)
    }

    @Test func lossesAndLearningRatesKeepTheirDigits() {
        #expect(Units.loss(1.23456) == "1.2346")
        #expect(Units.loss(0.00012345) == "1.23e-04")
        #expect(Units.loss(1_234_567) == "1.23e+06")
        #expect(Units.loss(0) == "0.0000")
        #expect(Units.loss(.nan) == "nan")
        #expect(Units.scientific(2e-4) == "2.00e-04")
        #expect(Units.percent(0.0312) == "3.12%")
        #expect(Units.percent(1, decimals: 0) == "100%")
    }

    @Test func everySizeIsShownWithinHalfAUnitOfItsLastDigit() throws {
        var generator = SeededGenerator(seed: 11)
        let factors = ["B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "EB": 1e18]
        for _ in 0..<2000 {
            let bytes = Int.random(in: 0...Int.max, using: &generator) >> Int.random(in: 0...62, using: &generator)
            let parts = Units.bytes(bytes).split(separator: " ")
            try #require(parts.count == 2)
            let number = try #require(Double(parts[0]))
            let factor = try #require(factors[String(parts[1])])
            let decimals = parts[0].split(separator: ".").dropFirst().first?.count ?? 0
            let unit = factor * [1, 0.1, 0.01][decimals]
            #expect(abs(number * factor - Double(bytes)) <= unit * 0.500_001)
            #expect(parts[0].count <= 4 && number < 1000)
        }
    }
}
