/// Where a stretch of a string came from: a message of the conversation.
///
/// Marks go with the strings through all that a template does to them, so that it is known which bytes of the rendered
/// text a message supplied, and which the template.
struct JinjaMark: Sendable, Equatable {
    /// The message of a string that was made of several messages in a way that cannot be told apart.
    static let mixed = -1

    /// Bytes of the string's UTF-8, none where a message supplied an empty string.
    var range: Range<Int>
    /// The message's place in the conversation, or ``mixed``.
    var message: Int
    /// Whether it is the message's role or name: part of its header, not of what it says.
    var isHeader: Bool
}

/// A string with the marks of the messages that it came from.
struct JinjaText: Sendable {
    var text: String
    /// In the order of the string, without overlap.
    var marks: [JinjaMark]

    init(_ text: String = "", marks: [JinjaMark] = []) {
        self.text = text
        self.marks = marks
    }

    var count: Int { text.utf8.count }

    mutating func append(_ other: JinjaText) {
        if !other.marks.isEmpty {
            let offset = text.utf8.count
            marks += other.marks.map { mark in
                var mark = mark
                mark.range = mark.range.lowerBound + offset..<mark.range.upperBound + offset
                return mark
            }
        }
        text += other.text
    }

    /// The part at a range of bytes, which must lie at the borders of characters.
    subscript(range: Range<Int>) -> JinjaText {
        guard range != 0..<count else { return self }
        let utf8 = text.utf8
        let start = utf8.index(utf8.startIndex, offsetBy: range.lowerBound)
        let part = String(text[start..<utf8.index(start, offsetBy: range.count)])
        return JinjaText(part, marks: marks(in: range))
    }

    /// The marks of the part at a range of bytes.
    func marks(in range: Range<Int>) -> [JinjaMark] {
        marks.compactMap { mark in
            let common = mark.range.clamped(to: range)
            // What is empty still came from its message; what merely stands beside a mark did not.
            let touches = mark.range.lowerBound <= range.upperBound && mark.range.upperBound >= range.lowerBound
            guard !common.isEmpty || (touches && (range.isEmpty || mark.range.isEmpty)) else { return nil }
            var mark = mark
            mark.range = common.lowerBound - range.lowerBound..<common.upperBound - range.lowerBound
            return mark
        }
    }

    /// A string made of this one's characters in a way that keeps no places.
    func remade(_ text: String) -> JinjaText {
        JinjaText(text, marks: Self.marks(covering: text.utf8.count, from: marks))
    }

    /// The mark of `count` bytes that were made of what has `marks`; none when these are none.
    static func marks(covering count: Int, from marks: [JinjaMark]) -> [JinjaMark] {
        guard let first = marks.first else { return [] }
        let isOne = marks.allSatisfy { $0.message == first.message }
        return [
            JinjaMark(
                range: 0..<count, message: isOne ? first.message : JinjaMark.mixed,
                isHeader: marks.allSatisfy(\.isHeader))
        ]
    }
}

extension Sequence where Element == JinjaText {
    func joined(by separator: JinjaText = JinjaText()) -> JinjaText {
        var result = JinjaText()
        var isFirst = true
        for part in self {
            if !isFirst { result.append(separator) }
            isFirst = false
            result.append(part)
        }
        return result
    }
}

extension JinjaValue {
    /// The value of a string with its marks.
    static func marked(_ text: JinjaText) -> JinjaValue { .string(text.text, marks: text.marks) }

    /// What the value prints as, with its marks.
    func markedText() throws -> JinjaText {
        if case .string(let text, let marks) = self { return JinjaText(text, marks: marks) }
        var marks: [JinjaMark] = []
        collectMarks(&marks)
        let text = try text()
        return JinjaText(text, marks: JinjaText.marks(covering: text.utf8.count, from: marks))
    }

    /// Adds the marks of all strings in the value.
    func collectMarks(_ result: inout [JinjaMark]) {
        switch self {
        case .string(_, let marks): result += marks
        case .list(let values), .tuple(let values): for value in values { value.collectMarks(&result) }
        case .dictionary(let pairs):
            for pair in pairs.entries {
                pair.key.collectMarks(&result)
                pair.value.collectMarks(&result)
            }
        default: break
        }
    }

    /// The value with every string in it marked as a part of a message.
    func marked(message: Int, isHeader: Bool = false) -> JinjaValue {
        switch self {
        case .string(let text, _):
            return .string(
                text, marks: [JinjaMark(range: 0..<text.utf8.count, message: message, isHeader: isHeader)])
        case .list(let values): return .list(values.map { $0.marked(message: message, isHeader: isHeader) })
        case .dictionary(let pairs):
            return .dictionary(
                pairs.mapped {
                    (
                        $0.key.marked(message: message, isHeader: isHeader),
                        $0.value.marked(
                            message: message, isHeader: isHeader)
                    )
                })
        default: return self
        }
    }
}
