import Dispatch
import Formats
import Foundation

/// The Python process that computes what the reference libraries do; one serves the whole test run.
///
/// An operation is a function of a module in `Tests/Oracle`: `models.logits` is `logits` in `models_oracle.py`.
/// Large tensors travel in safetensors files that the arguments name.
public actor Oracle {
    /// The process of this test run.
    public static let shared = Oracle()

    private var process: Process?
    private var input: FileHandle?
    private var log = ""
    private var nextIdentifier = 1
    private var waiting: [Int: CheckedContinuation<JSON, any Error>] = [:]

    /// Runs an operation and returns its result.
    ///
    /// - Throws: `OracleError` with Python's trace back, or with advice when the process cannot run.
    public func call(_ operation: String, _ arguments: KeyedList<JSON> = [:]) async throws -> JSON {
        let input = try started()
        let identifier = nextIdentifier
        nextIdentifier += 1
        var request = arguments
        request["id"] = JSON(identifier)
        request["op"] = JSON(operation)
        let line = Data((JSON.object(request).compact + "\n").utf8)
        return try await withCheckedThrowingContinuation { continuation in
            waiting[identifier] = continuation
            do {
                try input.write(contentsOf: line)
            } catch {
                waiting.removeValue(forKey: identifier)?.resume(throwing: ended())
            }
        }
    }

    /// The standard input of the process, which is started first if need be.
    private func started() throws -> FileHandle {
        if let input { return input }
        guard FileManager.default.isExecutableFile(atPath: RepositoryPaths.oraclePython) else {
            throw OracleError("the tests' Python is missing (\(RepositoryPaths.oraclePython)): run 'make oracle'")
        }
        // Writing to a process that has ended must be an error, not the end of the test run.
        signal(SIGPIPE, SIG_IGN)
        let requests = Pipe()
        let answers = Pipe()
        log = try TemporaryFolder.lasting("oracle").write("", to: "stderr.txt")

        let process = Process()
        process.executableURL = URL(fileURLWithPath: RepositoryPaths.oraclePython)
        process.arguments = [RepositoryPaths.oracleModules + "/server.py"]
        process.standardInput = requests
        process.standardOutput = answers
        process.standardError = FileHandle(forWritingAtPath: log)
        do {
            try process.run()
        } catch {
            throw OracleError("the tests' Python cannot be started (\(error)): run 'make oracle'")
        }
        self.process = process
        input = requests.fileHandleForWriting
        listen(to: answers.fileHandleForReading)
        return requests.fileHandleForWriting
    }

    /// Hands each line of the process to `receive`; a thread of its own waits, so that no task is held up.
    private nonisolated func listen(to answers: FileHandle) {
        Thread.detachNewThread {
            var buffer = Data()
            // Long answers come in many parts: each is searched once.
            var searched = 0
            while case let chunk = answers.availableData, !chunk.isEmpty {
                buffer.append(chunk)
                while let end = buffer[(buffer.startIndex + searched)...].firstIndex(of: 0x0A) {
                    let line = Data(buffer[buffer.startIndex..<end])
                    buffer = Data(buffer[buffer.index(after: end)...])
                    searched = 0
                    Task { await self.receive(line) }
                }
                searched = buffer.count
            }
            Task { await self.failWaiting() }
        }
    }

    private func receive(_ line: Data) {
        do {
            let answer = try JSON.parse(line)
            guard let identifier = answer["id"]?.int, let continuation = waiting.removeValue(forKey: identifier) else {
                return
            }
            if let result = answer["ok"] {
                continuation.resume(returning: result)
            } else {
                continuation.resume(throwing: OracleError(answer["error"]?.string ?? "no reason was given"))
            }
        } catch {
            failWaiting(OracleError("the oracle answered with something that is not JSON: \(error)"))
        }
    }

    private func failWaiting(_ error: OracleError? = nil) {
        let failure = error ?? ended()
        for continuation in waiting.values { continuation.resume(throwing: failure) }
        waiting = [:]
        process = nil
        input = nil
    }

    private func ended() -> OracleError {
        let lines = ((try? String(contentsOfFile: log, encoding: .utf8)) ?? "").split(separator: "\n")
        let tail = lines.suffix(12).joined(separator: "\n")
        return OracleError("the oracle's process ended; it last wrote:\n\(tail)")
    }
}

/// What the oracle reports when an operation fails: Python's trace back, or why there is no process.
public struct OracleError: Error, CustomStringConvertible {
    /// The report.
    public let description: String

    init(_ description: String) { self.description = description }
}

extension JSON {
    /// Lists of token ids.
    public init(tokens: [[Int]]) { self = .array(tokens.map { .array($0.map { JSON($0) }) }) }
}
