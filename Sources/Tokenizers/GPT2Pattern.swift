/// The splitting pattern of GPT-2, written as a scanner over UTF-8:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
///
/// Its alternatives cover every text, so the pieces tile what is scanned.
enum GPT2Pattern {
    /// Returns where the match that begins at `start` ends; `start < end`.
    static func matchEnd(_ text: UnsafeBufferPointer<UInt8>, from start: Int, end: Int) -> Int {
        let first = text[start]
        if first == UInt8(ascii: "'"), let contraction = contractionEnd(text, from: start, end: end) {
            return contraction
        }
        // The optional space of ` ?X+` belongs to the run only when a character of the run follows it.
        let body = first == UInt8(ascii: " ") && start + 1 < end ? start + 1 : start
        let kind = kind(text, at: body, end: end)
        if kind.runs == .whitespace { return whitespaceEnd(text, from: start, end: end) }
        var index = body + kind.length
        while index < end {
            let next = self.kind(text, at: index, end: end)
            guard next.runs == kind.runs else { break }
            index += next.length
        }
        return index
    }

    /// The bits of letter, number and white space.
    private static var runMask: UInt16 { 7 }

    /// The class that decides the run a scalar belongs to (empty for "none of them"), and its length in bytes.
    @inline(__always)
    private static func kind(
        _ text: UnsafeBufferPointer<UInt8>, at index: Int, end: Int
    ) -> (runs: ScalarClass, length: Int) {
        let byte = text[index]
        if byte < 0x80 { return (ScalarClass(rawValue: ScalarClass.ofASCII(byte).rawValue & runMask), 1) }
        let scalar = DecodedScalar(text, at: index, end: end)
        return (ScalarClass(rawValue: ScalarClass.of(scalar.value).rawValue & runMask), scalar.length)
    }

    private static func contractionEnd(_ text: UnsafeBufferPointer<UInt8>, from start: Int, end: Int) -> Int? {
        guard start + 1 < end else { return nil }
        switch text[start + 1] {
        case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"):
            return start + 2
        case UInt8(ascii: "r"), UInt8(ascii: "v"):
            return start + 2 < end && text[start + 2] == UInt8(ascii: "e") ? start + 3 : nil
        case UInt8(ascii: "l"):
            return start + 2 < end && text[start + 2] == UInt8(ascii: "l") ? start + 3 : nil
        default:
            return nil
        }
    }

    /// `\s+(?!\S)|\s+`: a run before other text leaves its last character to that text, unless it is the only one.
    private static func whitespaceEnd(_ text: UnsafeBufferPointer<UInt8>, from start: Int, end: Int) -> Int {
        var index = start
        var last = start
        while index < end {
            let next = kind(text, at: index, end: end)
            guard next.runs == .whitespace else { return last > start ? last : index }
            last = index
            index += next.length
        }
        return end
    }
}
