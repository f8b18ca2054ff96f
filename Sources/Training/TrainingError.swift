import Formats

/// A run that cannot begin or go on, in one sentence: what, where, what was expected, what to do.
public struct TrainingError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The sentence.
    public let description: String

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = boundedSentence(description)
    }
}
