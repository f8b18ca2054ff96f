import Foundation
import Graft
import TestSupport
import Testing

/// A run that is killed again and again ends as if nothing had happened.
@Suite struct KillTests {
    private static let kills = 20
    private static let steps = 90

    /// When a process is killed, after it has gone on for some steps.
    private enum Moment: CaseIterable {
        /// At any time of a step.
        case anyTime
        /// While a checkpoint is being written: its temporary folder is there.
        case whileWriting
        /// Before the first step: while the model is loaded or the checkpoint read.
        case startingUp
    }

    @Test("kill -9 + resume bit-equal")
    func killedAtRandomMomentsARunEndsBitEqual() async throws {
        let model = try await Fixtures.model()
        try await withTemporaryFolder { folder in
            let rows = try Fixtures.rows(folder)
            func arguments(_ name: String) -> [String] {
                Fixtures.quickRun(model: model, rows: rows, output: folder(name)) + [
                    "--steps", "\(Self.steps)", "--accumulate", "2", "--save-every", "1", "--set", "lora_dropout=0.1",
                    "--eval-data", rows, "--eval-every", "7",
                ]
            }
            let whole = try await graft(arguments("whole"))
            #expect(whole.status == 0, "\(whole.errors)")

            let seed = UInt64.random(in: 0...(.max))
            var generator = SeededGenerator(seed: seed)
            var killed = 0
            var torn = 0
            var outrun = 0
            while killed < Self.kills {
                let layout = RunLayout(folder("killed"))
                let resumes = PathKind(layout.recipe) == .file
                let begin = try newestStep(layout)
                guard begin < Self.steps - 3 else { break }
                let command = try RunningCommand(
                    RepositoryPaths.required(RepositoryPaths.graft), arguments("killed") + (resumes ? ["--resume"] : [])
                )
                try await waitAndKill(command, layout, after: begin, &generator)
                let end = try await command.wait()
                if end.status == 0, outrun < 5 {
                    // On a busy machine a run can end before the signal comes: a new one takes the kills that are left.
                    outrun += 1
                    try FileManager.default.removeItem(atPath: layout.path)
                    continue
                }
                // 137: by the signal. Anything else is a run that could not go on.
                #expect(end.status == 137, "\(end.errors)")
                guard end.status == 137 else { return }
                killed += 1
                torn += try temporaryNames(layout).count
            }
            #expect(killed == Self.kills, "seed \(seed)")
            let last = try await graft(arguments("killed") + ["--resume"])
            #expect(last.status == 0, "seed \(seed): \(last.errors)")

            #expect(try curves(folder("killed")) == curves(folder("whole")), "seed \(seed)")
            for place in ["adapter", "best"] {
                let files = try ["whole", "killed"].map {
                    try Data(contentsOf: URL(fileURLWithPath: folder("\($0)/\(place)/adapter_model.safetensors")))
                }
                #expect(files[0] == files[1], "\(place), seed \(seed)")
            }
            // Nothing half-written is left, however many half-written folders there were.
            #expect(try temporaryNames(RunLayout(folder("killed"))).isEmpty, "\(torn) were torn")
        }
    }

    /// Waits until a moment drawn at random, and kills the process.
    private func waitAndKill(
        _ command: RunningCommand, _ layout: RunLayout, after begin: Int, _ generator: inout SeededGenerator
    ) async throws {
        let moment = Moment.allCases.randomElement(using: &generator) ?? .anyTime
        let target = begin + Int.random(in: 1...4, using: &generator)
        let delay = Int.random(in: 0...20, using: &generator)
        let deadline = Date().addingTimeInterval(300)
        func poll(until isReached: () throws -> Bool) async throws {
            while try !isReached(), command.isRunning, Date() < deadline {
                try await Task.sleep(for: .microseconds(200))
            }
        }
        switch moment {
        case .anyTime:
            try await poll { try newestStep(layout) >= target }
            try await Task.sleep(for: .milliseconds(delay))
        case .whileWriting:
            try await poll { try newestStep(layout) >= target }
            try await poll { try !temporaryNames(layout).isEmpty }
        case .startingUp:
            try await Task.sleep(for: .milliseconds(20 * delay))
        }
        command.send(SIGKILL)
    }

    private func newestStep(_ layout: RunLayout) throws -> Int {
        // The folder may be moved while it is listed.
        ((try? layout.checkpoints()) ?? []).last?.step ?? 0
    }

    /// The names of what is half-written or half-removed in a run folder.
    private func temporaryNames(_ layout: RunLayout) throws -> [String] {
        [layout.path, layout.checkpointsFolder].flatMap { folder in
            ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).filter {
                $0.contains(".tmp-") || $0.contains(".old-")
            }
        }
    }

    /// All that was measured, times apart.
    private func curves(_ run: String) throws -> [[Double?]] {
        try MetricsLog.read(path: RunLayout(run).metrics).map {
            [
                Double($0.step), $0.epoch, $0.loss, $0.evalLoss, $0.learningRate, $0.gradNorm,
                $0.tokens.map(Double.init),
            ]
        }
    }
}
