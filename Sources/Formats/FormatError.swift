/// What is wrong with a file or a text: which file, where in it, and one sentence about it.
public struct FormatError: Error, CustomStringConvertible, Sendable, Equatable {
    /// A place inside a file.
    public enum Place: Sendable, Equatable {
        /// A line and a column, both from 1 (columns count Unicode scalars), and the byte offset from 0.
        case line(Int, column: Int, offset: Int)
        /// A row of a table or of a JSON Lines file by its line, from 1.
        case row(Int)
        /// A byte offset from 0.
        case offset(Int)
        /// A key, for example a tensor's name.
        case key(String)
    }

    /// The file's path, or nil for a text that is in no file.
    public var file: String?
    /// Where in the file, when it is known.
    public var place: Place?
    /// The sentence, without the file and the place.
    public var message: String
    /// Whether the file or folder could not be written, as opposed to being wrong.
    public var isWriteFailure = false

    /// Makes an error.
    public init(file: String? = nil, place: Place? = nil, _ message: String) {
        self.file = file
        self.place = place
        self.message = message
    }

    /// Makes an error about a file or folder that cannot be written.
    package init(writing path: String, _ message: String) {
        self.init(file: path, message)
        isWriteFailure = true
    }

    /// `file, place: message`, on one line.
    public var description: String {
        var head: [String] = []
        if let file { head.append(file) }
        switch place {
        case .line(let line, let column, let offset):
            head.append("line \(line) column \(column) (byte \(offset))")
        case .row(let line): head.append("line \(line)")
        case .offset(let offset): head.append("byte \(offset)")
        case .key(let key): head.append("\"\(shortened(key))\"")
        case nil: break
        }
        return boundedSentence(head.isEmpty ? message : head.joined(separator: ", ") + ": " + message)
    }
}

/// A piece of a file's own text for a message: on one line, and cut when it is long.
func shortened(_ text: String, to limit: Int = 80) -> String {
    var result = ""
    for scalar in text.unicodeScalars.prefix(limit) {
        if scalar.value < 0x20 || scalar.value == 0x7F {
            result += "\\u{" + String(scalar.value, radix: 16) + "}"
        } else {
            result.unicodeScalars.append(scalar)
        }
    }
    return text.unicodeScalars.count > limit ? result + "..." : result
}

/// The text of an error without its middle where that is endless: a file may hold a name of any length.
package func boundedSentence(_ text: String) -> String {
    guard text.utf8.count > 2000 else { return text }
    return String(text.unicodeScalars.prefix(400)) + " ... " + String(text.unicodeScalars.suffix(80))
}

extension String {
    fileprivate init(_ scalars: some Sequence<Unicode.Scalar>) {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        self.init(view)
    }
}
