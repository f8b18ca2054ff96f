import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// `graft data`, and how the token cache stands up to processes.
@Suite struct DataCommandTests {
    private func largeFile(_ folder: TemporaryFolder, rows: Int = 12_000) throws -> String {
        var generator = SeededGenerator(seed: 77)
        let words = ["alpha", "beta", "gamma", "delta", "Ωμέγα", "漢字", "1234", "x_y", "the", "of"]
        let lines = (0..<rows).map { index -> String in
            let text = (0..<16).map { _ in words.randomElement(using: &generator) ?? "" }.joined(separator: " ")
            return "{\"prompt\": \"\(index) \(text)\", \"completion\": \" \(text.count)\"}\n"
        }
        return try folder.write(lines.joined(), to: "large.jsonl")
    }

    private func data(
        _ arguments: String..., cache: String, limit: String = ""
    ) async throws -> CommandResult {
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        let all = ["data"] + arguments + ["--model", "smollm2-135m", "--json"]
        let environment = ["GRAFT_CACHE": cache, "GRAFT_ENGINE": "/nonexistent"]
        guard !limit.isEmpty else { return try await graft(all, environment: environment) }
        return try await RunningCommand(
            "/bin/bash", ["-c", "\(limit); exec \"$0\" \"$@\"", program] + all, environment: environment
        ).wait()
    }

    @Test func dataIsShownWithoutTheEngine() async throws {
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let result = try await graft(
                "data", rows, "--model", "smollm2-135m", "--rows", "2", environment: ["GRAFT_ENGINE": "/nonexistent"])
            #expect(result.status == 0, "\(result.errors)")
            #expect(result.output.contains("[[ red<|im_end|>]]") && result.output.contains("rows.jsonl line 2"))
            #expect(!result.output.contains("\u{1B}"))
            let json = try await data(rows, cache: folder("cache")).json()
            #expect(json["rows"] == 12 && json["files"]?[0]?["kept"] == 12 && json["duplicates"]?["count"] == 0)
            // So few rows are not worth keeping.
            #expect(try folder.contents() == ["rows.jsonl"])
        }
    }

    @Test func badRowsAreListedAndRefused() async throws {
        try await withTemporaryFolder { folder in
            let path = try folder.write(
                "{\"text\": \"a b\"}\n{\"text\": \"\"}\n{\"text\": \"c d\"}\n{\"txt\": 1}\n", to: "rows.jsonl")
            let result = try await data(path, cache: "off")
            #expect(result.status == 2)
            let rows = try #require(try result.json()["files"]?[0]?["bad_rows"]?.array)
            #expect(rows.map { $0["line"] } == [2, 4])
            #expect(result.errors.contains("2 of 4 rows cannot be used") && result.errors.contains("line 2"))
            let allowed = try await data(path, "--max-bad-rows", "0.5", cache: "off")
            #expect(allowed.status == 0)
            try await graft("data", path).expectFailure(64, "--model")
            try await graft("data").expectFailure(64, "files")
            try await graft("data", path, "--model", "smollm2-135m", "--column", "prompt").expectFailure(64, "--column")
            try await graft("data", folder("none.jsonl"), "--model", "smollm2-135m").expectFailure(2, "none.jsonl")
        }
    }

    @Test func twoProcessesShareTheCache() async throws {
        try await withTemporaryFolder { folder in
            let path = try largeFile(folder)
            let plain = try await data(path, "--no-cache", cache: folder("cache"))
            #expect(plain.status == 0, "\(plain.errors)")
            #expect(!FileManager.default.fileExists(atPath: folder("cache")))
            async let one = data(path, cache: folder("cache"))
            async let two = data(path, cache: folder("cache"))
            for result in try await [one, two] {
                #expect(result.status == 0 && result.errors.isEmpty, "\(result.errors)")
                #expect(result.output == plain.output)
            }
            let again = try await data(path, cache: folder("cache"))
            #expect(again.output == plain.output)
            #expect(try folder.contents(of: "cache/tokens").count == 1)
            let cleared = try await graft("data", "--clear-cache", environment: ["GRAFT_CACHE": folder("cache")])
            #expect(cleared.status == 0 && cleared.errors.contains("removed 1 token tables"))
            #expect(try folder.contents(of: "cache/tokens").isEmpty)
        }
    }

    @Test func killedWhileCachingLeavesNothingThatIsTaken() async throws {
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        try await withTemporaryFolder { folder in
            let path = try largeFile(folder, rows: 60_000)
            let plain = try await data(path, "--no-cache", cache: folder("cache"))
            // Kills the program while it writes the table: as soon as the file is there, and later and later.
            let script = """
                "$0" data "$1" --model smollm2-135m --json > /dev/null & pid=$!
                while kill -0 $pid 2> /dev/null && ! compgen -G "$2/tokens/*.tmp-*" > /dev/null; do :; done
                sleep "$3"; kill -9 $pid; wait $pid; [ $? = 137 ]
                """
            var kills = 0
            for delay in ["0.001", "0.02", "0.06", "0.12"] {
                let command = try RunningCommand(
                    "/bin/bash", ["-c", script, program, path, folder("cache"), delay],
                    environment: ["GRAFT_CACHE": folder("cache")])
                if try await command.wait(timeout: 60).status == 0 { kills += 1 }
                for name in try folder.contents(of: "cache/tokens") where !name.contains(".tmp-") {
                    try FileManager.default.removeItem(atPath: folder("cache/tokens/" + name))
                }
            }
            #expect(kills > 0)
            let after = try await data(path, cache: folder("cache"))
            #expect(after.status == 0 && after.output == plain.output)
        }
    }

    @Test func aFullDiskIsNotedAndNothingIsLeft() async throws {
        try await withTemporaryFolder { folder in
            let path = try largeFile(folder)
            let plain = try await data(path, "--no-cache", cache: folder("cache"))
            let limited = try await data(path, cache: folder("cache"), limit: "ulimit -f 600")
            #expect(limited.status == 0, "\(limited.errors)")
            let notes = try limited.json()["notes"]?.array?.compactMap(\.string) ?? []
            #expect(notes.filter { $0.contains("kept in memory") }.count == 1, "\(notes)")
            #expect(try limited.json()["files"] == plain.json()["files"])
            #expect(try folder.contents(of: "cache/tokens").isEmpty)
        }
    }
}
