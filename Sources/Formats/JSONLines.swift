/// The rows of a JSON Lines file: one JSON value a line, blank lines skipped.
///
/// The file is mapped and its rows are parsed one by one as they are asked for; one that is gzip'd is unpacked on the
/// way. A byte order mark at the beginning and `\r\n` line ends are accepted.
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

    /// The rows of a file that is open.
    init(file: MappedFile) {
        self.file = file
    }

    /// Calls `body` with every row in order.
    ///
    /// - Throws: ``FormatError`` with file and line of the first row that is no JSON, or what `body` throws.
    public func forEach(_ body: (Row) throws -> Void) throws {
        try forEachLine { try body(Row(line: $0, value: $1.get())) }
    }

    /// Calls `body` with the line and the value of every row, or with what is wrong with it.
    func forEachLine(_ body: (Int, Result<JSON, FormatError>) throws -> Void) throws {
        let stream = try ByteStream(file)
        var isAtEnd = false
        while !isAtEnd {
            let (line, offset) = (stream.line, stream.offset)
            let value: Result<JSON, FormatError>?? = try stream.withNextLine { text in
                if text.allSatisfy({ $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }) { return nil }
                return try asResult {
                    try JSON.parse(text, file: file.path, firstLine: line, firstOffset: offset)
                }
            }
            isAtEnd = value == nil
            if case .some(.some(let value)) = value { try body(line, value) }
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

/// What a reader of one row returns or finds wrong; other errors are passed on.
func asResult<Value>(_ body: () throws -> Value) throws -> Result<Value, FormatError> {
    do {
        return .success(try body())
    } catch let error as FormatError {
        return .failure(error)
    }
}
