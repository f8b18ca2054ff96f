import Crypto
import Formats
import Tokenizers

/// The rows of files as tokens, ready to train on or to evaluate.
///
/// A file is JSON Lines, JSON, CSV or TSV, each also gzip'd; see `RowFile`. Its rows have one of these forms, which one
/// file may mix:
/// - `{"text": ...}`: the loss is on every token but the first.
/// - `{"prompt": ..., "completion": ...}`: both are joined as they are and split into tokens as one text; a token that
///   reaches into the completion is part of the loss.
/// - `{"messages": [{"role": ..., "content": ...}, ...]}`: rendered by the model's chat template; the assistant's turns
///   with the token that ends each are part of the loss.
/// - `{"conversations": [{"from": ..., "value": ...}, ...]}`: the same, with `human` for the user and `gpt` for the
///   assistant.
/// - `{"instruction": ..., "input": ..., "output": ...}`: a user's message, the input after an empty line where there is
///   one, and the assistant's answer; for a model without a chat template a prompt that ends with an empty line and its
///   completion.
///
/// Those teach to write. With ``Options/rows`` other than `text` a file has, instead:
/// - `{"prompt": ..., "chosen": ..., "rejected": ...}`, strings or messages: what to prefer. Only the answers are part
///   of the loss.
/// - `{"text": ..., "label": ...}`, perhaps with a `text_pair`: which label a text or a pair of texts has; a string or a
///   whole number. They have the tokens that transformers gives to a model, no end-of-sequence token added.
///
/// Texts and completions end with the end-of-sequence token, which is part of the loss. Other columns are read with
/// ``Options/columns``. Rows are read from memory or from the token cache as they are asked for.
public struct Dataset: Sendable {
    /// How files are read.
    public struct Options: Sendable {
        /// Tokens beyond this many are cut off at the end of each row.
        public var maxLength: Int
        /// For keys of a row the column that each is read from; empty: rows are read as they are.
        public var columns: KeyedList<String> = [:]
        /// The share of a file's rows that may be left out because they cannot be used; 0: the first is an error.
        public var maxBadRows = 0.0
        /// What the rows teach; a row of another kind is an error.
        public var rows = RowKind.text
        /// The names of the labels by their numbers; nil: as the rows have them, see ``Dataset/labels``.
        public var labels: [String]?
        /// Where tokens are kept for the next run; nil: nowhere.
        public var cache: TokenCache?

        /// Makes options with the defaults.
        public init(maxLength: Int, cache: TokenCache? = nil) {
            self.maxLength = maxLength
            self.cache = cache
        }
    }

    /// What became of each file's rows.
    public let summaries: [DataSummary]
    /// The number of rows that can be learnt from.
    public let count: Int
    /// SHA-256, in hexadecimal: equal where training would see the same tokens as often.
    public let digest: String
    /// What the rows teach.
    public let kind: RowKind
    /// The names of the labels by their numbers, where the rows have labels.
    ///
    /// Labels that are all whole numbers from 0 are their own numbers, up to the largest; others are numbered in
    /// ascending order of their names.
    public let labels: [String]
    /// For each file the numbers of the labels that it numbers itself.
    private let labelNumbers: [[Int]]
    private let parts: [DatasetPart]
    /// The place of each part's first row.
    private let starts: [Int]

    /// Reads one file, whose tokens are kept in memory.
    ///
    /// - Parameters:
    ///   - path: The file.
    ///   - tokenizer: The model's tokenizer.
    ///   - template: The model's chat template; needed for conversations only.
    ///   - maxLength: Tokens beyond this many are cut off at the end of each row.
    /// - Throws: `FormatError` naming file and line of the first wrong row; ``TrainingError`` when no row is left.
    public init(path: String, tokenizer: Tokenizer, template: ChatTemplate? = nil, maxLength: Int) throws {
        try self.init(
            [DataSource(path)], text: TextModel(tokenizer: tokenizer, template: template),
            options: Options(maxLength: maxLength))
    }

    /// Reads files.
    ///
    /// - Parameters:
    ///   - sources: The files with their weights.
    ///   - text: The model's tokenizer and chat template.
    ///   - options: How they are read.
    /// - Throws: `FormatError` naming file and line of the first wrong row; ``TrainingError`` when too many rows cannot
    ///   be used, no row is left, or the tokens fit neither into the cache nor into memory.
    public init(_ sources: [DataSource], text: TextModel, options: Options) throws {
        guard options.maxLength > 1 else {
            throw TrainingError("max_length is \(options.maxLength); a row needs at least 2 tokens to learn from")
        }
        guard (0...1).contains(options.maxBadRows) else {
            throw TrainingError("max_bad_rows is \(options.maxBadRows); expected a share from 0 to 1")
        }
        guard !sources.isEmpty else { throw TrainingError("there are no data: name a file of rows") }
        let loader = try DatasetLoader(text: text, options: options)
        parts = try sources.map { source in
            try source.validate()
            return try loader.part(source)
        }
        kind = options.rows
        labels = try options.labels ?? Self.labels(parts.flatMap(\.labels))
        labelNumbers = try Self.numbers(of: parts, labels)
        summaries = parts.map(\.summary)
        (starts, count) = parts.reduce(into: ([Int](), 0)) { sums, part in
            sums.0.append(sums.1)
            sums.1 += part.count
        }
        digest = Self.digest(of: summaries, labels, maxLength: options.maxLength)
    }

