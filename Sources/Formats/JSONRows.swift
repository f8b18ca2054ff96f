/// The rows of a JSON file: the elements of its array, or of the one array in its object.
///
/// The file is read from front to back and one element is held at a time, so that it may be larger than memory.
struct JSONRows {
    /// Keys whose array is a conversation, and so a part of a row.
    static let conversationKeys: Set = ["messages", "conversations"]

    let file: MappedFile

    /// Calls `body` with the line and the value of every row, or with what is wrong with it.
    ///
    /// - Throws: ``FormatError`` where the file is not JSON beyond a row, or what `body` throws.
    func forEachLine(_ body: (Int, Result<JSON, FormatError>) throws -> Void) throws {
        var reader = try Reader(file: file, stream: ByteStream(file))
        try reader.stream.skipSpace()
        switch try reader.stream.peek() {
        case UInt8(ascii: "["): try reader.array(body)
        case UInt8(ascii: "{"): try reader.object(body)
        default: throw reader.error("expected an array of rows, or an object with one")
        }
        try reader.stream.skipSpace()
        guard try reader.stream.peek() == nil else {
            throw reader.error(
                "the file goes on after the end of its JSON value; a file with one value a line is called .jsonl")
        }
    }
}

private struct Reader {
    let file: MappedFile
    let stream: ByteStream
    /// The element that is being read.
    private var bytes: [UInt8] = []

    init(file: MappedFile, stream: ByteStream) throws {
        self.file = file
        self.stream = stream
    }

    mutating func array(_ body: (Int, Result<JSON, FormatError>) throws -> Void) throws {
        _ = try stream.take()
        try stream.skipSpace()
        if try take("]") { return }
        while true {
            let (line, value) = try element()
            try body(line, value)
            if try take("]") { return }
            guard try take(",") else { throw error("expected \",\" or \"]\" after a row of the array") }
        }
    }

    mutating func object(_ body: (Int, Result<JSON, FormatError>) throws -> Void) throws {
        _ = try stream.take()
        var name: String?
        try stream.skipSpace()
        if try !take("}") {
            while true {
                guard try stream.peek() == UInt8(ascii: "\""), let key = try element().1.get().string else {
                    throw error("expected a key in quotation marks")
                }
                guard try take(":") else { throw error("expected \":\" after the key \"\(shortened(key))\"") }
                try stream.skipSpace()
                if try stream.peek() == UInt8(ascii: "["), !JSONRows.conversationKeys.contains(key) {
                    if let name {
                        throw error(
                            "the object has two arrays, \"\(shortened(name))\" and \"\(shortened(key))\"; leave only the "
                                + "rows in the file")
                    }
                    name = key
                    try array(body)
                } else {
                    _ = try element().1.get()
                }
                if try take("}") { break }
                guard try take(",") else { throw error("expected \",\" or \"}\" in the object") }
                try stream.skipSpace()
            }
        }
        if name == nil { throw error("the object holds no array of rows") }
    }

    /// Reads one value, whose end is where its brackets and quotation marks close.
    private mutating func element() throws -> (Int, Result<JSON, FormatError>) {
        try stream.skipSpace()
        let (line, offset) = (stream.line, stream.offset)
        bytes.removeAll(keepingCapacity: true)
        var (depth, isInString, isEscaped) = (0, false, false)
        scan: while let byte = try stream.peek() {
            let wasInside = depth > 0 || isInString
            if isInString {
                if isEscaped {
                    isEscaped = false
                } else if byte == UInt8(ascii: "\\") {
                    isEscaped = true
                } else if byte == UInt8(ascii: "\"") {
                    isInString = false
                }
            } else {
                switch byte {
                case UInt8(ascii: "\""): isInString = true
                case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
                case UInt8(ascii: "}"), UInt8(ascii: "]"):
                    if depth == 0 { break scan }
                    depth -= 1
                case UInt8(ascii: ","), UInt8(ascii: ":"), 0x20, 0x09, 0x0A, 0x0D:
                    if depth == 0 { break scan }
                default: break
                }
            }
            bytes.append(byte)
            _ = try stream.take()
            if bytes.count > ByteStream.rowLimit { throw stream.tooLong(line) }
            if wasInside, depth == 0, !isInString { break }
        }
        if depth > 0 || isInString {
            throw FormatError(
                file: file.path, place: .row(line),
                "the file ends inside the value that begins here; it may be truncated")
        }
        let value = try bytes.withUnsafeBytes { bytes in
            try asResult { try JSON.parse(bytes, file: file.path, firstLine: line, firstOffset: offset) }
        }
        return (line, value)
    }

    private func take(_ scalar: Unicode.Scalar) throws -> Bool {
        try stream.skipSpace()
        guard try stream.peek() == UInt8(truncatingIfNeeded: scalar.value) else { return false }
        _ = try stream.take()
        return true
    }

    func error(_ message: String) -> FormatError {
        FormatError(file: file.path, place: .row(stream.line), message)
    }
}
