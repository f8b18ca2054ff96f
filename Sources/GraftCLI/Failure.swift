import ArgumentParser
import Graft

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// What the program's end says about its work.
enum ExitStatus {
    /// The work failed for a reason that is not in what was given.
    static let failed: Int32 = 1
    /// A model, adapter, data file, recipe or setting cannot be used.
    static let badInput: Int32 = 2
    /// A file or folder cannot be written (`EX_IOERR` of sysexits.h).
    static let cannotWrite: Int32 = 74
    /// As a shell reports Ctrl-C.
    static let interrupted: Int32 = 128 + SIGINT
    /// As a shell reports a program whose reader has gone.
    static let closedPipe: Int32 = 128 + SIGPIPE
}

/// Turns an error into what the user reads and the exit code that scripts read.
enum Failure {
    /// Ends the program: help and versions on standard output, errors as one sentence on standard error.
    static func exit(with error: any Error) -> Never {
        if let status = status(of: error) {
            if status != ExitStatus.closedPipe { Output.note("graft: error: \(speaker)\(sentence(error))") }
            leave(status)
        }
        // The rest is ArgumentParser's: requests for help, wrong command lines, bare exit codes.
        let code = GraftCommand.exitCode(for: error)
        let text = GraftCommand.fullMessage(for: error)
        if code == .success {
            if !text.isEmpty { try? Output.write(text + "\n") }
        } else if !text.isEmpty {
            let message = text.hasPrefix("Error: ") ? String(text.dropFirst(7)) : text
            Output.note("graft: error: " + message)
        }
        leave(code.rawValue)
    }

    /// The exit code of an error of Graft's own; nil for ArgumentParser's.
    private static func status(of error: any Error) -> Int32? {
        switch error {
        case OutputError.closed: ExitStatus.closedPipe
        case is OutputError: ExitStatus.cannotWrite
        case let error as FormatError: error.isWriteFailure ? ExitStatus.cannotWrite : ExitStatus.badInput
        case is ModelError, is TokenizerError, is TemplateError, is PEFTError, is RunFolderError, is ScheduleError:
            ExitStatus.badInput
        case is InputError, is TrainingError: ExitStatus.badInput
        case let error as ProcessGroupError: error.isOfLaunch ? ExitStatus.badInput : ExitStatus.failed
        case is ExitCode, is CleanExit, is ValidationError: nil
        case is TorchError, is TrainingFailure: ExitStatus.failed
        case is ComparisonInterrupted: ExitStatus.interrupted
        default: GraftCommand.exitCode(for: error) == .failure ? ExitStatus.failed : nil
        }
    }

    /// Which of several processes speaks.
    private static var speaker: String {
        ((try? LaunchEnvironment.current()) ?? nil).map { "rank \($0.rank): " } ?? ""
    }

    /// Errors are one line, whatever a file's own text in them holds.
    private static func sentence(_ error: any Error) -> String {
        "\(error)".split(whereSeparator: \.isNewline).joined(separator: " ")
    }

    /// Without the destructors of LibTorch, which has threads of its own.
    private static func leave(_ status: Int32) -> Never {
        fflush(nil)
        _exit(status)
    }
}

/// What the user gave cannot be used, in one sentence.
struct InputError: Error, CustomStringConvertible {
    /// The sentence.
    let description: String

    /// Makes an error from a sentence.
    init(_ description: String) {
        self.description = description
    }
}