    /// The file, or the files with their weights.
    public var path: String { summaries.map(\.source.description).joined(separator: ", ") }
    /// The rows of the files, those that were dropped included.
    public var rows: Int { summaries.reduce(0) { $0 + $1.rows } }
    /// The rows that were cut at the maximum length, those that were then dropped included.
    public var truncated: Int { summaries.reduce(0) { $0 + $1.truncated } }
    /// The lines of rows that were dropped, because cutting them left no token that is part of the loss.
    public var dropped: [Int] { summaries.flatMap(\.droppedLines) }
    /// The tokens of all rows.
    public var tokens: Int { summaries.reduce(0) { $0 + $1.tokens } }
    /// The tokens of the longest row.
    public var longest: Int { summaries.map(\.longest).max() ?? 0 }
    /// The tokens that are part of the loss; takes a look at every row.
    public var supervisedTokens: Int { (0..<count).reduce(0) { $0 + supervisedCount(at: $1) } }
    /// All rows, made now; for data that fit into memory.
    public var examples: [Example] { (0..<count).map { self[$0] } }

    /// A row that can be learnt from, by its place among them.
    public subscript(index: Int) -> Example {
        let (part, row) = place(index)
        let example = parts[part].example(at: row, source: part)
        guard kind == .labelled else { return example }
        let numbers = labelNumbers[part]
        return example.labelled(example.label.flatMap { numbers.indices.contains($0) ? numbers[$0] : nil })
    }

    /// The tokens of a row; of a preference those of both answers, as long as the longer one.
    public func length(at index: Int) -> Int {
        let (part, row) = place(index)
        return parts[part].length(at: row)
    }

    /// The tokens of a row before it was cut.
    func wholeLength(at index: Int) -> Int {
        let (part, row) = place(index)
        return parts[part].wholeLength(at: row)
    }

    /// The tokens of a row that are part of the loss.
    public func supervisedCount(at index: Int) -> Int { supervisedCounts(at: index).reduce(0, +) }

    /// The same for each sequence of a row: the chosen answer, then the rejected one.
    package func supervisedCounts(at index: Int) -> [Int] {
        let (part, row) = place(index)
        return parts[part].supervisedCounts(at: row)
    }

    /// File and line of a row, as in `train.jsonl line 7`.
    public func name(of example: Example) -> String {
        let file = summaries.indices.contains(example.source) ? summaries[example.source].source.path : path
        return "\(file) line \(example.line)"
    }

    private func place(_ index: Int) -> (part: Int, row: Int) {
        // Empty parts start where the next one does, so the last that starts here or before has the row.
        let part = starts.lastIndex { $0 <= index } ?? 0
        return (part, index - starts[part])
    }

    private static func digest(of summaries: [DataSummary], _ labels: [String], maxLength: Int) -> String {
        var hash = SHA256()
        for label in labels { hash.update(data: Array("\(label.utf8.count):\(label)\n".utf8)) }
        for summary in summaries {
            let length = min(maxLength, summary.longest)
            hash.update(data: Array("\(summary.digest) \(length) \(JSON(summary.source.weight).compact)\n".utf8))
        }
        return hexadecimal(hash.finalize())
    }
}

extension Dataset {
    /// What there is to say about the rows, a sentence each: forms that were read as others, rows that were cut,
    /// dropped or left out.
    public var notes: [String] {
        summaries.flatMap { $0.notes + [$0.truncationNote, $0.badRowNote].compactMap { $0 } }
    }

    /// The same of rows to learn from: also that their ends are never learnt.
    public var trainingNotes: [String] {
        var notes = notes
        if kind != .labelled, summaries.allSatisfy({ $0.stopRows == 0 }) {
            notes.append(
                "\(path): no row teaches the model to stop, because the loss is on no end-of-sequence or end-of-turn "
                    + "token" + (truncated > 0 ? "; raise max_length, so that rows keep their ends" : ""))
        }
        return notes
    }

    /// What was cut and dropped, in one sentence a file; nil when nothing was.
    public var truncationNote: String? {
        let notes = summaries.compactMap(\.truncationNote)
        return notes.isEmpty ? nil : notes.joined(separator: "; ")
    }
}

extension DataSummary {
    /// What was cut and dropped, in one sentence; nil when nothing was.
    var truncationNote: String? {
        guard truncated > 0 else { return nil }
        let head = "\(source.path): \(truncated) of \(rows) rows were cut at max_length"
        guard let first = droppedLines.first else { return head }
        return head + "; \(droppedLines.count) of them (the first at line \(first)) were dropped, because no token to "
            + "learn was left"
    }

    /// How many rows were left out and why, in one sentence; nil when none was.
    var badRowNote: String? {
        guard let first = badRows.first else { return nil }
        return "\(source.path): \(badCount) of \(rows) rows were left out because they cannot be used; the first at "
            + "line \(first.line): \(first.reason)"
    }
}

/// The bytes of a digest as lower-case hexadecimal digits.
func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
}
