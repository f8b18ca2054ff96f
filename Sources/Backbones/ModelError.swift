import Formats

/// A model that cannot be loaded or run, in one sentence: what, where, what was expected, what to do.
public struct ModelError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The sentence.
    public let description: String

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = boundedSentence(description)
    }
}
