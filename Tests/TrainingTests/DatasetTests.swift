import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Training

@Suite struct DatasetTests {
    private func smolLM2() throws -> (tokenizer: Tokenizer, template: ChatTemplate) {
        let tokenizer = try Tokenizer(gguf: GGUFFile(path: RepositoryPaths.required(RepositoryPaths.smolLM2)))
        return (tokenizer, try tokenizer.chatTemplate())
    }

    private func dataset(_ text: String, maxLength: Int = 512) throws -> Dataset {
        let (tokenizer, template) = try smolLM2()
        return try withTemporaryFolder { folder in
            let path = try folder.write(text, to: "data.jsonl")
            return try Dataset(path: path, tokenizer: tokenizer, template: template, maxLength: maxLength)
        }
    }

    private func supervisedText(_ example: Example) throws -> [String] {
        try example.segments(smolLM2().tokenizer).filter(\.isSupervised).map(\.text)
    }

    @Test func aTextIsLearntFromItsSecondTokenToItsEnd() throws {
        let (tokenizer, _) = try smolLM2()
        let example = try #require(dataset("{\"text\": \"Hello there, world 42\"}").examples.first)
        let eos = try #require(tokenizer.specialTokens.eos)
        #expect(example.ids == tokenizer.encode("Hello there, world 42") + [eos])
        #expect(example.supervised == [false] + Array(repeating: true, count: example.ids.count - 1))
        #expect(example.line == 1)
    }

    @Test func promptAndCompletionAreOneTextWhoseSeamBelongsToTheCompletion() throws {
        let (tokenizer, _) = try smolLM2()
        let eos = try #require(tokenizer.specialTokens.eos)
        // "unbeliev" + "able" share a token across the seam; "3" + "5" do not, since digits stand alone.
        for (prompt, completion) in [
            ("The answer is", " blue"), ("un", "believable"), ("Hello wor", "ld"), ("3", "5"), ("é", "é"),
        ] {
            let row: JSON = ["prompt": JSON(prompt), "completion": JSON(completion)]
            let example = try #require(dataset(row.compact).examples.first)
            let encoding = tokenizer.encodeWithRanges(prompt + completion)
            #expect(example.ids == encoding.ids + [eos])
            for (index, range) in encoding.ranges.enumerated() {
                let reachesIn = range.upperBound > prompt.utf8.count
                #expect(example.supervised[index] == (reachesIn && index > 0))
            }
            #expect(example.supervised.last == true)
        }
        // A token across the seam is learnt whole.
        let crossing = try #require(dataset("{\"prompt\":\"a Hello wor\",\"completion\":\"ld\"}").examples.first)
        #expect(try supervisedText(crossing) == [" world<|im_end|>"])
    }

    @Test func conversationsAreLearntWhereTheAssistantSpeaks() throws {
        let row = """
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, \
            {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "2+2?"}, \
            {"role": "assistant", "content": "4 <|im_end|> no"}]}
            """
        let example = try #require(dataset(row).examples.first)
        let (tokenizer, _) = try smolLM2()
        #expect(try supervisedText(example) == ["Hello!<|im_end|>", "4 <|im_end|> no<|im_end|>"])
        // Written out by hand, turn by turn.
        let pieces: [(String, Bool)] = [
            ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", false),
            ("Hello!<|im_end|>", true),
            ("\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", false),
            ("4 <|im_end|> no<|im_end|>", true), ("\n", false),
        ]
        #expect(example.ids == pieces.flatMap { tokenizer.encode($0.0) })
        #expect(example.supervised == pieces.flatMap { piece in tokenizer.encode(piece.0).map { _ in piece.1 } })
    }

