import Formats

/// An adapter that cannot be made, loaded, saved or merged, in one sentence: what, where, and what to do.
public struct PEFTError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The sentence.
    public let description: String

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = boundedSentence(description)
    }
}
