import Formats
import Foundation
import TestSupport
import Testing

/// The readers of data files against Python's csv, json and gzip modules.
@Suite struct RowFileTests {
    private func rows(_ path: String) throws -> [JSON] {
        var rows: [JSON] = []
        try RowFile(path: path).forEach { rows.append(try $0.value.get()) }
        return rows
    }

    private func message(_ path: String) -> String {
        do {
            _ = try rows(path)
            return ""
        } catch {
            return "\(error)"
        }
    }

    /// Rows of texts with everything that formats quote.
    private func randomRows(_ generator: inout SeededGenerator, keys: [String]) -> [JSON] {
        let pieces = [
            "\"", "\"\"", ",", "\t", "\n", "\r\n", ";", " ", "a", "é", "e\u{301}", "漢字", "👩\u{200D}👧", "\\", "{", "]",
        ]
        return (0..<Int.random(in: 1...20, using: &generator)).map { _ in
            var row = KeyedList<JSON>()
            for key in keys {
                let count = Int.random(in: 0...8, using: &generator)
                row[key] = .string((0..<count).map { _ in pieces.randomElement(using: &generator) ?? "" }.joined())
            }
            return .object(row)
        }
    }

    @Test(arguments: [(",", "csv"), ("\t", "tsv")])
    func tablesWrittenByPythonAreRead(_ delimiter: String, _ ending: String) async throws {
        var generator = SeededGenerator(seed: 5)
        try await withTemporaryFolder { folder in
            for round in 0..<40 {
                let expected = randomRows(&generator, keys: ["prompt", "the, \"completion\"", "名"])
                let source = try folder.write(JSON(expected).compact, to: "rows.json")
                let target = folder("table-\(round).\(ending)")
                _ = try await Oracle.shared.call(
                    "rows.csv_write",
                    [
                        "source": .string(source), "target": .string(target), "delimiter": .string(delimiter),
                        "quote_all": .bool(round % 2 == 0), "line_end": .string(round % 3 == 0 ? "\r\n" : "\n"),
                        "bom": .bool(round % 5 == 0),
                    ])
                #expect(try rows(target) == expected)
            }
        }
    }

    /// Random text, mostly broken: whatever Python's strict reader takes is read the same, the rest is refused.
    @Test func tablesAreReadAsPythonReadsThem() async throws {
        var generator = SeededGenerator(seed: 8)
        let pieces = [
            "\"", "\"", ",", ",", "\n", "\r\n", "\r", "a", "b", " ", "é", "\"\"", "\"x\"", "\"y,\nz\"", "\t", ";",
        ]
        try await withTemporaryFolder { folder in
            var accepted = 0
            for round in 0..<400 {
                let body = (0..<Int.random(in: 0...14, using: &generator)).map { _ in
                    pieces.randomElement(using: &generator) ?? ""
                }.joined()
                let path = try folder.write("p,q\n" + body, to: "table-\(round).csv")
                let expected = try await Oracle.shared.call(
                    "rows.csv_read", ["source": .string(path), "delimiter": ","])
                if let expected = expected.array {
                    accepted += 1
                    #expect(try rows(path) == expected, "\(body.debugDescription)")
                } else {
                    #expect(!message(path).isEmpty, "\(body.debugDescription)")
                }
            }
            #expect(accepted > 20 && accepted < 380)
        }
    }

    @Test func jsonFilesAreReadRowByRow() async throws {
        var generator = SeededGenerator(seed: 6)
        try await withTemporaryFolder { folder in
            for round in 0..<30 {
                let texts = randomRows(&generator, keys: ["text", "a\"]"])
                let expected = texts.map { row -> JSON in
                    ["row": row, "n": [1, 2.5, nil, true, [[]], [:]], "s": .string("[{\"")]
                }
                let source = try folder.write(JSON(expected).compact, to: "rows.json")
                let target = folder("file-\(round).json")
                _ = try await Oracle.shared.call(
                    "rows.json_write",
                    [
                        "source": .string(source), "target": .string(target),
                        "indent": round % 2 == 0 ? nil : 2, "key": round % 3 == 0 ? nil : "data",
                    ])
                #expect(try rows(target) == expected)
                #expect(try RowFile(path: target).format == .json)
            }
            // The line of a row is the one on which it begins.
            let path = try folder.write("[\n {\"text\":\n\"a\"},\n\n {\"text\": 1e}, 3\n]\n", to: "lines.json")
            var lines: [(Int, Bool)] = []
            try RowFile(path: path).forEach { row in lines.append((row.line, (try? row.value.get()) != nil)) }
            #expect(lines.map(\.0) == [2, 5, 5] && lines.map(\.1) == [true, false, true])
        }
    }

