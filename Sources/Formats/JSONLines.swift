/// The rows of a JSON Lines file: one JSON value a line, blank lines skipped.
///
/// The file is mapped and its rows are parsed one by one as they are asked for. A byte order mark at the beginning
/// and `\r\n` line ends are accepted.
public struct JSONLines: Sendable {
    /// One row.
    public struct Row: Sendable {
        /// Its line in the file, from 1.
        public let line: Int
        /// Its value.
        public let value: JSON
    }

    /// The mapping.
    public let file: MappedFile

    /// Opens a file.
    ///
    /// - Throws: ``FormatError`` when it is missing, empty or not readable.
    public init(path: String) throws {
        file = try MappedFile(path: path)
    }

    /// Calls `body` with every row in order.
    ///
    /// - Throws: ``FormatError`` with file and line of the first row that is no JSON, or what `body` throws.
    public func forEach(_ body: (Row) throws -> Void) throws {
        try withExtendedLifetime(file) {
            let bytes = UnsafeRawBufferPointer(file.bytes)
            var start = bytes.starts(with: [0xEF, 0xBB, 0xBF]) ? 3 : 0
            var line = 1
            while start < bytes.count {
                let end = bytes[start...].firstIndex(of: 0x0A) ?? bytes.count
                let text = UnsafeRawBufferPointer(rebasing: bytes[start..<end])
                if !text.allSatisfy({ $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }) {
                    let value = try JSON.parse(text, file: file.path, firstLine: line, firstOffset: start)
                    try body(Row(line: line, value: value))
                }
                start = end + 1
                line += 1
            }
        }
    }

    /// All rows.
    ///
    /// - Throws: ``FormatError`` with file and line of the first row that is no JSON.
    public func rows() throws -> [Row] {
        var result: [Row] = []
        try forEach { result.append($0) }
        return result
    }

    /// An error about a row, naming file and line.
    public func error(_ message: String, in row: Row) -> FormatError {
        FormatError(file: file.path, place: .row(row.line), message)
    }
}
