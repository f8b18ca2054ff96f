/// The rows of a table in text, by RFC 4180: fields between commas (CSV) or tabs (TSV), the first row their names.
///
/// A field in quotation marks may hold the delimiter, line ends and doubled quotation marks; quotation marks inside a
/// field that does not begin with one are plain text. Rows end at `\r\n`, `\n` or `\r`; empty ones are skipped. The
/// value of a row is an object of strings.
struct DelimitedRows {
    let file: MappedFile
    let delimiter: UInt8

    /// Calls `body` with the line and the value of every row, or with what is wrong with it.
    ///
    /// - Throws: ``FormatError`` when the first row does not name the columns or a quotation mark is never closed, or
    ///   what `body` throws.
    func forEachLine(_ body: (Int, Result<JSON, FormatError>) throws -> Void) throws {
        var reader = try RecordReader(file: file, delimiter: delimiter)
        guard let header = try reader.next() else { return }
        let names = try columnNames(header)
        while let record = try reader.next() {
            try body(record.line, try asResult { try value(of: record, names) })
        }
    }

    private func columnNames(_ header: Record) throws -> [String] {
        let names = try fields(of: header).enumerated().map { index, name in
            name.isEmpty ? "column \(index + 1)" : name
        }
        if names.count == 1, let mark = names[0].unicodeScalars.first(where: { ";\t,".unicodeScalars.contains($0) }) {
            let advice =
                mark == "\t"
                ? "tabs: then call the file .tsv" : "\"\(mark)\": then write commas (.csv) or tabs (.tsv)"
            throw error(
                header.line,
                "the header has one column, \"\(shortened(names[0]))\"; are its columns separated by " + advice)
        }
        var seen = KeyedList<Bool>()
        for name in names where !seen.appendIfNew(key: name, value: true) {
            throw error(header.line, "the header has the column \"\(shortened(name))\" twice")
        }
        return names
    }

    private func value(of record: Record, _ names: [String]) throws -> JSON {
        let fields = try fields(of: record)
        guard fields.count == names.count else {
            throw error(
                record.line,
                "the row has \(fields.count) field\(fields.count == 1 ? "" : "s"), but the header has \(names.count); put "
                    + "fields with the delimiter or line ends inside in quotation marks")
        }
        var row = KeyedList<JSON>()
        for (name, field) in zip(names, fields) { row.appendIfNew(key: name, value: .string(field)) }
        return .object(row)
    }

    private func fields(of record: Record) throws -> [String] {
        if let problem = record.problem { throw error(record.line, problem) }
        return try record.fields.enumerated().map { index, bytes in
            guard let text = String(validating: bytes, as: UTF8.self) else {
                throw error(record.line, "field \(index + 1) is not text in UTF-8")
            }
            return text
        }
    }

    private func error(_ line: Int, _ message: String) -> FormatError {
        FormatError(file: file.path, place: .row(line), message)
    }
}

/// A row before its fields are text.
private struct Record {
    let line: Int
    var fields: [[UInt8]] = []
    var problem: String?
}

private struct RecordReader {
    private let file: MappedFile
    private let stream: ByteStream
    private let delimiter: UInt8
    private let quote = UInt8(ascii: "\"")
    private var size = 0

    init(file: MappedFile, delimiter: UInt8) throws {
        self.file = file
        self.delimiter = delimiter
        stream = try ByteStream(file)
    }

    /// The next row that is not empty.
    mutating func next() throws -> Record? {
        while let byte = try stream.peek(), byte == 0x0A || byte == 0x0D { _ = try stream.take() }
        guard try stream.peek() != nil else { return nil }
        var record = Record(line: stream.line)
        size = 0
        while true {
            record.fields.append(try field(&record))
            switch try stream.take() {
            case delimiter: continue
            case 0x0D: if try stream.peek() == 0x0A { _ = try stream.take() }
            default: break
            }
            return record
        }
    }

    /// Reads a field up to what ends it, which stays.
    private mutating func field(_ record: inout Record) throws -> [UInt8] {
        var bytes: [UInt8] = []
        let wasQuoted = try stream.peek() == quote
        if wasQuoted { try quoted(record, &bytes) }
        let length = bytes.count
        while let byte = try stream.peek(), byte != delimiter, byte != 0x0A, byte != 0x0D {
            try append(byte, record, &bytes)
        }
        if wasQuoted, bytes.count > length, record.problem == nil {
            record.problem =
                "field \(record.fields.count + 1) goes on after its closing quotation mark; double the quotation marks inside"
                + " a field"
        }
        return bytes
    }

    private mutating func quoted(_ record: Record, _ bytes: inout [UInt8]) throws {
        _ = try stream.take()
        while let byte = try stream.peek() {
            if byte == quote {
                _ = try stream.take()
                guard try stream.peek() == quote else { return }
            }
            try append(byte, record, &bytes)
        }
        throw FormatError(
            file: file.path, place: .row(record.line),
            "the file ends inside a field in quotation marks of the row that begins here")
    }

    /// Takes a byte over into the field.
    private mutating func append(_ byte: UInt8, _ record: Record, _ bytes: inout [UInt8]) throws {
        _ = try stream.take()
        bytes.append(byte)
        size += 1
        if size > ByteStream.rowLimit { throw stream.tooLong(record.line) }
    }
}
