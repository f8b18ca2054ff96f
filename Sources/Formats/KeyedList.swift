/// A list of (key, value) pairs that keeps its order and finds a key in constant time.
///
/// Keys are compared byte by byte in UTF-8. `String ==` would take two different spellings of one character
/// (canonical equivalence) for the same key, and vocabularies and checkpoints hold such pairs.
public struct KeyedList<Value: Sendable>: Sendable {
    /// One pair.
    public typealias Element = (key: String, value: Value)

    /// The pairs in the order in which they were added.
    public private(set) var entries: [Element] = []

    /// Open-addressing table of `hash << 32 | entry + 1`; 0 is a free slot.
    ///
    /// Empty while the list is short.
    private var slots: [UInt64] = []

    /// Makes an empty list.
    public init() {}

    /// The keys in order.
    public var keys: [String] { entries.map(\.key) }

    /// The values in order.
    public var values: [Value] { entries.map(\.value) }

    /// Position of `key`, or nil.
    public func position(of key: String) -> Int? {
        if slots.isEmpty { return entries.firstIndex { hasSameBytes($0.key, key) } }
        return slot(for: key, hash: hashOfBytes(key)).entry
    }

    /// Adds a pair at the end; returns false and changes nothing when the key is there already.
    @discardableResult
    public mutating func appendIfNew(key: String, value: Value) -> Bool {
        if slots.isEmpty {
            if entries.contains(where: { hasSameBytes($0.key, key) }) { return false }
            entries.append((key, value))
            if entries.count > Self.scanLimit { rebuildSlots(capacity: 4 * Self.scanLimit) }
            return true
        }
        let hash = hashOfBytes(key)
        let found = slot(for: key, hash: hash)
        if found.entry != nil { return false }
        entries.append((key, value))
        slots[found.slot] = UInt64(hash) << 32 | UInt64(entries.count)
        if entries.count * 2 > slots.count { growSlots() }
        return true
    }

    /// The value of `key`.
    ///
    /// Setting a new key appends it; setting nil removes the pair (linear time).
    public subscript(key: String) -> Value? {
        get { position(of: key).map { entries[$0].value } }
        set {
            switch (position(of: key), newValue) {
            case (let position?, let value?): entries[position].value = value
            case (nil, let value?): appendIfNew(key: key, value: value)
            case (let position?, nil): remove(at: position)
            case (nil, nil): break
            }
        }
    }

    /// Removes the pair at a position and closes the gap, in linear time.
    public mutating func remove(at position: Int) {
        entries.remove(at: position)
        if !slots.isEmpty { rebuildSlots(capacity: slots.count) }
    }

    /// The same pairs sorted by the UTF-8 bytes of their keys, which is the order of their code points.
    public func sortedByKey() -> KeyedList {
        var result = KeyedList()
        for entry in entries.sorted(by: { precedesInBytes($0.key, $1.key) }) {
            result.appendIfNew(key: entry.key, value: entry.value)
        }
        return result
    }

    /// Up to this many entries a scan is faster than a table.
    private static var scanLimit: Int { 8 }

    private func slot(for key: String, hash: UInt32) -> (slot: Int, entry: Int?) {
        let mask = slots.count - 1
        var slot = Int(hash) & mask
        while slots[slot] != 0 {
            let entry = Int(slots[slot] & 0xFFFF_FFFF) - 1
            if UInt32(slots[slot] >> 32) == hash, hasSameBytes(entries[entry].key, key) { return (slot, entry) }
            slot = (slot + 1) & mask
        }
        return (slot, nil)
    }

    private mutating func rebuildSlots(capacity: Int) {
        slots = [UInt64](repeating: 0, count: capacity)
        for (position, entry) in entries.enumerated() {
            insertSlot(UInt64(hashOfBytes(entry.key)) << 32 | UInt64(position + 1))
        }
    }

    private mutating func growSlots() {
        let old = slots
        slots = [UInt64](repeating: 0, count: old.count * 2)
        for word in old where word != 0 { insertSlot(word) }
    }

    private mutating func insertSlot(_ word: UInt64) {
        let mask = slots.count - 1
        var slot = Int(word >> 32) & mask
        while slots[slot] != 0 { slot = (slot + 1) & mask }
        slots[slot] = word
    }
}

extension KeyedList: RandomAccessCollection {
    /// Always 0.
    public var startIndex: Int { 0 }

    /// Number of pairs.
    public var endIndex: Int { entries.count }

    /// The pair at a position.
    public subscript(position: Int) -> Element { entries[position] }
}

extension KeyedList: ExpressibleByDictionaryLiteral {
    /// Makes a list from a literal; the last value of a repeated key wins, in the place of the first.
    public init(dictionaryLiteral elements: (String, Value)...) {
        for (key, value) in elements { self[key] = value }
    }
}

extension KeyedList: Equatable where Value: Equatable {
    /// Equal when both hold the same pairs, in whatever order.
    public static func == (a: KeyedList, b: KeyedList) -> Bool {
        guard a.count == b.count else { return false }
        return a.entries.allSatisfy { b[$0.key] == $0.value }
    }
}

/// Tells whether two strings are the same bytes in UTF-8 (`==` on strings is canonical equivalence).
func hasSameBytes(_ a: String, _ b: String) -> Bool {
    a.utf8.count == b.utf8.count && a.utf8.elementsEqual(b.utf8)
}

/// Order of the UTF-8 bytes, which is the order of the code points.
func precedesInBytes(_ a: String, _ b: String) -> Bool {
    a.utf8.lexicographicallyPrecedes(b.utf8)
}

/// A hash seeded for each process, so that no file can be made to collide.
private func hashOfBytes(_ key: String) -> UInt32 {
    var hasher = Hasher()
    let isHashed: Void? = key.utf8.withContiguousStorageIfAvailable {
        hasher.combine(bytes: UnsafeRawBufferPointer($0))
    }
    if isHashed == nil { for byte in key.utf8 { hasher.combine(bytes: byte) } }
    return UInt32(truncatingIfNeeded: hasher.finalize() >> 16)
}

extension Hasher {
    fileprivate mutating func combine(bytes byte: UInt8) {
        withUnsafeBytes(of: byte) { combine(bytes: $0) }
    }
}
