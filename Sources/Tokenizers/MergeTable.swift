/// The merges of a byte-pair encoding: which two neighbouring tokens become which token, and in which order of preference.
struct MergeTable: Sendable {

    private struct Slot {
        var pair: UInt64
        var merge: UInt64
    }

    /// No pair has this key: it would need two tokens numbered 2^32 - 1.
    private static let free = UInt64.max

    private var slots: [Slot]
    private let shift: UInt64

    /// Makes an empty table with room for `count` merges.
    init(reserving count: Int) {
        var bits: UInt64 = 4
        while 1 << bits < 2 * count { bits += 1 }
        slots = [Slot](repeating: Slot(pair: Self.free, merge: 0), count: 1 << bits)
        shift = 64 - bits
    }

    /// Adds a merge; a pair that is there already takes the new rank, as in the reference.
    mutating func insert(_ left: UInt32, _ right: UInt32, rank: UInt32, token: UInt32) {
        let pair = UInt64(left) << 32 | UInt64(right)
        var slot = firstSlot(of: pair)
        while slots[slot].pair != Self.free, slots[slot].pair != pair { slot = (slot + 1) & (slots.count - 1) }
        slots[slot] = Slot(pair: pair, merge: UInt64(rank) << 32 | UInt64(token))
    }

    /// `rank << 32 | token` of the merge of two tokens, or `UInt64.max` when they do not merge.
    @inline(__always)
    func merge(_ left: UInt32, _ right: UInt32) -> UInt64 {
        let pair = UInt64(left) << 32 | UInt64(right)
        var slot = firstSlot(of: pair)
        return slots.withUnsafeBufferPointer { slots in
            while true {
                if slots[slot].pair == pair { return slots[slot].merge }
                if slots[slot].pair == Self.free { return .max }
                slot = (slot + 1) & (slots.count - 1)
            }
        }
    }

    @inline(__always)
    private func firstSlot(of pair: UInt64) -> Int {
        let mixed = ((pair &* 0x9E37_79B9_7F4A_7C15) ^ (pair >> 29)) &* 0xBF58_476D_1CE4_E5B9
        return Int(truncatingIfNeeded: mixed >> shift)
    }

    /// All merges as (left, right, rank, token), in the order of their ranks; linear in the table's size and sorted.
    var ordered: [(left: UInt32, right: UInt32, rank: UInt32)] {
        slots.filter { $0.pair != Self.free }.map {
            (UInt32($0.pair >> 32), UInt32(truncatingIfNeeded: $0.pair), UInt32($0.merge >> 32))
        }.sorted { $0.rank < $1.rank }
    }
}