    @Test func jsonFilesOfOtherFormsAreRefused() throws {
        try withTemporaryFolder { folder in
            for (text, word) in [
                ("[{\"text\": 1}, ", "ends where"), ("[{\"text\": \"a\"", "ends inside"), ("[1 2]", "expected"),
                ("{\n\"a\": 1}", "no array of rows"), ("{\n\"a\": [1], \"b\": [2]}", "two arrays"),
                ("{\n\"a\" [1]}", "\":\" after"), ("[]\n[]", "goes on"), ("\u{0}[]", "format of this file"),
                ("{\n3: [1]}", "a key"),
            ] {
                let path = try folder.write(text, to: "bad.json")
                #expect(message(path).contains(word), "\(text): \(message(path))")
                #expect(message(path).contains("bad.json"))
            }
        }
    }

    @Test func packedFilesAreReadAsPythonReadsThem() async throws {
        var generator = SeededGenerator(seed: 9)
        let lines = (0..<3000).map { "{\"text\": \"row \($0) \(generator.next())\"}" }.joined(separator: "\n")
        try await withTemporaryFolder { folder in
            let source = try folder.write(lines, to: "rows.jsonl")
            let plain = try rows(source)
            #expect(plain.count == 3000)
            for (members, padding) in [(1, 0), (2, 0), (7, 512), (40, 1)] {
                let target = folder("rows-\(members).jsonl.gz")
                _ = try await Oracle.shared.call(
                    "rows.gzip_write",
                    [
                        "source": .string(source), "target": .string(target), "members": JSON(members), "level": 6,
                        "padding": JSON(padding),
                    ])
                #expect(try rows(target) == plain)
                #expect(try RowFile(path: target).isPacked)
                #expect(try JSONLines(path: target).rows().map(\.value) == plain)
            }
            // Damage of every kind at places drawn from a seed.
            let whole = try Data(contentsOf: URL(fileURLWithPath: folder("rows-2.jsonl.gz")))
            var paths: [String] = []
            for round in 0..<60 {
                var data = whole
                let place = Int.random(in: 0..<data.count, using: &generator)
                switch round % 3 {
                case 0: data = data.prefix(max(2, place))
                case 1: data[round < 10 ? data.count - 1 - round % 8 : place] ^= UInt8(1 << (round % 8))
                default: data += Data((0..<(1 + round)).map { _ in UInt8.random(in: 1...255, using: &generator) })
                }
                paths.append(try folder.write(data, to: "damaged-\(round).jsonl.gz"))
            }
            let texts = try await Oracle.shared.call("rows.gzip_read", ["paths": JSON(paths.map { .string($0) })])
            for (path, text) in zip(paths, try #require(texts.array)) {
                if let text = text.string {
                    // A flipped bit of a header changes nothing of the text.
                    let expected = try text.split(separator: "\n").map { try JSON.parse(String($0)) }
                    #expect(try rows(path) == expected)
                } else {
                    #expect(!message(path).isEmpty, "\(path)")
                }
            }
            let cut = try folder.write(whole.prefix(whole.count - 5), to: "cut.jsonl.gz")
            #expect(message(cut).contains("end too early"))
            var wrong = whole
            wrong[wrong.count - 6] ^= 1
            #expect(message(try folder.write(wrong, to: "sum.jsonl.gz")).contains("incorrect data check"))
        }
    }

