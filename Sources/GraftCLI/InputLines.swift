import Graft

// The C library's standard input is a variable; nothing here changes it.
#if canImport(Glibc)
@preconcurrency import Glibc
#elseif canImport(Musl)
@preconcurrency import Musl
#else
@preconcurrency import Darwin
#endif

/// The lines of standard input.
enum InputLines {
    /// Whether somebody types them.
    static var isInteractive: Bool { isatty(STDIN_FILENO) == 1 }

    /// The next line without its line feed, or nil at the end.
    ///
    /// A carriage return stays: it belongs to the line.
    ///
    /// - Parameter number: The line's number, for the error.
    /// - Throws: `InputError` when the line is not UTF-8.
    static func next(number: Int) throws -> String? {
        var memory: UnsafeMutablePointer<CChar>?
        var capacity = 0
        let count = getline(&memory, &capacity, stdin)
        defer { free(memory) }
        guard count >= 0, let memory else { return nil }
        var bytes = UnsafeRawBufferPointer(start: memory, count: count)[...]
        if bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
        guard let line = String(validating: bytes, as: UTF8.self) else {
            throw InputError("standard input, line \(number): this is not text in UTF-8; convert it first")
        }
        return line
    }
}
