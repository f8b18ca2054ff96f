/// Byte strings numbered from 0, one after the other in memory, found by number and by content.
struct ByteStringTable: Sendable {
    private var bytes: [UInt8] = []
    /// Where each string begins in `bytes`, and at the end where the last one ends.
    private var starts: [Int] = [0]
    /// Open-addressing table of `hash << 32 | number + 1`, where 0 is a free slot; empty until `index()` was called.
    private var slots: [UInt64] = []

    /// Makes an empty table with room for `count` strings.
    init(reserving count: Int = 0) {
        starts.reserveCapacity(count + 1)
        bytes.reserveCapacity(8 * count)
    }

    /// Number of strings.
    var count: Int { starts.count - 1 }

    /// Length of a string in bytes.
    func length(of number: Int) -> Int { starts[number + 1] - starts[number] }

    /// Calls `body` with the bytes of a string.
    @inline(__always)
    func withBytes<Result>(of number: Int, _ body: (UnsafeBufferPointer<UInt8>) throws -> Result) rethrows -> Result {
        try bytes.withUnsafeBufferPointer {
            try body(UnsafeBufferPointer(rebasing: $0[starts[number]..<starts[number + 1]]))
        }
    }

    /// Appends a string that `write` appends to the bytes.
    mutating func append(_ write: (inout [UInt8]) -> Void) {
        write(&bytes)
        starts.append(bytes.count)
    }

    /// Appends a string.
    mutating func append(_ string: some Sequence<UInt8>) {
        append { $0.append(contentsOf: string) }
    }

    /// Makes the strings findable by content; of equal strings the first is found.
    mutating func index() {
        var capacity = 16
        while capacity < 2 * count { capacity *= 2 }
        slots = [UInt64](repeating: 0, count: capacity)
        for number in 0..<count {
            let place = withBytes(of: number) { find($0) }
            if place.number == nil { slots[place.slot] = UInt64(place.hash) << 32 | UInt64(number + 1) }
        }
    }

    /// The number of a string, or nil; `index()` must have been called after the last `append`.
    func number(of string: UnsafeBufferPointer<UInt8>) -> Int? {
        slots.isEmpty ? nil : find(string).number
    }

    /// The number of a text, or nil.
    func number(of text: String) -> Int? {
        var text = text
        return text.withUTF8 { $0.isEmpty ? nil : number(of: $0) }
    }

    private func find(_ string: UnsafeBufferPointer<UInt8>) -> (hash: UInt32, slot: Int, number: Int?) {
        let hash = hashOfBytes(string)
        let mask = slots.count - 1
        var slot = Int(hash) & mask
        while slots[slot] != 0 {
            let number = Int(slots[slot] & 0xFFFF_FFFF) - 1
            if UInt32(slots[slot] >> 32) == hash, withBytes(of: number, { isEqual($0, string) }) {
                return (hash, slot, number)
            }
            slot = (slot + 1) & mask
        }
        return (hash, slot, nil)
    }

    private func isEqual(_ a: UnsafeBufferPointer<UInt8>, _ b: UnsafeBufferPointer<UInt8>) -> Bool {
        guard a.count == b.count else { return false }
        for index in a.indices where a[index] != b[index] { return false }
        return true
    }
}

/// A seed drawn once a process, so that no vocabulary file can be made to collide.
private let hashSeed = UInt64.random(in: .min ... .max) | 1

/// A fast hash of short byte strings.
private func hashOfBytes(_ string: UnsafeBufferPointer<UInt8>) -> UInt32 {
    let bytes = UnsafeRawBufferPointer(string)
    var hash = hashSeed ^ UInt64(bytes.count)
    var index = 0
    while index + 8 <= bytes.count {
        hash = mixed(hash ^ bytes.loadUnaligned(fromByteOffset: index, as: UInt64.self))
        index += 8
    }
    var rest: UInt64 = 0
    while index < bytes.count {
        rest = rest << 8 | UInt64(bytes[index])
        index += 1
    }
    return UInt32(truncatingIfNeeded: mixed(hash ^ rest) >> 32)
}

@inline(__always)
private func mixed(_ value: UInt64) -> UInt64 {
    let product = value.multipliedFullWidth(by: 0x9E37_79B9_7F4A_7C15)
    return product.high ^ product.low
}
