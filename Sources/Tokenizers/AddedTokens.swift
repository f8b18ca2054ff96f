/// A token outside the model that is recognised in text before anything else is done with it.
public struct AddedToken: Sendable, Equatable {
    /// Its number.
    public var id: Int
    /// The text it stands for.
    public var content: String
    /// Whether ``Tokenizer/decode(_:skipSpecialTokens:)`` can leave it out: a control token, not text.
    public var isSpecial: Bool
    /// Recognised only where no word character touches it.
    public var singleWord: Bool
    /// Also takes the white space before it.
    public var lstrip: Bool
    /// Also takes the white space after it.
    public var rstrip: Bool
    /// Looked for after the tokens that are not (in the normalised text, where a tokenizer normalises).
    public var normalized: Bool

    /// Makes an added token.
    public init(
        id: Int, content: String, isSpecial: Bool, singleWord: Bool = false, lstrip: Bool = false,
        rstrip: Bool = false, normalized: Bool? = nil
    ) {
        self.id = id
        self.content = content
        self.isSpecial = isSpecial
        self.singleWord = singleWord
        self.lstrip = lstrip
        self.rstrip = rstrip
        self.normalized = normalized ?? !isSpecial
    }
}

/// Finds added tokens in text: leftmost first, the longest of those that begin at one place.
struct AddedTokenMatcher: Sendable {
    private struct Node {
        var byte: UInt8
        var token: Int32 = -1
        var firstChild: Int32 = -1
        var sibling: Int32 = -1
    }

    private let tokens: [AddedToken]
    private var nodes = [Node(byte: 0)]
    private var firstBytes = [Bool](repeating: false, count: 256)

    /// Takes the tokens with what is looked for in the text, which is their content as far as it is normalised.
    init(_ patterns: [(pattern: [UInt8], token: AddedToken)]) {
        let patterns = patterns.filter { !$0.pattern.isEmpty }
        tokens = patterns.map(\.token)
        for (index, (pattern, _)) in patterns.enumerated() {
            var node = 0
            for byte in pattern { node = child(of: node, byte) ?? addChild(of: node, byte) }
            nodes[node].token = Int32(index)
            if let first = pattern.first { firstBytes[Int(first)] = true }
        }
    }

    /// Whether there is nothing to look for.
    var isEmpty: Bool { tokens.isEmpty }

    private func child(of node: Int, _ byte: UInt8) -> Int? {
        var child = Int(nodes[node].firstChild)
        while child >= 0, nodes[child].byte != byte { child = Int(nodes[child].sibling) }
        return child >= 0 ? child : nil
    }

    private mutating func addChild(of node: Int, _ byte: UInt8) -> Int {
        nodes.append(Node(byte: byte, sibling: nodes[node].firstChild))
        nodes[node].firstChild = Int32(nodes.count - 1)
        return nodes.count - 1
    }

    /// Cuts `text[range]`: calls `plain` for each stretch without added tokens and `added` for each token, in order.
    func split(
        _ text: UnsafeBufferPointer<UInt8>, _ range: Range<Int>, plain: (Range<Int>) -> Void,
        added: (AddedToken, Range<Int>) -> Void
    ) {
        var begin = range.lowerBound  // of the stretch not yet given out
        var index = begin
        while !tokens.isEmpty, index < range.upperBound {
            guard firstBytes[Int(text[index])], let (token, end) = longest(text, from: index, end: range.upperBound)
            else {
                index += 1
                continue
            }
            guard !token.singleWord || standsAlone(text, index..<end, in: range) else {
                index = end
                continue
            }
            let start = token.lstrip ? max(begin, whitespaceStart(text, before: index, begin: begin)) : index
            let stop = token.rstrip ? whitespaceStop(text, from: end, end: range.upperBound) : end
            if start > begin { plain(begin..<start) }
            added(token, start..<max(start, stop))
            begin = stop
            // As in the reference, the next token may begin in the white space that this one took.
            index = end
        }
        if begin < range.upperBound { plain(begin..<range.upperBound) }
    }

    private func longest(_ text: UnsafeBufferPointer<UInt8>, from start: Int, end: Int) -> (AddedToken, Int)? {
        var node = 0
        var index = start
        var best: (AddedToken, Int)?
        while index < end, let next = child(of: node, text[index]) {
            node = next
            index += 1
            if nodes[node].token >= 0 { best = (tokens[Int(nodes[node].token)], index) }
        }
        return best
    }

    private func standsAlone(
        _ text: UnsafeBufferPointer<UInt8>, _ match: Range<Int>, in range: Range<Int>
    ) -> Bool {
        let before = scalar(text, before: match.lowerBound, begin: range.lowerBound)
        let after =
            match.upperBound < range.upperBound
            ? DecodedScalar(text, at: match.upperBound, end: range.upperBound).value : nil
        return ![before, after].compactMap(\.self).contains { ScalarClass.of($0).contains(.word) }
    }

    private func scalar(_ text: UnsafeBufferPointer<UInt8>, before index: Int, begin: Int) -> UInt32? {
        var start = index - 1
        while start >= begin, text[start] & 0xC0 == 0x80 { start -= 1 }
        return start >= begin ? DecodedScalar(text, at: start, end: index).value : nil
    }

    private func whitespaceStart(_ text: UnsafeBufferPointer<UInt8>, before index: Int, begin: Int) -> Int {
        var start = index
        while let value = scalar(text, before: start, begin: begin), ScalarClass.of(value).contains(.whitespace) {
            start -= 1
            while text[start] & 0xC0 == 0x80 { start -= 1 }
        }
        return start
    }

    private func whitespaceStop(_ text: UnsafeBufferPointer<UInt8>, from index: Int, end: Int) -> Int {
        var stop = index
        while stop < end {
            let next = DecodedScalar(text, at: stop, end: end)
            guard ScalarClass.of(next.value).contains(.whitespace) else { break }
            stop += next.length
        }
        return stop
    }
}
