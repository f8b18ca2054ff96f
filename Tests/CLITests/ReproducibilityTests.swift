import Formats
import Foundation
import Graft
import TestSupport
import Testing

@Suite struct ReproducibilityTests {
    /// The bytes of every file of a folder, by name.
    private func contents(_ folder: String) throws -> [String: Data] {
        var result: [String: Data] = [:]
        for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
            result[name] = try Data(contentsOf: URL(fileURLWithPath: folder + "/" + name))
        }
        return result
    }

    /// Two processes, and a third run in a process that has had other adapters on the model before.
    @Test("Two runs, same seed, equal hashes", arguments: ["lora", "pissa", "lorta", "capaboost-lora"])
    func equalHashes(method: String) async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            for name in ["first", "second"] {
                let result = try await graft(
                    "train", "--model", model, "--data", rows, "--steps", "4", "--batch-size", "2", "--accumulate", "2",
                    "--lr", "0.01", "--dtype", "float32", "--threads", "1", "--method", method, "--seed", "7",
                    "--output", folder(name))
                #expect(result.status == 0, "\(result.errors)")
            }
            let expected = try contents(folder("first/adapter"))
            #expect(expected.count >= 2)
            #expect(try contents(folder("second/adapter")) == expected)

            // The recipe of the run says all there is to run it again, and on what it ran.
            let recipe = try Recipe(path: folder("first/recipe.yaml"))
            #expect(recipe.seed == 7)
            #expect(recipe.versions.keys == ["graft", "libtorch", "swift", "cpu", "threads"])
            #expect(recipe.versions["threads"] == "1")

            let third = try await RunningCommand(
                RepositoryPaths.program("AttachFirst"), [folder("first/recipe.yaml"), folder("third")]
            ).wait()
            #expect(third.status == 0, "\(third.errors)")
            #expect(try contents(folder("third/adapter")) == expected)

            // Another seed is another run.
            var other = recipe
            other.seed = 8
            try Trainer.run(other, output: folder("other"), showsProgress: false)
            #expect(
                try contents(folder("other/adapter"))["adapter_model.safetensors"]
                    != expected["adapter_model.safetensors"])
        }
    }
}
