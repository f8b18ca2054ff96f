import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// Several processes that share a run.
@Suite struct DistributedTests {
    @Test(
        "The same recipe learns the same in one process and in several",
        arguments: [
            (2, ["--batch-size", "2", "--accumulate", "2"]), (3, ["--batch-size", "7"]),
            (2, ["--packing", "--batch-tokens", "40"]), (3, ["--batch-size", "1", "--accumulate", "2"]),
        ])
    func worldSizeDoesNotChangeWhatIsLearnt(size: Int, options: [String]) async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            // Thirteen rows, so that the last step of a pass has few.
            let rows = try Fixtures.rows(folder, count: 13)
            let held = try Fixtures.rows(folder, count: 5, name: "held.jsonl")
            func arguments(_ name: String) -> [String] {
                Fixtures.quickRun(model: model, rows: rows, output: folder(name)) + options + [
                    "--eval-data", held, "--eval-every", "3", "--save-every", "2", "--steps", "7",
                ]
            }
            let one = try await graft(arguments("one"))
            #expect(one.status == 0, "\(one.errors)")
            let several = try await Self.group(size, arguments("several") + ["--json"])
            #expect(several.map(\.status) == Array(repeating: 0, count: size), "\(several.map(\.errors))")
            try Self.expectSameCurves(folder("one"), folder("several"))

