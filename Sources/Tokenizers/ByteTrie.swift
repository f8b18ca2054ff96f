/// The strings of a vocabulary as a tree over their bytes, for finding every token that begins at a place in a text.
///
/// A double array: the child of a node along a byte lies at `base ^ byte`, and is one when it names the node as parent.
/// A step is therefore one look into memory, whatever the number of children.
struct ByteTrie: Sendable {
    struct Node {
        /// -1 for the root and for places that are not in use.
        var parent: Int32 = -1
        var base: Int32 = 0
        /// The number of the string that ends here, or -1.
        var value: Int32 = -1
    }

    /// Its count is a multiple of 256, and each base lies in it: so does `base ^ byte`.
    private(set) var nodes: [Node]

    /// The node of the empty string.
    static let root = 0

    /// Takes the strings with their numbers; empty ones are left out, and of equal ones the last is found.
    init(_ strings: ByteStringTable) {
        var layout = TrieLayout()
        var order = (0..<strings.count).filter { strings.length(of: $0) > 0 }
        order.sort { strings.precedes($0, $1) }
        var pending = [(node: Self.root, strings: 0..<order.count, depth: 0)]
        var labels: [UInt8] = []
        var starts: [Int] = []
        while let (node, range, depth) = pending.popLast() {
            labels.removeAll(keepingCapacity: true)
            starts.removeAll(keepingCapacity: true)
            for index in range {
                let string = order[index]
                guard depth < strings.length(of: string) else {
                    layout.nodes[node].value = Int32(truncatingIfNeeded: string)
                    continue
                }
                let label = strings.withBytes(of: string) { $0[depth] }
                guard labels.last != label else { continue }
                labels.append(label)
                starts.append(index)
            }
            guard !labels.isEmpty else { continue }
            let base = layout.place(labels, under: node)
            starts.append(range.upperBound)
            for (number, label) in labels.enumerated() {
                pending.append((base ^ Int(label), starts[number]..<starts[number + 1], depth + 1))
            }
        }
        nodes = layout.nodes
    }

    /// The child of a node of `nodes` along a byte, or nil.
    @inline(__always)
    static func child(of node: Int, _ byte: UInt8, in nodes: UnsafeBufferPointer<Node>) -> Int? {
        let next = Int(nodes[node].base) ^ Int(byte)
        return Int(nodes[next].parent) == node ? next : nil
    }

    /// The node of a string, or nil when no string begins with it.
    func node(of string: some Sequence<UInt8>) -> Int? {
        nodes.withUnsafeBufferPointer { nodes in
            var node = Self.root
            for byte in string {
                guard let next = Self.child(of: node, byte, in: nodes) else { return nil }
                node = next
            }
            return node
        }
    }

    /// The number of a string, or nil.
    func number(of string: some Sequence<UInt8>) -> Int? {
        guard let node = node(of: string), nodes[node].value >= 0 else { return nil }
        return Int(nodes[node].value)
    }
}

/// Finds places for the children of nodes.
private struct TrieLayout {
    private static let block = 256
    /// Only the newest blocks are searched: the free places of older ones seldom fit and would be tried in vain.
    private static let openBlocks = 16

    var nodes: [ByteTrie.Node] = []
    /// The free places of the open blocks as a ring; outside it `next` is -1.
    private var next: [Int32] = []
    private var previous: [Int32] = []
    /// Any place of the ring, or -1.
    private var head = -1

    init() {
        appendBlock()
        take(ByteTrie.root)
    }

    /// Puts the children of a node along `labels` somewhere and returns the base that leads to them.
    mutating func place(_ labels: [UInt8], under node: Int) -> Int {
        let base = freeBase(labels)
        nodes[node].base = Int32(truncatingIfNeeded: base)
        for label in labels {
            take(base ^ Int(label))
            nodes[base ^ Int(label)].parent = Int32(truncatingIfNeeded: node)
        }
        return base
    }

    private mutating func freeBase(_ labels: [UInt8]) -> Int {
        guard let first = labels.first else { return 0 }
        var slot = head
        while slot >= 0 {
            let base = slot ^ Int(first)
            if labels.allSatisfy({ isFree(base ^ Int($0)) }) { return base }
            slot = Int(next[slot])
            if slot == head { break }
        }
        let start = nodes.count
        appendBlock()
        return start
    }

    private func isFree(_ slot: Int) -> Bool { next[slot] >= 0 }

    private mutating func appendBlock() {
        let start = nodes.count
        let old = start - Self.openBlocks * Self.block
        if old >= 0 {
            for slot in old..<old + Self.block where isFree(slot) { take(slot) }
        }
        nodes.append(contentsOf: repeatElement(ByteTrie.Node(), count: Self.block))
        for slot in start..<start + Self.block {
            let number = Int32(truncatingIfNeeded: slot)
            next.append(number + 1)
            previous.append(number - 1)
        }
        // The new block's chain becomes a ring, or is put into the ring before its head.
        let last = nodes.count - 1
        let (first, end) = head >= 0 ? (head, Int(previous[head])) : (start, last)
        next[last] = Int32(truncatingIfNeeded: first)
        previous[first] = Int32(truncatingIfNeeded: last)
        next[end] = Int32(truncatingIfNeeded: start)
        previous[start] = Int32(truncatingIfNeeded: end)
        head = start
    }

    private mutating func take(_ slot: Int) {
        let (before, after) = (Int(previous[slot]), Int(next[slot]))
        next[before] = Int32(truncatingIfNeeded: after)
        previous[after] = Int32(truncatingIfNeeded: before)
        if head == slot { head = before == slot ? -1 : after }
        next[slot] = -1
    }
}

extension ByteStringTable {
    /// The order of bytes, and of numbers where they are equal.
    fileprivate func precedes(_ a: Int, _ b: Int) -> Bool {
        withBytes(of: a) { first in
            withBytes(of: b) { second in
                for index in 0..<min(first.count, second.count) where first[index] != second[index] {
                    return first[index] < second[index]
                }
                return first.count != second.count ? first.count < second.count : a < b
            }
        }
    }
}
