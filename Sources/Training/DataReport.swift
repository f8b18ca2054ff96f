import Crypto
import Formats
import Tokenizers

/// What a model would learn from files: lengths, what is learnt, what is dropped, what is there twice.
public struct DataReport: Sendable {
    /// How long rows are, in tokens, before any is cut.
    public struct Lengths: Sendable, Equatable {
        /// The shortest row.
        public let min: Int
        /// Half of the rows are at most as long.
        public let median: Int
        /// Nine in ten rows are at most as long.
        public let p90: Int
        /// 99 in a hundred rows are at most as long.
        public let p99: Int
        /// The longest row.
        public let max: Int
        /// How many rows have at most so many tokens, and more than the step before: powers of two.
        public let histogram: [(upTo: Int, rows: Int)]

        /// Two are equal when all their numbers are.
        public static func == (a: Lengths, b: Lengths) -> Bool {
            (a.min, a.median, a.p90, a.p99, a.max) == (b.min, b.median, b.p90, b.p99, b.max)
                && a.histogram.elementsEqual(b.histogram, by: ==)
        }

        init(_ lengths: [Int]) {
            let sorted = lengths.sorted()
            func rank(_ share: Double) -> Int {
                guard let last = sorted.indices.last else { return 0 }
                return sorted[Swift.min(last, Swift.max(0, Int((share * Double(sorted.count)).rounded(.up)) - 1))]
            }
            (min, median, p90, p99, max) = (sorted.first ?? 0, rank(0.5), rank(0.9), rank(0.99), sorted.last ?? 0)
            var histogram: [(upTo: Int, rows: Int)] = []
            var (start, limit) = (0, 16)
            while start < sorted.count {
                let end = sorted[start...].firstIndex { $0 > limit } ?? sorted.count
                if end > start || !histogram.isEmpty { histogram.append((limit, end - start)) }
                (start, limit) = (end, limit * 2)
            }
            self.histogram = histogram
        }
    }

    /// Pairs of rows that belong together, by file and line.
    public struct Pairs: Sendable, Equatable {
        /// How many rows have an earlier partner.
        public var count = 0
        /// The first of them, the earlier row before the later one.
        public var first: [(earlier: String, later: String)] = []

        /// Two are equal when they have the same rows.
        public static func == (a: Pairs, b: Pairs) -> Bool {
            a.count == b.count && a.first.elementsEqual(b.first, by: ==)
        }

        mutating func append(_ earlier: @autoclosure () -> String, _ later: @autoclosure () -> String) {
            count += 1
            if first.count < 10 { first.append((earlier(), later())) }
        }
    }

    /// What became of each file's rows.
    public let summaries: [DataSummary]
    /// How long rows are.
    public let lengths: Lengths
    /// The longest that a row may be.
    public let maxLength: Int
    /// The tokens that are part of the loss.
    public let supervisedTokens: Int
    /// Rows that are there before, token by token.
    public let duplicates: Pairs
    /// Rows with the prompt of an earlier one and another answer.
    public let otherAnswers: Pairs
    /// The held-out rows; nil where there are none.
    public let evalRows: Int?
    /// Held-out rows that are among the rows to learn from.
    public let evalDuplicates: Pairs
    /// Held-out rows whose prompt is among those to learn from, with another answer.
    public let evalPrompts: Pairs
    /// The first rows with what is learnt of them.
    public let firstRows: [MarkedRow]
    /// What there is to say about the files.
    public let notes: [String]

    /// The rows that can be learnt from.
    public var kept: Int { summaries.reduce(0) { $0 + $1.kept } }
    /// Their tokens, after cutting.
    public var tokens: Int { summaries.reduce(0) { $0 + $1.tokens } }

