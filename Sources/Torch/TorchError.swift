/// A failure of the engine: an operator's name with its argument shapes and dtypes, and LibTorch's reason.
public struct TorchError: Error, CustomStringConvertible, Sendable, Equatable {
    /// One sentence: which operator, on what, and why it failed.
    public let description: String

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = description
    }
}