    @Test func oneRowOfAPackedFileIsBounded() async throws {
        try await withTemporaryFolder { folder in
            let target = folder("bomb.jsonl.gz")
            _ = try await Oracle.shared.call("rows.gzip_bomb", ["target": .string(target), "megabytes": 200])
            #expect(message(target).contains("longer than 16 MiB"))
            try FileManager.default.copyItem(atPath: target, toPath: folder("bomb.csv.gz"))
            #expect(message(folder("bomb.csv.gz")).contains("16 MiB"))
            try FileManager.default.copyItem(atPath: target, toPath: folder("bomb.json.gz"))
            #expect(message(folder("bomb.json.gz")).contains("16 MiB"))
            // A large row below the limit is read.
            let text = String(repeating: "ab ", count: 5 << 20)
            let large = try folder.write("{\"text\": \"\(text)\"}\n{\"text\": \"b\"}\n", to: "large.jsonl")
            #expect(try rows(large).map { $0["text"]?.string?.utf8.count } == [15 << 20, 1])
        }
    }

    @Test func theFormatIsFoundByNameOrContent() throws {
        let texts: [(String, String, RowFile.Format)] = [
            ("a.jsonl", "{\"text\": \"a\"}\n", .jsonl), ("a.ndjson", "{\"text\": \"a\"}", .jsonl),
            ("a.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n", .jsonl), ("a.json", "{\"text\": \"a\"}\n", .jsonl),
            ("a.json", "{\"messages\": [1]}", .jsonl), ("a.json", " \n[{\"text\": \"a\"}]", .json),
            ("a.json", "{\"rows\": [{\"text\": \"a\"}]}", .json), ("a.json", "{\n\"rows\": []}", .json),
            ("a", "{\"text\": \"a\"}\n", .jsonl), ("a.txt", "[1]", .json), ("a.CSV", "text\na\n", .csv),
            ("a.tsv", "text\na\n", .tsv), ("a.tab", "text\na\n", .tsv),
        ]
        try withTemporaryFolder { folder in
            for (name, text, format) in texts {
                #expect(try RowFile(path: folder.write(text, to: name)).format == format, "\(name) \(text)")
                try FileManager.default.removeItem(atPath: folder(name))
            }
            for (name, text, word) in [
                ("a.parquet", "PAR1....", "Parquet"), ("a.jsonl", "PK\u{3}\u{4}", "zip"),
                ("a.csv.gz", "a,b\n", "not gzip"),
                ("a.txt", "hello", "unknown"), ("a.jsonl", "BZh9", "bzip2"), ("a.csv", "", "empty"),
            ] {
                let path = try folder.write(text, to: name)
                #expect(message(path).contains(word), "\(message(path))")
            }
            let wide = try folder.write(Data([0xFF, 0xFE, 0x7B, 0]), to: "wide.jsonl")
            #expect(message(wide).contains("UTF-16"))
        }
    }

    @Test func raggedAndBrokenRowsAreNamedByLine() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write("a,b\n\"1\n2\",3\nx\n4,5,6\n\"7\"x,8\n9,10\n", to: "rows.csv")
            var failures: [Int: String] = [:]
            var good: [JSON] = []
            try RowFile(path: path).forEach { row in
                switch row.value {
                case .success(let value): good.append(value)
                case .failure(let error): failures[row.line] = "\(error)"
                }
            }
            #expect(good == [["a": "1\n2", "b": "3"], ["a": "9", "b": "10"]])
            #expect(failures.keys.sorted() == [4, 5, 6])
            #expect(failures[4]?.contains("1 field, but the header has 2") == true)
            #expect(failures[5]?.contains("3 fields") == true)
            #expect(failures[6]?.contains("closing quotation mark") == true)
            for (text, word) in [
                ("a,a\n1,2\n", "twice"), ("p;q\n1;2\n", "\";\""), ("a,b\n\"1,2\n3,4\n", "line 2"),
                ("prompt\tcompletion\n", "tsv"),
            ] {
                let wrong = try folder.write(text, to: "wrong.csv")
                #expect(message(wrong).contains(word), "\(message(wrong))")
            }
            let invalid = try folder.write(Data("text\n".utf8) + Data([0xC3, 0x28, 0x0A]), to: "invalid.csv")
            #expect(message(invalid).contains("line 2") && message(invalid).contains("UTF-8"))
        }
    }
}
