import Foundation
import Graft

/// Trains a trial of a comparison in a process of its own, so that its peak of memory is its own and a crash ends no
/// more than the trial.
struct TrialProcess {
    /// The path of this program.
    let program: String

    /// Trains by a recipe.
    ///
    /// - Returns: What `graft train --json` prints.
    /// - Throws: `ComparisonInterrupted` when the user ended it; `TrainingError` with the sentence that it ended with.
    func train(_ recipe: Recipe, in folder: String) throws -> JSON {
        let file = folder + ".yaml"
        try AtomicFile.write(recipe.yaml(), to: file)
        defer { try? FileManager.default.removeItem(atPath: file) }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = ["train", "--recipe", file, "--output", folder, "--json"]
        let errors = folder + ".err"
        _ = FileManager.default.createFile(atPath: errors, contents: nil)
        defer { try? FileManager.default.removeItem(atPath: errors) }
        let output = Pipe()
        process.standardOutput = output
        // To a file: a full pipe would stop the process.
        process.standardError = FileHandle(forWritingAtPath: errors)
        process.standardInput = FileHandle.nullDevice
        do {
            try process.run()
        } catch {
            throw TrainingError("\(program) cannot be started: \(error.localizedDescription)")
        }
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        if process.terminationStatus == ExitStatus.interrupted { throw ComparisonInterrupted() }
        guard process.terminationStatus == 0, let result = try? JSON.parse(data) else {
            let lines = (try? String(contentsOfFile: errors, encoding: .utf8))?.split(separator: "\n") ?? []
            throw TrainingError(lines.last.map(String.init) ?? "ended with status \(process.terminationStatus)")
        }
        return result
    }
}
