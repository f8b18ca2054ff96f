import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Torch
import Training

/// The forms of rows that users bring, several files, and how often an epoch takes each row.
@Suite struct RowFormTests {
    private func read(
        _ text: String, as name: String = "data.jsonl", columns: KeyedList<String> = [:]
    ) throws -> Dataset {
        try withTemporaryFolder { folder in
            var options = Dataset.Options(maxLength: 512)
            options.columns = columns
            return try Dataset(
                [DataSource(folder.write(text, to: name))], text: TextModel.load("smollm2-135m"), options: options)
        }
    }

    @Test func otherFormsAreTheSameRows() throws {
        let chat = try read(
            #"{"messages": [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]}"#)
        let alpaca = try read(#"{"instruction": "Add", "input": "1 2", "output": "3"}"#)
        #expect(alpaca[0].ids == chat[0].ids && alpaca[0].supervised == chat[0].supervised)
        #expect(alpaca.notes.contains { $0.contains("\"output\" (1) are read as a user's message") })
        #expect(chat.notes.isEmpty)
        let plain = try read(
            #"{"messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "3"}]}"#)
        for input in ["", #""input": "", "#, #""input": null, "#] {
            let row = try read(#"{"instruction": "Add", \#(input)"output": "3"}"#)
            #expect(row[0].ids == plain[0].ids)
        }
        let shared = try read(
            """
            {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Add"}, \
            {"from": "gpt", "value": "3"}]}
            """)
        let spoken = try read(
            """
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add"}, \
            {"role": "assistant", "content": "3"}]}
            """)
        #expect(shared[0].ids == spoken[0].ids && shared[0].supervised == spoken[0].supervised)
        #expect(shared.notes.contains { $0.contains("human is the user") })
    }

    @Test func aModelWithoutATemplateReadsInstructionsAsPrompts() async throws {
        let text = try TextModel(tokenizer: TextModel.load("smollm2-135m").tokenizer)
        try withTemporaryFolder { folder in
            let options = Dataset.Options(maxLength: 64)
            func rows(_ row: String) throws -> Dataset {
                try Dataset([DataSource(folder.write(row, to: "a.jsonl"))], text: text, options: options)
            }
            let one = try rows(#"{"instruction": "Add", "input": "1 2", "output": "3"}"#)
            let two = try rows(#"{"prompt": "Add\n\n1 2\n\n", "completion": "3"}"#)
            #expect(one[0].ids == two[0].ids && one[0].supervised == two[0].supervised)
        }
    }

    @Test func everyFormatGivesTheSameRows() throws {
        let expected = try read(
            #"{"prompt": "a, \"b\"\nc", "completion": " é"}"# + "\n" + #"{"prompt": "x", "completion": " y"}"#)
        let table = "prompt,completion\r\n\"a, \"\"b\"\"\nc\", é\r\nx, y\r\n"
        for (name, text) in [
            ("a.csv", table), ("a.tsv", "completion\tprompt\n é\t\"a, \"\"b\"\"\nc\"\n y\tx\n"),
            ("a.json", #"[{"prompt": "a, \"b\"\nc", "completion": " é"}, {"prompt": "x", "completion": " y"}]"#),
            (
                "b.json",
                #"{"train": [{"prompt": "a, \"b\"\nc", "completion": " é"}, {"prompt": "x", "completion": " y"}]}"#
            ),
        ] {
            let data = try read(text, as: name)
            #expect(data.digest == expected.digest, "\(name)")
        }
        // The line of a row of a table is its own.
        #expect(try read(table, as: "a.csv").examples.map(\.line) == [2, 4])
        // A cell may hold a conversation.
        let cell = try read(
            "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"a\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"b\"\"}]\"\n",
            as: "c.csv")
        #expect(cell.count == 1 && cell[0].supervisedCount > 0)
    }

    @Test func columnsAreReadUnderOtherNames() throws {
        let expected = try read(#"{"prompt": "a", "completion": "b"}"#)
        let columns: KeyedList<String> = ["prompt": "question", "completion": "answer"]
        let json = try read(#"{"id": 7, "question": "a", "answer": "b", "tags": ["c"]}"#, columns: columns)
        #expect(json[0].ids == expected[0].ids)
        #expect(try read("id,answer,question\n1,b,a\n", as: "a.csv", columns: columns).digest == expected.digest)
        for (columns, word) in [
            (["prompt": "question"] as KeyedList<String>, "do not make a row"),
            (["promt": "question", "completion": "answer"], "Did you mean \"prompt\"?"),
            (["prompt": "qestion", "completion": "answer"], "Did you mean \"question\"?"),
        ] {
            let text = message { _ = try read(#"{"question": "a", "answer": "b"}"#, columns: columns) }
            #expect(text.contains(word), "\(text)")
        }
        let advice = message { _ = try read(#"{"question": "a", "answer": "b"}"#) }
        #expect(advice.contains("--column prompt=question --column completion=answer"), "\(advice)")
        #expect(advice.contains("columns: {prompt: question, completion: answer}"))
        #expect(message { _ = try read(#"{"text": "a", "id": 3}"#) }.contains("--column text=text"))
    }

    @Test(arguments: [
        (#"{"instruction": "a"}"#, "no \"output\""), (#"{"instruction": "a", "output": ""}"#, "\"output\" is an empty"),
        (#"{"instruction": "a", "input": 3, "output": "b"}"#, "\"input\" is an integer"),
        (#"{"conversations": {}}"#, "expected an array"), (#"{"conversations": []}"#, "is empty"),
        (#"{"conversations": [{"from": "humn", "value": "a"}]}"#, "Did you mean \"human\"?"),
        (#"{"conversations": [{"role": "user", "content": "a"}]}"#, "are called \"messages\""),
        (#"{"conversations": [{"from": "human"}]}"#, "\"value\" is missing"),
        (#"{"conversations": [{"from": "human", "value": "a"}]}"#, "no message has the role \"assistant\""),
    ])
    func wrongRowsOfOtherFormsHaveTheirOwnMessage(_ row: String, _ word: String) throws {
        let text = message { _ = try read("{\"text\": \"fine\"}\n" + row) }
        #expect(text.contains(word) && text.contains("line 2"), "\(text)")
    }

    @Test func rowsThatNeverStopAreNoted() throws {
        #expect(try read(#"{"text": "one two three"}"#).trainingNotes.isEmpty)
        try withTemporaryFolder { folder in
            let path = try folder.write(#"{"text": "one two three four five six"}"#, to: "a.jsonl")
            let text = try TextModel.load("smollm2-135m")
            let cut = try Dataset([DataSource(path)], text: text, options: Dataset.Options(maxLength: 4))
            #expect(cut.trainingNotes.contains { $0.contains("no row teaches the model to stop") })
        }
    }

    @Test func anEpochTakesRowsByWeight() throws {
        let sizes = [
            (rows: 10, weight: 1.0), (rows: 7, weight: 2.5), (rows: 9, weight: 1.0 / 3), (rows: 5, weight: 0.01),
        ]
        let epochs = EpochRows(sizes, seed: Seed(3))
        #expect(sizes.indices.map { epochs.count(ofSource: $0) } == [10, 18, 3, 1])
        #expect(epochs.count == 32)
        var times = [Int](repeating: 0, count: 31)
        var orders: Set<[Int]> = []
        for epoch in 0..<21 {
            let rows = epochs.rows(epoch: epoch)
            #expect(rows.count == epochs.count)
            #expect(rows == EpochRows(sizes, seed: Seed(3)).rows(epoch: epoch))
            orders.insert(rows)
            var once = [Int](repeating: 0, count: 31)
            for row in rows { once[row] += 1 }
            #expect(once[..<10].allSatisfy { $0 == 1 })
            #expect(once[10..<17].allSatisfy { $0 == 2 || $0 == 3 })
            #expect(once[17...].allSatisfy { $0 <= 1 })
            for row in rows { times[row] += 1 }
        }
        #expect(orders.count == 21)
        // Over 21 epochs all rows of a source have had their turn as often: 4 x 21 / 7 and 3 x 21 / 9 and 21 / 5.
        #expect(times[10..<17].allSatisfy { $0 == 54 })
        #expect(times[17..<26].allSatisfy { $0 == 7 })
        #expect(times[26...].allSatisfy { $0 == 4 || $0 == 5 })
        #expect(EpochRows(sizes, seed: Seed(4)).rows(epoch: 0) != epochs.rows(epoch: 0))
        var stream = Seed(3).stream("data/epoch/5")
        #expect(EpochRows(count: 12, seed: Seed(3)).rows(epoch: 5) == stream.permutation(12))
    }

    @Test func sourcesAreReadFromRecipesAndArguments() throws {
        try withTemporaryFolder { folder in
            let odd = try folder.write("x", to: "odd=2")
            #expect(DataSource(argument: odd) == DataSource(odd))
            #expect(DataSource(argument: "a.csv=0.5") == DataSource("a.csv", weight: 0.5))
            #expect(DataSource(argument: "a=b.csv") == DataSource("a=b.csv"))
        }
        let recipe = try Recipe(
            yaml:
                "model: m\ndata: [a.jsonl, {path: b.csv, weight: 0.5}]\ncolumns: {prompt: q, completion: a}\ncache: false\n"
        )
        #expect(recipe.dataSources == [DataSource("a.jsonl"), DataSource("b.csv", weight: 0.5)])
        #expect(recipe.data == "a.jsonl, b.csv x 0.5")
        let again = try Recipe(yaml: recipe.yaml())
        #expect(again.dataSources == recipe.dataSources && again.columns == recipe.columns && !again.usesCache)
        #expect(try Recipe(yaml: "model: m\ndata: a.jsonl\n").dataSources == [DataSource("a.jsonl")])
        for (yaml, word) in [
            ("data: [{path: a, wight: 2}]", "{path, weight}"), ("data: 3", "a path, or a list"),
            ("data: [[]]", "a list"),
        ] { #expect(message { _ = try Recipe(yaml: "model: m\n" + yaml) }.contains(word)) }
        for (yaml, word) in [
            ("data: [{path: a, weight: 0}]", "the weight of a"), ("data: a\ncolumns: {prompt: q}", "do not make a row"),
            ("data: a\nmax_bad_rows: 2", "max_bad_rows"), ("data: a\ncolumns: {text: 3}", "columns, text"),
        ] { #expect(message { try Recipe(yaml: "model: m\n" + yaml).validate() }.contains(word), "\(yaml)") }
    }
}
