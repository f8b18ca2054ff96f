/// A vector whose entries are `-scale`, 0 and `scale`: two bit masks and a number.
///
/// Sums of products and distances of two such vectors are counts of bits, 64 entries at a time.
public struct TernaryVector: Sendable, Equatable {
    /// The number of entries.
    public let count: Int
    /// The size of the entries that are not 0.
    public var scale: Float
    /// Bit `i % 64` of word `i / 64` is set where entry `i` is `scale`; bits from `count` on are 0.
    public private(set) var positive: [UInt64]
    /// Likewise where entry `i` is `-scale`.
    public private(set) var negative: [UInt64]

    /// Makes a vector of zeros.
    public init(count: Int, scale: Float) {
        self.count = max(0, count)
        self.scale = scale
        let words = (self.count + 63) / 64
        positive = Array(repeating: 0, count: words)
        negative = positive
    }

    /// The number of entries that are not 0.
    public var keptCount: Int { Self.bits(positive) + Self.bits(negative) }

    /// Makes an entry that is 0 so far `scale` or `-scale`; entries beyond the end are left out.
    public mutating func keep(_ index: Int, isNegative: Bool) {
        guard index >= 0, index < count else { return }
        if isNegative {
            negative[index / 64] |= 1 << UInt64(index % 64)
        } else {
            positive[index / 64] |= 1 << UInt64(index % 64)
        }
    }

    /// The sign of an entry: -1, 0 or 1.
    public func sign(_ index: Int) -> Int {
        guard index >= 0, index < count else { return 0 }
        func bit(_ words: [UInt64]) -> Int { Int(words[index / 64] >> UInt64(index % 64) & 1) }
        return bit(positive) - bit(negative)
    }

    /// Calls `body` for every entry that is not 0, in order.
    ///
    /// - Throws: What `body` throws.
    public func forEachKept(_ body: (_ index: Int, _ isNegative: Bool) throws -> Void) rethrows {
        for word in positive.indices {
            var rest = positive[word] | negative[word]
            while rest != 0 {
                let bit = rest.trailingZeroBitCount
                try body(word * 64 + bit, negative[word] >> UInt64(bit) & 1 == 1)
                rest &= rest - 1
            }
        }
    }

    /// Writes a range of the entries as numbers; `memory` has one place for each.
    public func write(_ range: Range<Int>, to memory: UnsafeMutableBufferPointer<Float>) {
        for (place, index) in zip(memory.indices, range) { memory[place] = scale * Float(sign(index)) }
    }

    /// The sum of the products of the entries of two vectors of one length; nil where the lengths differ.
    ///
    /// `|P P'| + |N N'| - |P N'| - |N P'|`, times both scales.
    public func dot(_ other: TernaryVector) -> Double? {
        guard count == other.count else { return nil }
        var sum = 0
        for word in positive.indices {
            let (p, n, otherP, otherN) = (
                positive[word], negative[word], other.positive[word], other.negative[word]
            )
            sum += (p & otherP | n & otherN).nonzeroBitCount - (p & otherN | n & otherP).nonzeroBitCount
        }
        return Double(sum) * Double(scale) * Double(other.scale)
    }

    /// The number of entries whose signs differ; nil where the lengths differ.
    public func hammingDistance(_ other: TernaryVector) -> Int? {
        guard count == other.count else { return nil }
        return positive.indices.reduce(0) { sum, word in
            sum + ((positive[word] ^ other.positive[word]) | (negative[word] ^ other.negative[word])).nonzeroBitCount
        }
    }

    /// The sum of the absolute differences of two vectors' signs, 2 where they are opposite; nil where the lengths differ.
    public func signDistance(_ other: TernaryVector) -> Int? {
        guard count == other.count else { return nil }
        return positive.indices.reduce(0) { sum, word in
            sum + (positive[word] ^ other.positive[word]).nonzeroBitCount
                + (negative[word] ^ other.negative[word]).nonzeroBitCount
        }
    }

    private static func bits(_ words: [UInt64]) -> Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }
}
