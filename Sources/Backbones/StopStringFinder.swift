/// Finds the first of some strings in text that arrives in pieces, and holds back what may be the begin of one.
package struct StopStringFinder {
    private let strings: [(text: String, bytes: [UInt8])]
    /// The end of the text so far that may go on to be a stop string.
    private var held: [UInt8] = []

    package init(_ strings: [String]) {
        self.strings = strings.map { ($0, Array($0.utf8)) }
    }

    /// Takes a piece of text.
    ///
    /// - Returns: The text that can be given out, and the stop string that follows on it, if one does.
    package mutating func append(_ piece: String) -> (text: String, found: String?) {
        guard !strings.isEmpty else { return (piece, nil) }
        held += piece.utf8
        if let (start, string) = firstMatch() {
            defer { held = [] }
            return (String(decoding: held[..<start], as: UTF8.self), string)
        }
        let complete = held.count - undecided()
        defer { held.removeFirst(complete) }
        return (String(decoding: held[..<complete], as: UTF8.self), nil)
    }

    /// What is held back when no more text comes.
    package mutating func finish() -> String {
        defer { held = [] }
        return String(decoding: held, as: UTF8.self)
    }

    /// The match that begins first, the longest of those that begin together.
    private func firstMatch() -> (start: Int, string: String)? {
        for start in held.indices {
            let matches = strings.filter { held[start...].starts(with: $0.bytes) }
            if let longest = matches.max(by: { $0.bytes.count < $1.bytes.count }) { return (start, longest.text) }
        }
        return nil
    }

    /// The number of bytes at the end with which a stop string may begin.
    private func undecided() -> Int {
        let longest = strings.map(\.bytes.count).max() ?? 1
        return (0..<min(longest, held.count + 1)).last { count in
            strings.contains { $0.bytes.count > count && $0.bytes.starts(with: held.suffix(count)) }
        } ?? 0
    }
}
