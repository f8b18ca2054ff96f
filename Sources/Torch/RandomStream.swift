import Crypto

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The seed of a run; every random tensor of the run comes from a stream named below it.
public struct Seed: Hashable, Sendable, Codable {
    /// The number that the user gave.
    public var value: UInt64

    /// Makes a seed from a number.
    public init(_ value: UInt64) {
        self.value = value
    }

    /// The stream with the given name; the same seed and name give the same numbers on every machine.
    public func stream(_ name: String) -> RandomStream { RandomStream(seed: self, name: name) }
}

/// A counter-based random stream keyed by (seed, name), so that results do not depend on the order in which streams
/// are made, on the platform, or on what was drawn from others.
///
/// Words are those of Philox4x64-10 (Salmon et al., 2011) with the counter starting at 1 and the key made of the
/// first 16 bytes, two little-endian words, of `SHA-256("graft\0" + seed as 8 little-endian bytes + name as UTF-8)`.
/// NumPy's `numpy.random.Philox(key=[k0, k1]).random_raw()` gives the same words.
public struct RandomStream: RandomNumberGenerator, Sendable {
    /// The two words of the key.
    public let key: (UInt64, UInt64)
    private var counter: UInt64 = 0
    private var block: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    private var used = 4

    /// Makes the stream of a name below a seed.
    public init(seed: Seed, name: String) {
        var hash = SHA256()
        hash.update(data: Array("graft\0".utf8))
        withUnsafeBytes(of: seed.value.littleEndian) { hash.update(bufferPointer: $0) }
        hash.update(data: Array(name.utf8))
        let words = hash.finalize().withUnsafeBytes { bytes in
            (bytes.loadUnaligned(as: UInt64.self), bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        }
        key = (UInt64(littleEndian: words.0), UInt64(littleEndian: words.1))
    }

    /// The next 64 random bits.
    public mutating func next() -> UInt64 {
        if used == 4 {
            counter &+= 1
            block = Self.philox(counter, key)
            used = 0
        }
        used += 1
        switch used {
        case 1: return block.0
        case 2: return block.1
        case 3: return block.2
        default: return block.3
        }
    }

    /// A number in `[0, 1)` with 53 random bits: the word shifted right by 11, over 2^53.
    public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

    /// A number from the standard normal distribution, by Box and Muller; two words each.
    public mutating func normal() -> Double {
        // 1 - u lies in (0, 1], where the logarithm is finite.
        let radius = (-2 * _log(1 - uniform())).squareRoot()
        return radius * _cos(2 * Double.pi * uniform())
    }

    /// A number in `0..<bound` without bias (Lemire's method over the high word).
    public mutating func below(_ bound: Int) -> Int {
        guard bound > 1 else { return 0 }
        let bound = UInt64(bound)
        var product = next().multipliedFullWidth(by: bound)
        if product.low < bound {
            let threshold = (0 &- bound) % bound
            while product.low < threshold { product = next().multipliedFullWidth(by: bound) }
        }
        return Int(product.high)
    }

    /// The numbers `0..<count` in random order (Fisher and Yates, from the last position down).
    public mutating func permutation(_ count: Int) -> [Int] {
        var order = Array(0..<count)
        for index in stride(from: count - 1, to: 0, by: -1) { order.swapAt(index, below(index + 1)) }
        return order
    }

    private static func philox(_ counter: UInt64, _ key: (UInt64, UInt64)) -> (UInt64, UInt64, UInt64, UInt64) {
        var (c0, c1, c2, c3): (UInt64, UInt64, UInt64, UInt64) = (counter, 0, 0, 0)
        var (k0, k1) = key
        for _ in 0..<10 {
            let first = c0.multipliedFullWidth(by: 0xD2E7_470E_E14C_6C93)
            let second = c2.multipliedFullWidth(by: 0xCA5A_8263_9512_1157)
            (c0, c1, c2, c3) = (second.high ^ c1 ^ k0, second.low, first.high ^ c3 ^ k1, first.low)
            k0 &+= 0x9E37_79B9_7F4A_7C15
            k1 &+= 0xBB67_AE85_84CA_A73B
        }
        return (c0, c1, c2, c3)
    }
}

extension Tensor {
    /// Numbers drawn evenly from `range`, in row-major order from the stream.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func uniform(
        _ shape: [Int], in range: Range<Double>, from stream: inout RandomStream, dtype: DType = .float32
    ) throws -> Tensor {
        let width = range.upperBound - range.lowerBound
        // Rounding to Float may reach the upper bound, which the range leaves out.
        let largest = max(Float(range.lowerBound), Float(range.upperBound).nextDown)
        return try drawn(shape, dtype) { min(Float(range.lowerBound + width * stream.uniform()), largest) }
    }

    /// Numbers drawn from a normal distribution, in row-major order from the stream.
    ///
    /// - Throws: `TorchError` when memory is short.
    public static func normal(
        _ shape: [Int], mean: Double = 0, standardDeviation: Double = 1, from stream: inout RandomStream,
        dtype: DType = .float32
    ) throws -> Tensor {
        try drawn(shape, dtype) { Float(mean + standardDeviation * stream.normal()) }
    }

    private static func drawn(_ shape: [Int], _ dtype: DType, _ draw: () -> Float) throws -> Tensor {
        let tensor = try Tensor.empty(shape)
        try tensor.withUnsafeMutableBytes { bytes in
            let elements = bytes.bindMemory(to: Float.self)
            for index in elements.indices { elements[index] = draw() }
        }
        return try tensor.to(dtype: dtype)
    }
}

/// A random generator of LibTorch, for tensors too large to draw in Swift, such as dropout masks.
///
/// Its numbers depend on the device and on LibTorch's version, unlike those of ``RandomStream``.
public final class Generator: @unchecked Sendable {
    let handle: OpaquePointer

    /// Makes a generator seeded by the first word of a stream.
    ///
    /// - Throws: `TorchError` when the device is not there.
    public init(_ stream: RandomStream, device: Device = .cpu) throws {
        guard let made = try Engine.api().makeGenerator(device.code, stream.key.0) else { throw Engine.lastError() }
        handle = made
    }

    deinit {
        Engine.proven?.freeGenerator(handle)
    }
}
