/// A file of rows in any of the formats that data come in, read one row at a time.
///
/// The file may be larger than memory, and gzip'd in each of the formats. One row has at most 16 MiB.
public struct RowFile: Sendable {
    /// How the rows are written.
    public enum Format: String, Sendable, CaseIterable {
        /// One JSON value a line.
        case jsonl
        /// An array of rows, or an object with one array.
        case json
        /// Fields between commas, names in the first row.
        case csv
        /// Fields between tabs, names in the first row.
        case tsv
    }

    /// One row.
    public struct Row: Sendable {
        /// The line on which it begins, from 1.
        public let line: Int
        /// Its value, an object of strings in CSV and TSV; or what is wrong with it.
        public let value: Result<JSON, FormatError>
    }

    /// The mapping.
    public let file: MappedFile
    /// How the rows are written.
    public let format: Format
    /// Whether the file is gzip'd.
    public let isPacked: Bool

    /// The file's path.
    public var path: String { file.path }

    /// Opens a file and finds out its format: by its name where that ends in `.jsonl`, `.ndjson`, `.csv` or `.tsv`
    /// (each also with `.gz`), else by its first characters.
    ///
    /// - Throws: ``FormatError`` when the file is missing, empty, not readable or of an unknown format.
    public init(path: String) throws {
        let file = try MappedFile(path: path)
        self.file = file
        isPacked = GzipStream.isGzip(file)
        format = try withExtendedLifetime(file) { try Self.format(of: file) }
    }

    /// Calls `body` with every row in order, also with those that cannot be read.
    ///
    /// - Throws: ``FormatError`` where the rest of the file cannot be read, or what `body` throws.
    public func forEach(_ body: (Row) throws -> Void) throws {
        func pass(_ line: Int, _ value: Result<JSON, FormatError>) throws {
            try body(Row(line: line, value: value))
        }
        try withExtendedLifetime(file) {
            switch format {
            case .jsonl: try JSONLines(file: file).forEachLine(pass)
            case .json: try JSONRows(file: file).forEachLine(pass)
            case .csv: try DelimitedRows(file: file, delimiter: UInt8(ascii: ",")).forEachLine(pass)
            case .tsv: try DelimitedRows(file: file, delimiter: UInt8(ascii: "\t")).forEachLine(pass)
            }
        }
    }

    /// An error about a row, naming file and line.
    public func error(_ message: String, line: Int) -> FormatError {
        FormatError(file: path, place: .row(line), message)
    }

    // MARK: Formats

    private static func format(of file: MappedFile) throws -> Format {
        var name = file.path.lowercased()[...]
        if name.hasSuffix(".gz") {
            name = name.dropLast(3)
            guard GzipStream.isGzip(file) else {
                throw FormatError(file: file.path, "the name ends in .gz, but the content is not gzip")
            }
        }
        if let stranger = stranger(file) { throw FormatError(file: file.path, stranger) }
        switch name.split(separator: ".").last {
        case "jsonl", "ndjson": return .jsonl
        case "csv": return .csv
        case "tsv", "tab": return .tsv
        default: return try formatByContent(file)
        }
    }

    /// What is said of files in formats that people mistake for text.
    private static func stranger(_ file: MappedFile) -> String? {
        let advice = "expected JSONL, JSON, CSV or TSV, each also gzip'd"
        let known: [(magic: [UInt8], name: String)] = [
            (Array("PAR1".utf8), "a Parquet file"), (Array("ARROW1".utf8), "an Arrow file"),
            (Array("PK\u{3}\u{4}".utf8), "a zip archive"), ([0x28, 0xB5, 0x2F, 0xFD], "packed by zstd"),
            ([0xFD] + Array("7zXZ".utf8), "packed by xz"), (Array("BZh".utf8), "packed by bzip2"),
            ([0xFF, 0xFE], "text in UTF-16"), ([0xFE, 0xFF], "text in UTF-16"),
            (Array("GGUF".utf8), "a GGUF model"),
        ]
        guard let found = known.first(where: { file.bytes.starts(with: $0.magic) }) else { return nil }
        return "this is \(found.name); \(advice)" + (found.magic.first ?? 0 >= 0xFE ? " and in UTF-8" : "")
    }

    private static func formatByContent(_ file: MappedFile) throws -> Format {
        let stream = try ByteStream(file)
        try stream.skipSpace()
        switch try stream.peek() {
        case UInt8(ascii: "["): return .json
        case UInt8(ascii: "{"): return try isLines(stream) ? .jsonl : .json
        case nil: return .jsonl
        default:
            throw FormatError(
                file: file.path,
                "the format of this file is unknown: expected JSONL or JSON, or a name that ends in .csv or .tsv (each "
                    + "also with .gz)")
        }
    }

    /// Whether an object is the first of several, one a line, or a row of its own; else it holds an array of rows.
    private static func isLines(_ stream: ByteStream) throws -> Bool {
        let first: JSON?? = try? stream.withNextLine { try? JSON.parse($0) }
        guard case .some(.some(let object)) = first else { return false }
        try stream.skipSpace()
        if try stream.peek() != nil { return true }
        return object.object?.contains { $0.value.array != nil && !JSONRows.conversationKeys.contains($0.key) } != true
    }
}
