#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The text of a file from its first byte to its last, unpacked on the way where the file is gzip'd.
///
/// Neither the file nor its text need fit into memory: a plain file is read through its mapping, a packed one in
/// pieces. A byte order mark at the beginning is skipped.
final class ByteStream {
    /// The most bytes of one row; what is longer is refused before it fills the memory.
    static let rowLimit = 16 << 20

    /// The line of the next byte, from 1.
    private(set) var line = 1
    private let file: MappedFile
    private let gzip: GzipStream?
    /// The piece that is being read, and its place in the text.
    private var piece: UnsafeRawBufferPointer
    private var pieceOffset = 0
    private var position = 0
    private var scratch: [UInt8] = []

    init(_ file: MappedFile) throws {
        self.file = file
        gzip = GzipStream.isGzip(file) ? try GzipStream(file) : nil
        piece = gzip == nil ? UnsafeRawBufferPointer(file.bytes) : UnsafeRawBufferPointer(start: nil, count: 0)
        if try peek() == 0xEF, piece.count >= 3, piece[1] == 0xBB, piece[2] == 0xBF { position = 3 }
    }

    /// The offset of the next byte in the text.
    var offset: Int { pieceOffset + position }

    /// The next byte, which stays; nil at the end.
    func peek() throws -> UInt8? {
        while position >= piece.count {
            guard try refill() else { return nil }
        }
        return piece[position]
    }

    /// The next byte; nil at the end.
    func take() throws -> UInt8? {
        guard let byte = try peek() else { return nil }
        position += 1
        if byte == 0x0A { line += 1 }
        return byte
    }

    /// Takes blanks and line ends.
    func skipSpace() throws {
        while let byte = try peek(), byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { _ = try take() }
    }

    /// Calls `body` with the next line without its line feed; returns nil at the end.
    ///
    /// - Throws: ``FormatError`` for a line beyond ``rowLimit``, or what `body` throws.
    func withNextLine<Value>(_ body: (UnsafeRawBufferPointer) throws -> Value) throws -> Value? {
        guard try peek() != nil else { return nil }
        let firstLine = line
        scratch.removeAll(keepingCapacity: true)
        while try peek() != nil {
            let rest = UnsafeRawBufferPointer(rebasing: piece[position...])
            let found = rest.baseAddress.flatMap { memchr($0, 0x0A, rest.count) }
            let count = found.flatMap { end in rest.baseAddress.map { UnsafeRawPointer(end) - $0 } } ?? rest.count
            guard scratch.count + count <= Self.rowLimit else { throw tooLong(firstLine) }
            let part = UnsafeRawBufferPointer(rebasing: rest[..<count])
            position += count + (found == nil ? 0 : 1)
            if found != nil { line += 1 }
            if found != nil || gzip == nil, scratch.isEmpty { return try body(part) }
            scratch.append(contentsOf: part)
            if found != nil { break }
        }
        return try scratch.withUnsafeBytes(body)
    }

    /// The error of a row that is longer than ``rowLimit``.
    func tooLong(_ line: Int) -> FormatError {
        FormatError(
            file: file.path, place: .row(line),
            "the row that begins here is longer than \(Self.rowLimit >> 20) MiB; a row must be one example")
    }

    private func refill() throws -> Bool {
        guard let gzip, let next = try gzip.next() else { return false }
        pieceOffset += piece.count
        piece = next
        position = 0
        return true
    }
}
