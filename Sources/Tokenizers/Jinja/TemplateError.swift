import Formats

/// A chat template that cannot be read or rendered.
public struct TemplateError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The line of the template, from 1; nil when the whole is meant.
    public var line: Int?
    /// One sentence: what is wrong, and with which expression.
    public var message: String
    /// Whether the template itself refused its input with `raise_exception`.
    public var isRaisedByTemplate: Bool

    package init(line: Int? = nil, _ message: String, isRaisedByTemplate: Bool = false) {
        self.line = line
        self.message = isRaisedByTemplate ? message : boundedSentence(message)
        self.isRaisedByTemplate = isRaisedByTemplate
    }

    /// `chat template, line 3: message`, on one line.
    public var description: String {
        line.map { "chat template, line \($0): \(message)" } ?? "chat template: \(message)"
    }
}
