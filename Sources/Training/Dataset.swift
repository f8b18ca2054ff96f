import Crypto
import Formats
import Tokenizers

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The rows of a JSONL file as tokens, ready to train on or to evaluate.
///
/// Three forms of rows, which one file may mix:
/// - `{"text": ...}`: the loss is on every token but the first.
/// - `{"prompt": ..., "completion": ...}`: both are joined as they are and split into tokens as one text; a token that
///   reaches into the completion is part of the loss.
/// - `{"messages": [{"role": ..., "content": ...}, ...]}`: rendered by the model's chat template; the assistant's turns
///   with the token that ends each are part of the loss.
///
/// The first two end with the end-of-sequence token, which is part of the loss.
public struct Dataset: Sendable {
    /// The file.
    public let path: String
    /// The rows that can be learnt from, in the file's order.
    public let examples: [Example]
    /// The rows of the file, those that were dropped included.
    public let rows: Int
    /// The rows that were cut at the maximum length, those that were then dropped included.
    public let truncated: Int
    /// The lines of rows that were dropped, because cutting them left no token that is part of the loss.
    public let dropped: [Int]
    /// SHA-256 over the examples, in hexadecimal: equal where training would see the same tokens.
    public let digest: String

    /// The number of rows that can be learnt from.
    public var count: Int { examples.count }
    /// A row that can be learnt from, by its place among them.
    public subscript(index: Int) -> Example { examples[index] }
    /// The tokens of a row.
    public func length(at index: Int) -> Int { examples[index].ids.count }

    /// The tokens of all examples.
    public var tokens: Int { examples.reduce(0) { $0 + $1.ids.count } }
    /// The tokens that are part of the loss.
    public var supervisedTokens: Int { examples.reduce(0) { $0 + $1.supervisedCount } }
    /// The tokens of the longest example.
    public var longest: Int { examples.map(\.ids.count).max() ?? 0 }

    /// Reads a file.
    ///
    /// - Parameters:
    ///   - path: A JSONL file.
    ///   - tokenizer: The model's tokenizer.
    ///   - template: The model's chat template; needed for rows with messages only.
    ///   - maxLength: Tokens beyond this many are cut off at the end of each row.
    /// - Throws: `FormatError` naming file and line of the first wrong row; ``TrainingError`` when no row is left.
    public init(path: String, tokenizer: Tokenizer, template: ChatTemplate? = nil, maxLength: Int) throws {
        guard maxLength > 1 else {
            throw TrainingError("max_length is \(maxLength); a row needs at least 2 tokens to learn from")
        }
        let file = try JSONLines(path: path)
        let encoder = RowEncoder(tokenizer: tokenizer, template: template)
        var examples: [Example] = []
        var rows = 0
        var truncated = 0
        var dropped: [Int] = []
        try file.forEach { row in
            rows += 1
            let whole: Example
            do {
                whole = try encoder.example(DataRow(row.value), line: row.line)
            } catch {
                throw file.error("\(error)", in: row)
            }
            guard whole.ids.count > maxLength else { return examples.append(whole) }
            truncated += 1
            let cut = whole.truncated(to: maxLength)
            if cut.supervisedCount > 0 { examples.append(cut) } else { dropped.append(row.line) }
        }
        self.path = path
        self.examples = examples
        self.rows = rows
        self.truncated = truncated
        self.dropped = dropped
        digest = Self.digest(of: examples)
        guard !examples.isEmpty else {
            throw TrainingError(
                rows == 0
                    ? "\(path): the file has no rows; expected one JSON object a line"
                    : "\(path): none of the \(rows) rows has a token left to learn from once cut to max_length "
                        + "\(maxLength); raise max_length")
        }
    }

    /// What was cut and dropped, in one sentence; nil when nothing was.
    public var truncationNote: String? {
        guard truncated > 0 else { return nil }
        let head = "\(path): \(truncated) of \(rows) rows were cut at max_length"
        guard let first = dropped.first else { return head }
        return head + "; \(dropped.count) of them (the first at line \(first)) were dropped, because no token to learn "
            + "was left"
    }

    private static func digest(of examples: [Example]) -> String {
        var hash = SHA256()
        for example in examples {
            // The sign tells supervised tokens from others; the count keeps neighbouring examples apart.
            let words =
                [Int64(example.ids.count)]
                + zip(example.ids, example.supervised).map { id, isSupervised in
                    isSupervised ? ~Int64(id) : Int64(id)
                }
            words.map(\.littleEndian).withUnsafeBytes { hash.update(bufferPointer: $0) }
        }
        return hexadecimal(hash.finalize())
    }
}

/// The bytes of a digest as lower-case hexadecimal digits.
func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
}
