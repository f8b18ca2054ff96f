import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// What `train --dry-run` predicts is held against what a run of the real model then needs.
@Suite struct PlanTests {
    @Test func thePredictedPeakIsNearTheMeasuredOne() async throws {
        _ = try RepositoryPaths.required(RepositoryPaths.smolLM2)
        try await withTemporaryFolder { folder in
            let words = (0..<40).map { "word\($0 * 37 % 101)" }.joined(separator: " ")
            let row: JSON = ["prompt": .string("Repeat: " + words), "completion": .string(" " + words)]
            let data = try folder.write(
                String(repeating: row.compact + "\n", count: 2), to: "rows.jsonl")
            let arguments = [
                "train", "--model", "smollm2-135m", "--data", data, "--steps", "2", "--batch-size", "2", "--dtype",
                "bfloat16",
                "--threads", "1", "--set", "target_modules=all-linear", "--json", "--output", folder("run"),
            ]
            let plan = try await graft(arguments + ["--dry-run"]).json()
            #expect(!FileManager.default.fileExists(atPath: folder("run")))
            let predicted = try #require(plan["peak_memory_bytes"]?.double)
            let parts = try #require(plan["memory_bytes"]?.object)
            #expect(parts.reduce(0) { $0 + ($1.value.double ?? 0) } == predicted)
            let result = try await graft(arguments).json()
            let measured = try #require(result["peak_memory_bytes"]?.double)
            #expect(abs(predicted - measured) < 0.15 * measured, "predicted \(predicted), measured \(measured)")
            #expect(result["trainable_parameters"] == plan["trainable_parameters"])
        }
    }
}
