import Dispatch
import Foundation

/// What a command left behind.
public struct CommandResult: Sendable {
    /// The exit status; 128 + the signal's number when a signal ended it.
    public let status: Int32
    /// Everything written to standard output.
    public let output: String
    /// Everything written to standard error.
    public let errors: String
    /// Wall time from start to end.
    public let seconds: Double
}

/// A command that took longer than it was given.
public struct CommandTimeout: Error, CustomStringConvertible {
    /// The command, its limit and what it had written.
    public let description: String
}

/// A command that is running; its output goes to files, so that it never waits for a reader.
public final class RunningCommand: Sendable {
    private let process: Process
    private let line: String
    private let files: TemporaryFolder
    private let start = DispatchTime.now()
    private let end: Task<Double, Never>

    /// Starts a program; `arguments` do not pass through a shell.
    ///
    /// - Parameters:
    ///   - environment: variables that are set beside the present ones; an empty value unsets.
    ///   - input: its standard input, which is empty when none is given.
    public init(
        _ program: String, _ arguments: [String], environment: [String: String] = [:], input: String = "",
        folder: String? = nil
    ) throws {
        files = try TemporaryFolder.lasting("command")
        line = ([program] + arguments).joined(separator: " ")
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        if let folder { process.currentDirectoryURL = URL(fileURLWithPath: folder) }
        var variables = ProcessInfo.processInfo.environment
        for (name, value) in environment { variables[name] = value.isEmpty ? nil : value }
        process.environment = variables
        let handles = [
            FileHandle(forReadingAtPath: try files.write(input, to: "in")),
            FileHandle(forWritingAtPath: try files.write("", to: "out")),
            FileHandle(forWritingAtPath: try files.write("", to: "err")),
        ]
        (process.standardInput, process.standardOutput, process.standardError) = (handles[0], handles[1], handles[2])
        // The program has its own; `Process` would keep these, and hundreds of commands pass the usual limit.
        defer { for handle in handles { try? handle?.close() } }

        let (stream, continuation) = AsyncStream.makeStream(of: Double.self)
        let began = start
        process.terminationHandler = { _ in
            let nanoseconds = DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds
            continuation.yield(Double(nanoseconds) / 1e9)
            continuation.finish()
        }
        end = Task {
            for await seconds in stream { return seconds }
            return 0
        }
        self.process = process
        try withSignalsUnblocked { try process.run() }
    }

    /// A program starts with the signal mask of the thread that starts it, and the threads that run tasks block
    /// nearly all signals: SIGTERM would not reach the program.
    private func withSignalsUnblocked(_ body: () throws -> Void) throws {
        var none = sigset_t()
        var before = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        try body()
    }

    /// Sends a signal.
    public func send(_ signal: Int32) { kill(process.processIdentifier, signal) }

    /// Whether it has not ended yet.
    public var isRunning: Bool { process.isRunning }

    /// What it has written to standard output so far.
    public var output: String { (try? String(contentsOfFile: files("out"), encoding: .utf8)) ?? "" }

    /// What it has written to standard error so far.
    public var errors: String { (try? String(contentsOfFile: files("err"), encoding: .utf8)) ?? "" }

    /// Waits for the end.
    ///
    /// - Throws: `CommandTimeout` when the command runs longer than `timeout` seconds; it is killed then.
    public func wait(timeout: Double = 300) async throws -> CommandResult {
        let watch = Task {
            try await Task.sleep(for: .seconds(timeout))
            send(SIGKILL)
        }
        let seconds = await end.value
        watch.cancel()
        defer { try? FileManager.default.removeItem(atPath: files.path) }
        if seconds >= timeout {
            let written = "\(output.suffix(2000))\n\(errors.suffix(2000))"
            throw CommandTimeout(description: "'\(line)' took over \(timeout) s; it wrote:\n\(written)")
        }
        let signalled = process.terminationReason == .uncaughtSignal
        let status = signalled ? 128 + process.terminationStatus : process.terminationStatus
        return CommandResult(status: status, output: output, errors: errors, seconds: seconds)
    }
}

/// Runs the built `graft` program to its end.
///
/// - Throws: `MissingFile` when it is not built, `CommandTimeout` when it runs longer than `timeout` seconds.
public func graft(
    _ arguments: String..., environment: [String: String] = [:], input: String = "", folder: String? = nil,
    timeout: Double = 300
) async throws -> CommandResult {
    try await graft(arguments, environment: environment, input: input, folder: folder, timeout: timeout)
}

/// As the form with single arguments.
public func graft(
    _ arguments: [String], environment: [String: String] = [:], input: String = "", folder: String? = nil,
    timeout: Double = 300
) async throws -> CommandResult {
    let program = try RepositoryPaths.required(RepositoryPaths.graft)
    let command = try RunningCommand(program, arguments, environment: environment, input: input, folder: folder)
    return try await command.wait(timeout: timeout)
}
