import Foundation

/// A small random generator (SplitMix64): the same seed gives the same values on every machine.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// A generator whose values depend on the seed alone.
    public init(seed: UInt64) { state = seed }

    /// The next 64 random bits.
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var bits = state
        bits = (bits ^ (bits >> 30)) &* 0xBF58_476D_1CE4_E5B9
        bits = (bits ^ (bits >> 27)) &* 0x94D0_49BB_1331_11EB
        return bits ^ (bits >> 31)
    }

    /// A number in 0 ..< 1.
    public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

    /// A number from the standard normal distribution.
    public mutating func normal() -> Double {
        let radius = (-2 * Foundation.log(1 - uniform())).squareRoot()
        return radius * Foundation.cos(2 * Double.pi * uniform())
    }

    /// Normally distributed numbers.
    public mutating func normals(_ count: Int) -> [Float] { (0..<count).map { _ in Float(normal()) } }

    /// Token ids below `vocabulary`: `rows` lists of `length`.
    public mutating func tokens(rows: Int, length: Int, vocabulary: Int) -> [[Int]] {
        (0..<rows).map { _ in (0..<length).map { _ in Int.random(in: 0..<vocabulary, using: &self) } }
    }

    /// A string of `length` Unicode scalars from the whole range, mostly from its busy parts.
    public mutating func text(length: Int) -> String {
        let ranges: [ClosedRange<UInt32>] = [
            0x20...0x7E, 0x20...0x7E, 0x09...0x0D, 0x30...0x39, 0xA0...0x24F, 0x300...0x36F, 0x370...0x5FF,
            0x900...0xDFF, 0x2000...0x206F, 0x3040...0x30FF, 0x4E00...0x9FFF, 0x1F300...0x1FAFF, 0x0...0x10FFFF,
        ]
        var text = String.UnicodeScalarView()
        while text.count < length {
            let range = ranges[Int.random(in: ranges.indices, using: &self)]
            if let scalar = Unicode.Scalar(UInt32.random(in: range, using: &self)) { text.append(scalar) }
        }
        return String(text)
    }
}
