import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// A run that fails after it began is told apart from one that could not begin.
@Suite struct FailureTests {
    @Test func aRunThatDivergesEndsWithACodeOfItsOwn() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            var arguments = Fixtures.quickRun(model: model, rows: rows, output: folder("run"))
            let rate = try #require(arguments.firstIndex(of: "--lr"))
            arguments[rate + 1] = "100000"
            let steps = try #require(arguments.firstIndex(of: "--steps"))
            arguments[steps + 1] = "40"
            let result = try await graft(arguments + ["--max-grad-norm", "0", "--schedule", "constant"])
            result.expectFailure(1, "step ", "rows.jsonl line ", "lower learning_rate")
            let layout = RunLayout(folder("run"))
            let failure = try JSON.read(path: layout.failure)
            #expect(failure["rows"]?.array?.isEmpty == false && failure["recipe"]?["learning_rate"]?.double == 100_000)
            #expect(try layout.checkpoints().last.map { $0.step + 1 } == failure["step"]?.int)
            #expect(!FileManager.default.fileExists(atPath: layout.adapter))
            // The same again, from the state before the step.
            let again = try await graft("train", "--resume", "--output", folder("run"))
            again.expectFailure(1, "step \(failure["step"]?.int ?? 0): ")
        }
    }
}
