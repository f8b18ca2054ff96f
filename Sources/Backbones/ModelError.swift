import Formats

/// A model that cannot be loaded or run, in one sentence: what, where, what was expected, what to do.
public struct ModelError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The sentence.
    public let description: String

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = description
    }
}

/// A question for the end of a sentence, `. Did you mean "x"?`, or nothing when no candidate is near.
func question(about name: String, in candidates: some Sequence<String>) -> String {
    closestMatch(to: name, in: candidates).map { ". Did you mean \"\($0)\"?" } ?? ""
}
