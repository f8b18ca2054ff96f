import Formats
import Tokenizers

/// A row's text with the tokens that are learnt marked, for people to check.
public struct MarkedRow: Sendable {
    /// File and line of the row.
    public let name: String
    /// The text in runs that are part of the loss and runs that are not.
    public let segments: [(text: String, isSupervised: Bool)]

    /// Marks a row.
    ///
    /// - Throws: `TokenizerError` when a token is not in the vocabulary.
    public init(_ example: Example, of data: Dataset, tokenizer: Tokenizer) throws {
        name = data.name(of: example)
        segments = try example.segments(tokenizer)
    }

    /// The row for a terminal.
    ///
    /// Control characters that a terminal would obey are written as escapes.
    ///
    /// - Parameters:
    ///   - isColoured: Whether trained tokens are marked by colour; else they stand in `[[` and `]]`.
    ///   - limit: About how many characters are shown; of longer runs the middle is left out.
    public func text(isColoured: Bool, limit: Int = 4000) -> String {
        let marks = isColoured ? ("\u{1B}[32m", "\u{1B}[0m") : ("[[", "]]")
        let share = max(120, limit / max(1, segments.count))
        let shown = segments.prefix(max(1, limit / 120))
        let text = shown.map { segment in
            let text = Self.shortened(segment.text, to: share)
            return segment.isSupervised ? marks.0 + text + marks.1 : text
        }.joined()
        let rest = segments.count - shown.count
        return rest > 0 ? text + " ... and \(rest) more parts" : text
    }

    /// What stands above the row.
    public func heading(_ title: String, isColoured: Bool) -> String {
        "\(title) (\(name)), trained tokens \(isColoured ? "coloured" : "in [[ ]]"):"
    }

    /// The parts as JSON.
    public var json: JSON {
        [
            "row": .string(name),
            "segments": JSON(segments.map { ["text": JSON($0.text), "trained": JSON($0.isSupervised)] }),
        ]
    }

    private static func shortened(_ text: String, to limit: Int) -> String {
        let scalars = text.unicodeScalars
        guard scalars.count > limit else { return escaped(text) }
        let (head, tail) = (scalars.prefix(limit / 2), scalars.suffix(limit / 2))
        return escaped(String(head)) + " ...\(scalars.count - head.count - tail.count) characters... "
            + escaped(String(tail))
    }

    private static func escaped(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            let isControl = scalar.properties.generalCategory == .control && scalar != "\n" && scalar != "\t"
            if isControl {
                result += "\\u{" + String(scalar.value, radix: 16) + "}"
            } else {
                result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
