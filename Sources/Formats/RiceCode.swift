#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The code of a ternary vector's kept entries: the gap before each in Golomb's code for powers of two (Rice's), then its
/// sign.
///
/// A gap of `g` zeros is `g >> b` ones, a zero, and the lowest `b` bits of `g`, lowest first; the sign is one bit, 1 for
/// a negative entry. Bits fill bytes from the lowest; the rest of the last byte is 0.
public enum RiceCode {
    /// The number `b` of low bits that is best for gaps between kept entries of a random vector of this density.
    ///
    /// `1 + floor(log2(ln(phi - 1) / ln(1 - density)))` with the golden ratio `phi`, and never below 0. arXiv 1903.02891
    public static func lowBits(kept: Int, of count: Int) -> Int {
        guard kept > 0, kept < count else { return 0 }
        let golden = (1 + 5.0.squareRoot()) / 2
        let ratio: Double = log(golden - 1) / log1p(-Double(kept) / Double(count))
        let best = 1 + log2(ratio).rounded(.down)
        return min(max(0, Int(best)), mostLowBits)
    }

    /// Bits of a kept entry on average, its sign included, for a random vector of this density.
    public static func expectedBits(density: Double, lowBits: Int) -> Double {
        let hit = -expm1(exp2(Double(lowBits)) * log1p(-density))
        return Double(lowBits) + 1 / hit + 1
    }

    /// The fewest bits of an entry on average that any code needs for random signs at random places:
    /// `-(1 - k) log2(1 - k) - k log2(k / 2)`.
    public static func entropy(density k: Double) -> Double {
        guard k > 0 else { return 0 }
        let dropped: Double = k < 1 ? (k - 1) * log2(1 - k) : 0
        return dropped - k * log2(k / 2)
    }

    /// More would not be a gap of entries that memory can hold.
    static let mostLowBits = 40

    /// The code of a vector's entries.
    public static func encoded(_ vector: TernaryVector, lowBits: Int) -> [UInt8] {
        var bits = BitWriter()
        var next = 0
        vector.forEachKept { index, isNegative in
            let gap = index - next
            bits.ones(gap >> lowBits)
            bits.append(0, count: 1)
            bits.append(UInt64(gap), count: lowBits)
            bits.append(isNegative ? 1 : 0, count: 1)
            next = index + 1
        }
        return bits.bytes
    }

    /// Reads as many kept entries as there should be into a vector of zeros.
    ///
    /// - Returns: What is wrong with the code, and the byte where, or nil.
    static func decode(
        _ bytes: UnsafeRawBufferPointer, kept: Int, lowBits: Int, into vector: inout TernaryVector
    ) -> (message: String, byte: Int)? {
        var bits = BitReader(bytes)
        var index = -1
        for number in 0..<kept {
            guard let high = bits.ones(limit: vector.count >> lowBits + 1), let low = bits.take(lowBits),
                let sign = bits.take(1)
            else {
                return ("the codes end, or stand for no place in the vector, at entry \(number) of \(kept)", bits.byte)
            }
            index += 1 + high << lowBits + Int(low)
            guard index < vector.count else {
                return ("entry \(number) of \(kept) would be at \(index) of \(vector.count) values", bits.byte)
            }
            vector.keep(index, isNegative: sign == 1)
        }
        return bits.isAtEnd ? nil : ("\(kept) entries end here, but more bits follow", bits.byte)
    }
}

/// Bits into bytes, lowest first.
private struct BitWriter {
    private(set) var bytes: [UInt8] = []
    private var used = 8

    mutating func append(_ value: UInt64, count: Int) {
        for place in 0..<count {
            if used == 8 {
                bytes.append(0)
                used = 0
            }
            bytes[bytes.count - 1] |= UInt8(value >> UInt64(place) & 1) << UInt8(used)
            used += 1
        }
    }

    mutating func ones(_ count: Int) {
        for _ in 0..<count { append(1, count: 1) }
    }
}

/// Bits out of bytes, lowest first.
private struct BitReader {
    private let bytes: UnsafeRawBufferPointer
    private var position = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    /// The byte that is being read.
    var byte: Int { min(position / 8, bytes.count) }

    /// Whether nothing is left but the zeros that fill the last byte.
    var isAtEnd: Bool {
        guard (position + 7) / 8 == bytes.count else { return false }
        return position % 8 == 0 || bytes[position / 8] >> UInt8(position % 8) == 0
    }

    /// The next bits as a number, lowest first, or nil where they end.
    mutating func take(_ count: Int) -> UInt64? {
        guard count <= bytes.count * 8 - position else { return nil }
        var value: UInt64 = 0
        for place in 0..<count {
            value |= UInt64(bytes[position / 8] >> UInt8(position % 8) & 1) << UInt64(place)
            position += 1
        }
        return value
    }

    /// The number of ones before the next zero, which is passed over, or nil where there are more than the limit or
    /// the bits end.
    mutating func ones(limit: Int) -> Int? {
        var count = 0
        while let bit = take(1) {
            if bit == 0 { return count }
            count += 1
            if count > limit { return nil }
        }
        return nil
    }
}
