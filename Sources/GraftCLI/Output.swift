import Graft

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Where a verb writes: results to standard output, all else to standard error.
enum Output {
    /// Writes a part of the result, at once.
    ///
    /// - Throws: `OutputError` when standard output does not take it.
    static func write(_ text: String) throws {
        try write(Array(text.utf8), to: STDOUT_FILENO)
    }

    /// Writes a result as a JSON document, for people to read too.
    ///
    /// - Throws: `OutputError` when standard output does not take it.
    static func write(_ json: JSON) throws {
        try write(finite(json).pythonText(ensureASCII: false) + "\n")
    }

    /// Writes a line to standard error; a closed or full one must not stop a run.
    static func note(_ line: String) {
        try? write(Array((line + "\n").utf8), to: STDERR_FILENO)
    }

    /// Whether standard output is a terminal that shows colours.
    static var hasColour: Bool {
        let isWanted = getenv("NO_COLOR").map { $0.pointee == 0 } ?? true
        let isDumb = getenv("TERM").map { String(cString: $0) == "dumb" } ?? true
        return isatty(STDOUT_FILENO) == 1 && isWanted && !isDumb
    }

    /// Whether somebody watches standard error.
    static var isInteractive: Bool { isatty(STDERR_FILENO) == 1 }

    private static func write(_ bytes: [UInt8], to descriptor: Int32) throws {
        var written = 0
        while written < bytes.count {
            let count = retrying {
                bytes[written...].withUnsafeBytes { systemWrite(descriptor, $0.baseAddress, $0.count) }
            }
            guard count > 0 else { throw errno == EPIPE ? OutputError.closed : OutputError.failed(lastSystemError()) }
            written += count
        }
    }

    /// JSON has no sign for numbers that are not finite: they become null.
    private static func finite(_ json: JSON) -> JSON {
        switch json {
        case .number(let value) where !value.isFinite: return .null
        case .array(let items): return .array(items.map(finite))
        case .object(let pairs):
            var result = KeyedList<JSON>()
            for (key, value) in pairs { result.appendIfNew(key: key, value: finite(value)) }
            return .object(result)
        default: return json
        }
    }
}

/// Standard output does not take a result.
enum OutputError: Error, CustomStringConvertible {
    /// Its reader has gone, as in `graft tokenize ... | head`.
    case closed
    /// The system's reason.
    case failed(String)

    /// One sentence.
    var description: String {
        switch self {
        case .closed: "the reader of standard output has gone"
        case .failed(let reason): "standard output cannot be written: \(reason)"
        }
    }
}

/// The system's call, whose name `Output` uses itself.
private func systemWrite(_ descriptor: Int32, _ bytes: UnsafeRawPointer?, _ count: Int) -> Int {
    write(descriptor, bytes, count)
}

/// Names and values, a pair a line, the values in one column.
func aligned(_ facts: [(name: String, value: String)]) -> String {
    let width = facts.map(\.name.count).max() ?? 0
    return facts.map { name, value in
        value.isEmpty ? name + "\n" : name + String(repeating: " ", count: width - name.count) + "  " + value + "\n"
    }.joined()
}