    /// Looks through data.
    ///
    /// - Parameters:
    ///   - data: The rows to learn from.
    ///   - evalData: The held-out rows.
    ///   - maxLength: The longest that a row may be.
    ///   - tokenizer: The tokenizer that made both.
    ///   - rows: How many of the first rows to show.
    /// - Throws: `TokenizerError` when a token is not in the vocabulary.
    public init(
        _ data: Dataset, evalData: Dataset? = nil, maxLength: Int, tokenizer: Tokenizer, rows: Int = 1
    ) throws {
        summaries = data.summaries
        self.maxLength = maxLength
        lengths = Lengths((0..<data.count).map { data.wholeLength(at: $0) })
        var finder = PairFinder(data)
        var (duplicates, otherAnswers, supervised) = (Pairs(), Pairs(), 0)
        for index in 0..<data.count {
            let example = data[index]
            supervised += example.supervisedCount
            switch finder.place(example, index) {
            case .duplicate(let earlier): duplicates.append(data.name(of: data[earlier]), data.name(of: example))
            case .otherAnswer(let earlier): otherAnswers.append(data.name(of: data[earlier]), data.name(of: example))
            case .new: break
            }
        }
        (self.duplicates, self.otherAnswers, supervisedTokens) = (duplicates, otherAnswers, supervised)
        var (same, prompts) = (Pairs(), Pairs())
        for index in 0..<(evalData?.count ?? 0) {
            guard let evalData else { break }
            let example = evalData[index]
            switch finder.find(example) {
            case .duplicate(let earlier): same.append(data.name(of: data[earlier]), evalData.name(of: example))
            case .otherAnswer(let earlier): prompts.append(data.name(of: data[earlier]), evalData.name(of: example))
            case .new: break
            }
        }
        (evalRows, evalDuplicates, evalPrompts) = (evalData?.count, same, prompts)
        firstRows = try (0..<min(max(0, rows), data.count)).map {
            try MarkedRow(data[$0], of: data, tokenizer: tokenizer)
        }
        // Bad rows are listed on their own.
        let known = (summaries + (evalData?.summaries ?? [])).compactMap(\.badRowNote)
        notes = (data.trainingNotes + (evalData?.notes ?? [])).filter { !known.contains($0) }
    }
}

/// Finds rows that are there before by digests of 128 bits, so that no text is kept.
private struct PairFinder {
    enum Place {
        case new
        case duplicate(of: Int)
        case otherAnswer(than: Int)
    }

    private struct Digest: Hashable {
        let high: UInt64
        let low: UInt64

        init(_ words: [Int64]) {
            let bytes = words.withUnsafeBytes { SHA256.hash(data: $0) }
            (high, low) = bytes.withUnsafeBytes {
                ($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            }
        }
    }

    private var rows: [Digest: Int] = [:]
    private var prompts: [Digest: Int] = [:]

    init(_ data: Dataset) {
        rows.reserveCapacity(data.count)
    }

    /// Takes a row in and tells what it is to the earlier ones.
    mutating func place(_ example: Example, _ index: Int) -> Place {
        let found = find(example)
        if case .new = found {
            rows[Self.whole(example)] = index
            if let prompt = Self.prompt(example) { prompts[prompt] = index }
        } else if case .otherAnswer = found {
            rows[Self.whole(example)] = index
        }
        return found
    }

    /// Tells what a row is to those that were taken in.
    func find(_ example: Example) -> Place {
        if let row = rows[Self.whole(example)] { return .duplicate(of: row) }
        if let prompt = Self.prompt(example), let row = prompts[prompt] { return .otherAnswer(than: row) }
        return .new
    }

    private static func whole(_ example: Example) -> Digest {
        Digest(zip(example.ids, example.supervised).map { $1 ? ~Int64($0) : Int64($0) })
    }

    /// What a row gives and does not teach; nil for texts, of which only the first token is not taught.
    private static func prompt(_ example: Example) -> Digest? {
        let given = zip(example.ids, example.supervised).filter { !$0.1 }.map { Int64($0.0) }
        return given.count > 1 ? Digest(given) : nil
    }
}
