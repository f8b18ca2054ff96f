import Formats
import TestSupport
import Testing
import Tokenizers
import Training

@Suite struct RowKindTests {
    private func dataset(
        _ lines: String, _ kind: RowKind, maxLength: Int = 64, labels: [String]? = nil
    ) async throws -> (data: Dataset, text: TextModel) {
        let text = try TextModel.load(try await ChatModels.shared.folder())
        return try withTemporaryFolder { folder in
            var options = Dataset.Options(maxLength: maxLength)
            options.rows = kind
            options.labels = labels
            return (
                try Dataset([DataSource(folder.write(lines, to: "rows.jsonl"))], text: text, options: options), text
            )
        }
    }

    private func supervisedText(_ ids: [Int], _ supervised: [Bool], _ text: TextModel) throws -> String {
        try text.tokenizer.decode(zip(ids, supervised).filter(\.1).map(\.0))
    }

    @Test("Answers of strings and of messages are supervised, prompts are not")
    func preferences() async throws {
        let (data, text) = try await dataset(
            """
            {"prompt": "the quick", "chosen": " brown fox", "rejected": " dog"}
            {"prompt": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "lazy"}, \
            {"role": "user", "content": "is"}], "chosen": "brown", "rejected": [{"role": "assistant", "content": "over"}]}
            {"chosen": [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "jumps"}], \
            "rejected": [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}]}
            """, .preference)
        #expect(data.count == 3 && data.kind == .preference)
        let expected = [(" brown fox<|im_end|>", " dog<|im_end|>"), ("brown<|im_end|>", "over<|im_end|>")]
        for (example, answers) in zip(data.examples, expected) {
            let rejected = try #require(example.rejected)
            #expect(try supervisedText(example.ids, example.supervised, text) == answers.0)
            #expect(try supervisedText(rejected.ids, rejected.supervised, text) == answers.1)
            #expect(example.sequences.count == 2)
        }
        let last = try #require(data[2].rejected)
        #expect(try supervisedText(data[2].ids, data[2].supervised, text) == "jumps<|im_end|>")
        #expect(try supervisedText(last.ids, last.supervised, text) == "dog<|im_end|>")
        #expect(data.supervisedCounts(at: 0).count == 2)
        #expect(data.supervisedCount(at: 0) == data[0].supervisedCount)
        #expect(data.length(at: 0) == 2 * max(data[0].ids.count, try #require(data[0].rejected).ids.count))
    }

    @Test("A preference of which an answer is cut to nothing is dropped whole")
    func preferencesAreDroppedWhole() async throws {
        let (data, _) = try await dataset(
            """
            {"prompt": "the", "chosen": " fox", "rejected": " dog"}
            {"prompt": "the quick brown fox jumps over the lazy dog what is the answer to this question", \
            "chosen": " fox", "rejected": " dog"}
            """, .preference, maxLength: 6)
        #expect(data.count == 1 && data.dropped == [2] && data.rows == 2)
    }

    @Test("Labels have numbers by their names, or are their own numbers; pairs are tokens of one row")
    func labels() async throws {
        let (data, text) = try await dataset(
            """
            {"text": "the fox", "label": "yes"}
            {"text": "a dog", "text_pair": "is lazy", "label": "no"}
            {"text": "over", "label": "yes"}
            """, .labelled)
        #expect(data.labels == ["no", "yes"])
        #expect(data.examples.map(\.label) == [1, 0, 1])
        #expect(data[0].ids == text.tokenizer.encodeWithRanges("the fox", addSpecialTokens: true).ids)
        #expect(data[1].ids == text.tokenizer.encodeWithRanges("a dog", pair: "is lazy").ids)
        let (numbers, _) = try await dataset(
            "{\"text\": \"a\", \"label\": 3}\n{\"text\": \"b\", \"label\": \"1\"}\n", .labelled)
        #expect(numbers.labels == ["0", "1", "2", "3"])
        #expect(numbers.examples.map(\.label) == [3, 1])
        let (known, _) = try await dataset(
            "{\"text\": \"a\", \"label\": \"b\"}\n", .labelled, labels: ["c", "b", "a"])
        #expect(known.examples.map(\.label) == [1])
    }

    @Test(
        "What is wrong is said in a sentence",
        arguments: [
            ("{\"text\": \"a\"}", RowKind.preference, "objective dpo learns from"),
            ("{\"text\": \"a\", \"label\": 1}", .text, "this row is for objective classification"),
            ("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}", .text, "this row is for objective dpo"),
            ("{\"chosen\": \"b\", \"rejected\": \"c\"}", .preference, "the row has no \"prompt\""),
            ("{\"prompt\": \"a\", \"chosen\": \"b\"}", .preference, "the row mixes the keys"),
            ("{\"text\": \"a\", \"label\": 1.5}", .labelled, "\"label\" is 1.5; expected a name or a whole number"),
            ("{\"text\": \"a\", \"label\": null}", .labelled, "expected a name or a whole number"),
            ("{\"text\": \"a\", \"label\": 99999999}", .labelled, "the label 99999999 is too large"),
            (
                "{\"chosen\": [{\"role\": \"user\", \"content\": \"a\"}], \"rejected\": [{\"role\": \"user\", "
                    + "\"content\": \"b\"}]}", .preference, "\"chosen\" has no message of the assistant"
            ),
        ])
    func refusals(line: String, kind: RowKind, sentence: String) async throws {
        var found = ""
        do {
            _ = try await dataset(line + "\n", kind)
        } catch {
            found = "\(error)"
        }
        #expect(found.contains(sentence), "\(found)")
    }

    @Test func labelsThatTheModelDoesNotKnowAreNamed() async throws {
        await #expect(throws: TrainingError.self) {
            try await dataset("{\"text\": \"a\", \"label\": \"z\"}\n", .labelled, labels: ["a", "b"])
        }
    }

    @Test("The first row that can be read tells what a file's rows are for")
    func kinds() throws {
        try withTemporaryFolder { folder in
            let cases: [(String, RowKind)] = [
                ("{\"text\": \"a\"}", .text), ("not a row\n{\"text\": \"a\", \"label\": 1}", .labelled),
                ("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}", .preference),
            ]
            for (index, (line, kind)) in cases.enumerated() {
                let path = try folder.write(line + "\n", to: "\(index).jsonl")
                let found = try RowKind(of: path)
                #expect(found == kind)
            }
        }
    }
}