    @Test func labelsDoNotDependOnTheNumberOfTheFillingToken() throws {
        // SmolLM2 fills rows up with the token that ends them, which stays supervised.
        let data = try dataset("{\"text\":\"one two\"}\n{\"text\":\"a much longer row of words than that\"}")
        let (tokenizer, _) = try smolLM2()
        let batch = try Batch(data.examples, padding: try #require(tokenizer.specialTokens.eos))
        #expect(batch.supervisedCounts == data.examples.map { $0.ids.count - 1 })
        let time = batch.ids.size(1)
        let positions: [Int] = try batch.positions.values()
        let targets: [Int] = try batch.targets.values()
        let expected = data.examples.enumerated().flatMap { row, example in
            (1..<example.ids.count).map { (row * time + $0 - 1, example.ids[$0]) }
        }
        #expect(positions == expected.map(\.0))
        #expect(targets == expected.map(\.1))
        #expect(batch.tokens == data.tokens)
    }

    @Test func theBeginningTokenIsThereOnce() async throws {
        let folder = try await ChatModels.shared.folder(bos: true)
        let tokenizer = try Tokenizer(folder: folder)
        let bos = try #require(tokenizer.specialTokens.bos)
        try withTemporaryFolder { temporary in
            let path = try temporary.write(
                "{\"text\":\"the dog\"}\n{\"text\":\"<|im_start|>the dog\"}\n{\"prompt\":\"the\",\"completion\":\" dog\"}",
                to: "data.jsonl")
            let data = try Dataset(path: path, tokenizer: tokenizer, maxLength: 64)
            #expect(data.examples[0].ids == data.examples[1].ids)
            for example in data.examples { #expect(example.ids.filter { $0 == bos }.count == 1) }
            #expect(data.examples.allSatisfy { $0.ids.first == bos && !$0.supervised[0] })
            #expect(data.examples[0].supervised[1])
        }
    }

    @Test func longRowsAreCutAndThoseWithNothingLeftDropped() throws {
        let text = """
            {"text": "one two three four five six seven eight nine ten"}
            {"prompt": "one two three four five six seven", "completion": " eight"}
            {"text": "short"}
            """
        let data = try dataset(text, maxLength: 5)
        #expect(data.rows == 3)
        #expect(data.truncated == 2)
        #expect(data.dropped == [2])
        #expect(data.examples.map(\.line) == [1, 3])
        #expect(data.examples[0].ids.count == 5)
        #expect(data.examples[0].supervisedCount == 4)
        #expect(data.truncationNote?.contains("2 of 3 rows were cut") == true)
        #expect(data.truncationNote?.contains("the first at line 2") == true)
        #expect(
            message { _ = try dataset("{\"prompt\":\"one two three four\",\"completion\":\" five\"}", maxLength: 3) }
                .contains("none of the 1 rows"))
    }

    @Test func theDigestChangesWithTokensAndMasks() throws {
        let one = try dataset("{\"prompt\":\"a b\",\"completion\":\" c\"}").digest
        #expect(try dataset("\n{ \"completion\":\" c\", \"prompt\":\"a b\"}\n").digest == one)
        #expect(try dataset("{\"prompt\":\"a\",\"completion\":\" b c\"}").digest != one)
        #expect(try dataset("{\"prompt\":\"a b\",\"completion\":\" d\"}").digest != one)
    }

    @Test(arguments: [
        ("{\"txt\": \"a\"}", "Did you mean \"text\"?"),
        ("{\"text\": 5}", "\"text\" is an integer; expected a string"),
        ("{\"text\": \"\"}", "\"text\" is an empty string"),
        ("{\"prompt\": \"a\"}", "no \"completion\""),
        ("{\"completion\": \"a\"}", "no \"prompt\""),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", "\"completion\" is an empty string"),
        ("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}", "mixes the keys"),
        ("{}", "the row is empty"),
        ("[1]", "expected a JSON object, found an array"),
        ("{\"text\": ", "data.jsonl"),
        ("{\"messages\": []}", "\"messages\" is empty"),
        ("{\"messages\": {}}", "expected an array"),
        ("{\"messages\": [\"hi\"]}", "message 1: expected an object"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "message 1: the key \"content\" is missing"),
        ("{\"messages\": [{\"role\": \"user\", \"contents\": \"a\"}]}", "Did you mean \"content\"?"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "no message has the role \"assistant\""),
        ("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "\"content\" is null; expected a string"),
    ])
    func aWrongRowIsNamedByItsLine(_ row: String, _ expected: String) throws {
        let text = message { _ = try dataset("{\"text\": \"fine\"}\n\n" + row + "\n") }
        #expect(text.contains(expected), "\(text)")
        #expect(text.contains("line 3"), "\(text)")
        #expect(text.contains("data.jsonl"), "\(text)")
    }

    @Test func anEmptyOrMissingFileIsAnError() throws {
        #expect(message { _ = try dataset("") }.contains("the file is empty"))
        #expect(message { _ = try dataset("\n  \n") }.contains("the file has no rows"))
        let (tokenizer, _) = try smolLM2()
        #expect(
            message { _ = try Dataset(path: "/nonexistent/rows.jsonl", tokenizer: tokenizer, maxLength: 9) }
                .contains("no such file"))
        #expect(message { _ = try dataset("{\"text\":\"a\"}", maxLength: 1) }.contains("max_length is 1"))
    }
}