            // One process writes and speaks.
            #expect(try several[0].json()["steps"] == 7)
            #expect(several.dropFirst().allSatisfy { $0.output.isEmpty && $0.errors.isEmpty })
            let adapters = try ["one", "several"].map {
                try SafetensorsFile(path: folder($0 + "/adapter/adapter_model.safetensors"))
            }
            for name in adapters[0].tensors.keys {
                let values = try adapters.map { try $0.tensor(name).tensor().values(as: Float.self) }
                #expect(zip(values[0], values[1]).allSatisfy { abs($0 - $1) < 1e-5 }, "\(name)")
            }
        }
    }

    @Test func torchrunStartsIt() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let one = try await graft(Fixtures.quickRun(model: model, rows: rows, output: folder("one")))
            #expect(one.status == 0, "\(one.errors)")
            let torchrun = try RepositoryPaths.required(RepositoryPaths.setup + "/oracle/bin/torchrun")
            let program = try RepositoryPaths.required(RepositoryPaths.graft)
            let command = try RunningCommand(
                torchrun,
                ["--no-python", "--standalone", "--nproc-per-node", "2", program]
                    + Fixtures.quickRun(model: model, rows: rows, output: folder("two")))
            let end = try await command.wait()
            #expect(end.status == 0, "\(end.errors)")
            try Self.expectSameCurves(folder("one"), folder("two"))
        }
    }

    @Test func differentRecipesDataAndFoldersAreRefused() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let others = try Fixtures.rows(folder, count: 11, name: "others.jsonl")
            let arguments = Fixtures.quickRun(model: model, rows: rows, output: folder("run"))
            func refused(_ more: [String], _ words: String...) async throws {
                let ends = try await Self.group(2, arguments, second: more)
                for (rank, end) in ends.enumerated() {
                    #expect(end.status != 0 && end.output.isEmpty)
                    for word in words + ["graft: error: rank \(rank): "] {
                        #expect(end.errors.contains(word), "\(word) is not in: \(end.errors)")
                    }
                }
                #expect(!FileManager.default.fileExists(atPath: folder("run")))
            }
            try await refused(["--lr", "0.02"], "rank 1", "learning_rate", "0.02", "0.01")
            try await refused(["--data", others], "rank 1", "digest of the data")
            try await refused(["--data", folder("none.jsonl")], "none.jsonl")
            try await refused(["--resume"], "rank 1", "goes on with a run", "begins one")
            try await graft(arguments, environment: ["WORLD_SIZE": "2", "RANK": "2"]).expectFailure(2, "RANK", "\"2\"")
        }
    }

    @Test func aLostProcessEndsTheOthersAndTheRunGoesOn() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = folder("run")
            let commands = try Self.start(2, Self.endlessRun(model, rows, run))
            try await Self.waitForSteps(4, in: run, of: commands)
            commands[1].send(SIGKILL)
            let end = try await commands[0].wait()
            _ = try await commands[1].wait()
            #expect(end.status == 1, "\(end.errors)")
            let last = try #require(try RunLayout(run).checkpoints().last)
            for words in ["rank 0: ", "rank 1 is gone", last.path, "graft train --resume --output \(run)"] {
                #expect(end.errors.contains(words), "\(words) is not in: \(end.errors)")
            }
            #expect(try Self.metrics(run).last?.step == last.step)

            // The checkpoint goes on in one process, and in two, as if nothing had happened.
            try FileManager.default.copyItem(atPath: run, toPath: folder("again"))
            let steps = ["--steps", "\(last.step + 4)"]
            let whole = try await graft(Self.endlessRun(model, rows, folder("whole")) + steps)
            #expect(whole.status == 0, "\(whole.errors)")
            let alone = try await graft(["train", "--resume", "--output", run] + steps)
            #expect(alone.status == 0, "\(alone.errors)")
            let two = try await Self.group(2, ["train", "--resume", "--output", folder("again")] + steps)
            #expect(two.map(\.status) == [0, 0], "\(two.map(\.errors))")
            try Self.expectSameCurves(folder("whole"), run)
            try Self.expectSameCurves(folder("whole"), folder("again"))
        }
    }

    @Test func withoutRankZeroTheLastCheckpointGoesOn() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = folder("run")
            let commands = try Self.start(3, Self.endlessRun(model, rows, run) + ["--save-every", "2"])
            try await Self.waitForSteps(5, in: run, of: commands)
            commands[0].send(SIGKILL)
            for (rank, command) in commands.enumerated() {
                let end = try await command.wait()
                guard rank > 0 else { continue }
                #expect(end.status == 1)
                for words in ["rank \(rank): ", "rank 0 is gone", RunLayout(run).checkpointsFolder, "--resume"] {
                    #expect(end.errors.contains(words), "\(words) is not in: \(end.errors)")
                }
            }
            let last = try #require(try RunLayout(run).checkpoints().last)
            let steps = ["--steps", "\(last.step + 3)"]
            let whole = try await graft(Self.endlessRun(model, rows, folder("whole")) + steps)
            #expect(whole.status == 0, "\(whole.errors)")
            let resumed = try await Self.group(2, ["train", "--resume", "--output", run] + steps)
            #expect(resumed.map(\.status) == [0, 0], "\(resumed.map(\.errors))")
            try Self.expectSameCurves(folder("whole"), run)
        }
    }

    @Test func aSignalToAnyProcessStopsAllAfterTheSameStep() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            let run = folder("run")
            let commands = try Self.start(2, Self.endlessRun(model, rows, run) + ["--json"])
            try await Self.waitForSteps(2, in: run, of: commands)
            commands[1].send(SIGTERM)
            var ends: [CommandResult] = []
            for command in commands { ends.append(try await command.wait()) }
            #expect(ends.map(\.status) == [130, 130], "\(ends.map(\.errors))")
            let steps = try #require(try ends[0].json()["steps"]?.int)
            #expect(try RunLayout(run).checkpoints().map(\.step) == [steps])
            #expect(try Self.metrics(run).last?.step == steps)
            #expect(ends[1].output.isEmpty && ends[1].errors.isEmpty)
        }
    }

    // MARK: Support

    /// A run that is over before its end only when something ends it; how many steps it took by then is not known, so
    /// that it learns slowly: differences of rounding grow with each large step.
    private static func endlessRun(_ model: String, _ rows: String, _ output: String) -> [String] {
        Fixtures.quickRun(model: model, rows: rows, output: output) + [
            "--schedule", "constant", "--steps", "1000000", "--accumulate", "2", "--lr", "0.0003",
        ]
    }

    /// Starts a command as every rank of a group.
    ///
    /// - Parameter second: Further arguments of rank 1.
    private static func start(
        _ size: Int, _ arguments: [String], second: [String] = []
    ) throws -> [RunningCommand] {
        let program = try RepositoryPaths.required(RepositoryPaths.graft)
        let port = try freePort()
        return try (0..<size).map { rank in
            try RunningCommand(
                program, arguments + (rank == 1 ? second : []),
                environment: [
                    "RANK": "\(rank)", "LOCAL_RANK": "\(rank)", "WORLD_SIZE": "\(size)", "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": "\(port)", "TORCH_CPP_LOG_LEVEL": "",
                ])
        }
    }

    private static func group(
        _ size: Int, _ arguments: [String], second: [String] = []
    ) async throws -> [CommandResult] {
        var ends: [CommandResult] = []
        for command in try start(size, arguments, second: second) { ends.append(try await command.wait()) }
        return ends
    }

    private static func metrics(_ run: String) throws -> [Metrics] {
        try MetricsLog.read(path: RunLayout(run).metrics)
    }

    private static func waitForSteps(_ count: Int, in run: String, of commands: [RunningCommand]) async throws {
        let deadline = Date().addingTimeInterval(300)
        while Date() < deadline, commands.allSatisfy(\.isRunning) {
            if let found = try? metrics(run), found.contains(where: { $0.step >= count }) { return }
            try await Task.sleep(for: .milliseconds(5))
        }
        Issue.record("the run took no \(count) steps: \(commands.map(\.errors))")
    }

    /// Every loss, held-out loss and norm of two runs is the same but for rounding.
    private static func expectSameCurves(_ expected: String, _ found: String) throws {
        let (expected, found) = (try metrics(expected), try metrics(found))
        #expect(expected.map(\.step) == found.map(\.step))
        func same(_ a: Double?, _ b: Double?, _ limit: Double) -> Bool {
            guard let a, let b else { return a == nil && b == nil }
            return abs(a - b) <= limit * max(1, abs(a))
        }
        for (a, b) in zip(expected, found) {
            #expect(same(a.loss, b.loss, 1e-5) && same(a.evalLoss, b.evalLoss, 1e-5), "step \(a.step): \(a) \(b)")
            #expect(same(a.gradNorm, b.gradNorm, 1e-4) && a.tokens == b.tokens, "step \(a.step): \(a) \(b)")
        }
    }
}
