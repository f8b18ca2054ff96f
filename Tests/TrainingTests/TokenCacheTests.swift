import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Training

/// The token cache: the same rows as without it, whatever happens to its files.
@Suite struct TokenCacheTests {
    private static let smolLM2 = Result { try TextModel.load("smollm2-135m") }

    private func text() throws -> TextModel { try Self.smolLM2.get() }

    private func cache(_ folder: TemporaryFolder) -> TokenCache {
        var cache = TokenCache(folder: folder("cache"))
        cache.minimumBytes = 0
        return cache
    }

    private func read(
        _ path: String, _ cache: TokenCache?, maxLength: Int = 512, maxBadRows: Double = 0
    ) throws -> Dataset {
        var options = Dataset.Options(maxLength: maxLength, cache: cache)
        options.maxBadRows = maxBadRows
        return try Dataset([DataSource(path)], text: text(), options: options)
    }

    private func expectSame(_ a: Dataset, _ b: Dataset, sourceLocation: SourceLocation = #_sourceLocation) {
        #expect(a.examples == b.examples, sourceLocation: sourceLocation)
        #expect(a.digest == b.digest, sourceLocation: sourceLocation)
        #expect(a.notes == b.notes, sourceLocation: sourceLocation)
        #expect((a.rows, a.truncated, a.tokens) == (b.rows, b.truncated, b.tokens), sourceLocation: sourceLocation)
        #expect((a.longest, a.supervisedTokens) == (b.longest, b.supervisedTokens), sourceLocation: sourceLocation)
        #expect(a.dropped == b.dropped, sourceLocation: sourceLocation)
    }

    private func tables(_ folder: TemporaryFolder) throws -> [String] {
        try folder.contents(of: "cache/tokens").map { folder("cache/tokens/" + $0) }
    }

    /// What tells whether a file was written anew.
    private func identity(_ path: String) throws -> Int {
        try #require(FileManager.default.attributesOfItem(atPath: path)[.systemFileNumber] as? Int)
    }

