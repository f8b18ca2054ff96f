import Formats
import TestSupport
import Testing

/// `--quantization` of `train`, `eval`, `generate` and `merge`.
@Suite struct QuantizationTests {
    @Test func trainsMeasuresAndMerges() async throws {
        try await withTemporaryFolder { folder in
            let model = try await Fixtures.model()
            let rows = try Fixtures.rows(folder)
            let run = folder("run")
            let trained = try await graft(
                Fixtures.quickRun(model: model, rows: rows, output: run) + ["--quantization", "nf4", "--json"])
            #expect(trained.status == 0, "\(trained.errors)")

            let evaluation = [
                "eval", "--model", model, "--adapter", run, "--data", rows, "--dtype", "float32", "--json",
            ]
            let quantised = try await graft(evaluation + ["--quantization", "nf4"]).json()
            let single = try await graft(evaluation + ["--quantization", "nf4", "--no-double-quant"]).json()
            let plain = try await graft(evaluation).json()
            #expect(Set([quantised, single, plain].map { $0["loss"]?.double ?? .nan }).count == 3)

            let generated = try await graft(
                "generate", "--model", model, "--prompt", "The", "--max-tokens", "2", "--quantization", "int8", "--json"
            )
            #expect(try generated.json()["weights"] == "int8", "\(generated.errors)")

            let merge = ["merge", "--model", model, "--adapter", run, "--json", "--output"]
            let original = try await graft(merge + [folder("original")]).json()
            #expect(original["base"] == "the original weights")
            let dequantised = try await graft(merge + [folder("dequantised"), "--base", "dequantised", "--verify"])
                .json()
            #expect(dequantised["base"]?.string?.contains("trained over") == true)
            for document in [original, dequantised] {
                #expect(try #require(document["quantisation_over_update"]?.double) > 0)
                let changes = try #require(document["changes"]?.array)
                #expect(!changes.isEmpty && changes.allSatisfy { $0["quantisation_norm"]?.double ?? 0 > 0 })
            }
            #expect(try #require(dequantised["verify"]?["largest_logit_difference"]?.double) < 1e-3)
            let measured = ["eval", "--data", rows, "--dtype", "float32", "--json", "--model"]
            let loss = try await graft(measured + [folder("dequantised")]).json()["loss"]?.double ?? .nan
            #expect(abs(loss - (quantised["loss"]?.double ?? .nan)) < 1e-4)
            // Quantised once more it is another model, and that is said.
            let again = try await graft(measured + [folder("original"), "--quantization", "nf4"])
            #expect(again.errors.contains("no longer is what was trained"))
            let once = try await graft(measured + [folder("original")])
            #expect(try again.json()["loss"] != once.json()["loss"] && once.errors.isEmpty)
        }
    }

    @Test func refusesWhatCannotBe() async throws {
        try await withTemporaryFolder { folder in
            let model = try await Fixtures.model()
            let rows = try Fixtures.rows(folder)
            let options = Fixtures.quickRun(model: model, rows: rows, output: folder("run"))
            try await graft(options + ["--quantization", "keep"]).expectFailure(2, "no quantised blocks to keep")
            let wrong = try await graft(options + ["--quantization", "nf5"])
            #expect(wrong.status != 0 && wrong.errors.contains("nf4"))
            #expect(try await graft(options).status == 0)
            let merged = try await graft(
                "merge", "--model", model, "--adapter", folder("run"), "--output", folder("merged"), "--base",
                "dequantised")
            #expect(merged.status != 0 && merged.errors.contains("--quantization nf4"))
        }
    }
}
