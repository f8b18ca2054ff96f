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
            // A scale with which the squares of the gradients are beyond fp32.
            let arguments = Fixtures.quickRun(model: model, rows: rows, output: folder("run"))
            let result = try await graft(arguments + ["--set", "lora_alpha=1e34"])
            result.expectFailure(1, "step 1: ", "rows.jsonl line ", "lower learning_rate")
            let layout = RunLayout(folder("run"))
            let failure = try JSON.read(path: layout.failure)
            #expect(failure["step"] == 1 && failure["checkpoint"]?.isNull == true)
            #expect(failure["rows"]?.array?.count == 2 && failure["seed"] == 42)
            #expect(!FileManager.default.fileExists(atPath: layout.adapter))
            // The same again.
            let again = try await graft("train", "--resume", "--output", folder("run"))
            again.expectFailure(1, "step 1: ")
        }
    }
}