    @Test func aSecondRunReadsTheTableOfTheFirst() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write(textRows(40, seed: 2), to: "rows.jsonl")
            let plain = try read(path, nil)
            let first = try read(path, cache(folder))
            expectSame(first, plain)
            let table = try #require(tables(folder).first)
            let number = try identity(table)
            expectSame(try read(path, cache(folder)), plain)
            // Where rows are cut is decided when they are read, also by the same table.
            for length in [3, 7, 12] {
                let cut = try read(path, nil, maxLength: length)
                expectSame(try read(path, cache(folder), maxLength: length), cut)
                #expect(cut.truncated > 0)
            }
            #expect(try tables(folder) == [table])
            #expect(try identity(table) == number)
            // The same rows elsewhere have the same table, other rows and other columns another.
            let copy = try folder.write(textRows(40, seed: 2), to: "copy.jsonl")
            #expect(try read(copy, cache(folder)).digest == plain.digest)
            #expect(try tables(folder).count == 1)
            _ = try read(folder.write(textRows(40, seed: 3), to: "other.jsonl"), cache(folder))
            #expect(try tables(folder).count == 2)
        }
    }

    @Test func aTableOfAnotherTokenizerIsNotTaken() async throws {
        let other = try TextModel.load(await ChatModels.shared.folder())
        try withTemporaryFolder { folder in
            let path = try folder.write("{\"text\": \"the quick brown fox\"}\n", to: "rows.jsonl")
            let options = Dataset.Options(maxLength: 64, cache: cache(folder))
            let one = try Dataset([DataSource(path)], text: text(), options: options)
            let two = try Dataset([DataSource(path)], text: other, options: options)
            #expect(one[0].ids != two[0].ids)
            #expect(try tables(folder).count == 2)
            expectSame(try Dataset([DataSource(path)], text: other, options: options), two)
        }
    }

    @Test func aChangeOfTheFileIsSeenWhateverItsSizeAndTime() throws {
        try withTemporaryFolder { folder in
            let path = folder("rows.jsonl")
            func write(_ word: String, at time: Date) throws {
                // In place: the same inode, the same size and the same time of change.
                if !FileManager.default.fileExists(atPath: path) { try folder.write("", to: "rows.jsonl") }
                let handle = try #require(FileHandle(forWritingAtPath: path))
                try handle.write(contentsOf: Data("{\"text\": \"a row with the word \(word)\"}\n".utf8))
                try handle.close()
                try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: path)
            }
            let time = Date(timeIntervalSince1970: 1_600_000_000)
            for word in ["one", "two", "six", "ten"] {
                try write(word, at: time)
                expectSame(try read(path, cache(folder)), try read(path, nil))
            }
        }
    }

    @Test func tornAndForeignTablesAreMadeAnew() throws {
        var generator = SeededGenerator(seed: 12)
        try withTemporaryFolder { folder in
            let path = try folder.write(textRows(60, seed: 4), to: "rows.jsonl")
            let plain = try read(path, nil)
            _ = try read(path, cache(folder))
            let table = try #require(tables(folder).first)
            let whole = try Data(contentsOf: URL(fileURLWithPath: table))
            let foreign = try folder.write(textRows(60, seed: 5), to: "foreign.jsonl")
            _ = try read(foreign, cache(folder))
            let other = try Data(contentsOf: URL(fileURLWithPath: #require(tables(folder).first { $0 != table })))
            for round in 0..<120 {
                var data = whole
                let place = Int.random(in: 0..<data.count, using: &generator)
                switch round % 5 {
                case 0: data = data.prefix(place)
                case 1: data[place] ^= UInt8(1 << Int.random(in: 0..<8, using: &generator))
                case 2: data += Data([UInt8.random(in: 0...255, using: &generator)])
                case 3: data.replaceSubrange(place..., with: Data(count: data.count - place))
                default: data = round % 2 == 0 ? other : Data(other.prefix(place)) + data.suffix(64)
                }
                guard data != whole else { continue }
                try data.write(to: URL(fileURLWithPath: table))
                expectSame(try read(path, cache(folder)), plain)
                #expect(try Data(contentsOf: URL(fileURLWithPath: table)) == whole)
            }
            #expect(try folder.contents(of: "cache/tokens").count == 2)
        }
    }

    @Test func aTableWithManyBlocksIsWhole() throws {
        try withTemporaryFolder { folder in
            // More rows than one block has.
            let count = 66_000
            let lines = (0..<count).map { "{\"text\": \"\($0 % 1000) a\"}\n" }.joined()
            let path = try folder.write(lines, to: "rows.jsonl")
            let data = try read(path, cache(folder))
            let again = try read(path, cache(folder))
            #expect(data.count == count && again.count == count)
            #expect(data.digest == again.digest)
            let tokenizer = try text().tokenizer
            let eos = try #require(tokenizer.specialTokens.eos)
            for index in [0, 1, 65_534, 65_535, 65_536, 65_537, count - 1] {
                #expect(again[index].ids == tokenizer.encode("\(index % 1000) a") + [eos])
                #expect(again[index].line == index + 1)
                #expect(again.length(at: index) == again[index].ids.count)
            }
        }
    }

    private func refusal(_ path: String, _ cache: TokenCache?, allowing share: Double) -> String {
        message { _ = try read(path, cache, maxBadRows: share) }
    }

    @Test func badRowsOfATableAreRefusedByRunsThatAllowNone() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write(
                "{\"text\": \"fine\"}\n{\"txt\": \"a\"}\n{\"text\": \n{\"text\": \"also fine\"}\n", to: "rows.jsonl")
            for cache in [nil, cache(folder)] {
                #expect(refusal(path, cache, allowing: 0).contains("line 2: the key"))
                let data = try read(path, cache, maxBadRows: 0.5)
                #expect(data.examples.map(\.line) == [1, 4])
                #expect(data.summaries[0].badRows.map(\.line) == [2, 3])
                #expect(data.summaries[0].badRows[0].reason.contains("Did you mean \"text\"?"))
                #expect(data.notes.contains { $0.contains("2 of 4 rows were left out") && $0.contains("line 2") })
                let few = refusal(path, cache, allowing: 0.3)
                #expect(few.contains("2 of 4 rows cannot be used") && few.contains("max_bad_rows 0.3"), "\(few)")
                #expect(refusal(path, cache, allowing: 0).contains("line 2: the key"))
            }
        }
    }

    @Test func aFolderThatCannotBeWrittenIsNotedOnce() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write(textRows(9, seed: 1), to: "rows.jsonl")
            var blocked = TokenCache(folder: try folder.write("a file", to: "blocked"))
            blocked.minimumBytes = 0
            let data = try read(path, blocked)
            #expect(data.examples == (try read(path, nil)).examples)
            #expect(data.notes.filter { $0.contains("kept in memory") }.count == 1)
        }
    }

    @Test func clearingLeavesTheFolderEmpty() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write(textRows(9, seed: 1), to: "rows.jsonl")
            let cache = cache(folder)
            let data = try read(path, cache)
            #expect(cache.size.tables == 1 && cache.size.bytes > 500)
            try cache.clear()
            #expect(cache.size.tables == 0)
            // Rows that are in use stay readable.
            expectSame(data, try read(path, nil))
        }
    }
}
