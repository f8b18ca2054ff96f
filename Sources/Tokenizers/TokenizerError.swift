import Formats

/// A tokenizer that cannot be loaded, written or used as asked.
public struct TokenizerError: Error, CustomStringConvertible, Sendable, Equatable {
    /// One sentence: what is wrong, where, what was expected and what to do.
    public let description: String

    package init(_ description: String) {
        self.description = boundedSentence(description)
    }
}
