import CZlib

/// The bytes behind a gzip file, unpacked piece by piece in a buffer of constant size.
///
/// Members that follow one another are one text, as in gzip(1); zero bytes after the last are skipped.
final class GzipStream {
    private let file: MappedFile
    /// zlib keeps the address of its state, so that it may not move.
    private let state: UnsafeMutablePointer<z_stream>
    private let buffer: UnsafeMutableRawBufferPointer
    /// Bytes of the file that zlib has taken.
    private var taken = 0
    private var isAtEnd = false

    /// Whether a file begins as gzip files do.
    static func isGzip(_ file: MappedFile) -> Bool { file.bytes.starts(with: [0x1F, 0x8B]) }

    init(_ file: MappedFile) throws {
        self.file = file
        state = .allocate(capacity: 1)
        state.initialize(to: z_stream())
        buffer = .allocate(byteCount: 1 << 18, alignment: 16)
        // 16 more than the largest window: expect gzip's header and check its sum.
        let code = inflateInit2_(state, 15 + 16, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size))
        guard code == Z_OK else { throw error("zlib cannot be used (code \(code))") }
    }

    deinit {
        inflateEnd(state)
        state.deallocate()
        buffer.deallocate()
    }

    /// The next piece, valid until the next call; nil at the end.
    ///
    /// - Throws: ``FormatError`` with the offset in the packed file where it is damaged or ends too early.
    func next() throws -> UnsafeRawBufferPointer? {
        while !isAtEnd {
            let room = buffer.count
            state.pointee.next_out = buffer.bindMemory(to: UInt8.self).baseAddress
            state.pointee.avail_out = UInt32(room)
            try inflateSome()
            let count = room - Int(state.pointee.avail_out)
            if count > 0 { return UnsafeRawBufferPointer(rebasing: buffer[..<count]) }
        }
        return nil
    }

    private func inflateSome() throws {
        // zlib counts input in 32 bits; it never writes to it.
        let piece = min(file.count - taken, 1 << 30)
        state.pointee.next_in = file.bytes.baseAddress?.advanced(by: taken).assumingMemoryBound(to: UInt8.self)
        state.pointee.avail_in = UInt32(piece)
        let code = inflate(state, Z_NO_FLUSH)
        taken += piece - Int(state.pointee.avail_in)
        switch code {
        case Z_OK: break
        case Z_STREAM_END: try beginNextMember()
        case Z_BUF_ERROR where taken >= file.count:
            throw error("the gzip data end too early; the file is truncated, fetch or pack it again")
        case Z_MEM_ERROR: throw error("memory is short for unpacking")
        default:
            let reason = state.pointee.msg.map { String(cString: $0) } ?? "code \(code)"
            throw error("the gzip data are damaged (\(reason)); fetch or pack the file again")
        }
    }

    private func beginNextMember() throws {
        while taken < file.count, file.bytes[taken] == 0 { taken += 1 }
        guard taken < file.count else {
            isAtEnd = true
            return
        }
        guard file.bytes[taken...].starts(with: [0x1F, 0x8B]) else {
            throw error("something that is not gzip follows the gzip data; fetch or pack the file again")
        }
        inflateReset(state)
    }

    private func error(_ message: String) -> FormatError {
        FormatError(file: file.path, place: .offset(taken), message)
    }
}
