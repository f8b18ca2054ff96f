import Tokenizers

/// One row of a data set as tokens, with those that the model learns to predict.
public struct Example: Sendable, Equatable {
    /// The answer that a preference row rejects, after the same prompt.
    public struct Rejected: Sendable, Equatable {
        /// The token numbers of prompt and answer.
        public let ids: [Int]
        /// For each token whether it belongs to the answer.
        public let supervised: [Bool]
    }

    /// The token numbers.
    public let ids: [Int]
    /// For each token whether its prediction is part of the loss; never the first, which nothing predicts.
    public let supervised: [Bool]
    /// The row's line in the file, from 1.
    public let line: Int
    /// Which of a data set's files it is from, from 0.
    public let source: Int
    /// What the row rejects, where it is a preference; the tokens above are then those of the chosen answer.
    public let rejected: Rejected?
    /// The number of the row's label, where it has one.
    public let label: Int?

    /// Makes an example.
    ///
    /// - Parameters:
    ///   - ids: The token numbers.
    ///   - supervised: As many flags; the first one does not count.
    ///   - line: The row's line in the file, from 1.
    ///   - source: Which of a data set's files it is from, from 0.
    ///   - rejected: Tokens and flags of the rejected answer of a preference.
    ///   - label: The number of the row's label.
    public init(
        ids: [Int], supervised: [Bool], line: Int, source: Int = 0, rejected: (ids: [Int], supervised: [Bool])? = nil,
        label: Int? = nil
    ) {
        self.ids = ids
        self.supervised = Self.flags(ids, supervised)
        self.line = line
        self.source = source
        self.rejected = rejected.map { Rejected(ids: $0.ids, supervised: Self.flags($0.ids, $0.supervised)) }
        self.label = label
    }

    private static func flags(_ ids: [Int], _ supervised: [Bool]) -> [Bool] {
        ids.indices.map { $0 > 0 && $0 < supervised.count && supervised[$0] }
    }

    /// The number of tokens that are part of the loss, those of a rejected answer included.
    public var supervisedCount: Int { supervised.count { $0 } + (rejected?.supervised.count { $0 } ?? 0) }

    /// The sequences of tokens that go through the model: the row's own, then the rejected one.
    package var sequences: [Example] {
        let own = Example(ids: ids, supervised: supervised, line: line, source: source)
        guard let rejected else { return [own] }
        return [own, Example(ids: rejected.ids, supervised: rejected.supervised, line: line, source: source)]
    }

    /// The same tokens with a label.
    func labelled(_ label: Int?) -> Example {
        Example(
            ids: ids, supervised: supervised, line: line, source: source,
            rejected: rejected.map { ($0.ids, $0.supervised) }, label: label)
    }

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
