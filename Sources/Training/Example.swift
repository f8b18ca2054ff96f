import Tokenizers

/// One row of a data set as tokens, with those that the model learns to predict.
public struct Example: Sendable, Equatable {
    /// The token numbers.
    public let ids: [Int]
    /// For each token whether its prediction is part of the loss; never the first, which nothing predicts.
    public let supervised: [Bool]
    /// The row's line in the file, from 1.
    public let line: Int
    /// Which of a data set's files it is from, from 0.
    public let source: Int

    /// Makes an example.
    ///
    /// - Parameters:
    ///   - ids: The token numbers.
    ///   - supervised: As many flags; the first one does not count.
    ///   - line: The row's line in the file, from 1.
    ///   - source: Which of a data set's files it is from, from 0.
    public init(ids: [Int], supervised: [Bool], line: Int, source: Int = 0) {
        self.ids = ids
        self.supervised = ids.indices.map { $0 > 0 && $0 < supervised.count && supervised[$0] }
        self.line = line
        self.source = source
    }

    /// The number of tokens that are part of the loss.
    public var supervisedCount: Int { supervised.count { $0 } }

    /// The text in runs of tokens that are part of the loss and runs that are not.
    ///
    /// - Parameter tokenizer: The tokenizer that made the example.
    /// - Throws: `TokenizerError` when a token is not in the vocabulary.
    public func segments(_ tokenizer: Tokenizer) throws -> [(text: String, isSupervised: Bool)] {
        var segments: [(text: String, isSupervised: Bool)] = []
        var start = 0
        while start < ids.count {
            let end = supervised[start...].firstIndex { $0 != supervised[start] } ?? ids.count
            segments.append((try tokenizer.decode(ids[start..<end]), supervised[start]))
            start = end
        }
        return segments
    }
}
