#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif
#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// A file that appears whole or not at all.
///
/// The bytes go to a temporary file in the same folder; ``commit()`` makes them durable and renames the file into
/// place. Without a commit nothing is left behind, and a file that was there before stays as it was.
public final class AtomicFile {
    /// Where the file will be.
    public let path: String
    private let temporaryPath: String
    private var descriptor: Int32
    /// Bytes written in sequence so far.
    public private(set) var count = 0

    /// Begins a file.
    ///
    /// - Throws: ``FormatError`` when its folder is missing, full or not writable, or when the path is no plain file.
    public init(path: String) throws {
        self.path = path
        switch PathKind(path) {
        case .folder: throw FormatError(writing: path, "cannot write this file: a folder of that name is there")
        case .other:
            throw FormatError(writing: path, "cannot write this file: a device or a pipe of that name is there")
        case .file, .missing: break
        }
        temporaryPath = path + ".tmp-" + randomSuffix()
        let temporary = temporaryPath
        descriptor = retrying { open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666) }
        if descriptor < 0 { throw FormatError(writing: path, "cannot write this file: \(lastSystemError())") }
    }

    deinit { cancel() }

    /// Appends bytes.
    public func write(_ bytes: UnsafeRawBufferPointer) throws {
        try write(bytes, at: count)
        count += bytes.count
    }

    /// Appends data.
    public func write(_ data: Data) throws {
        try data.withUnsafeBytes { try write($0) }
    }

    /// Appends text as UTF-8.
    public func write(_ text: String) throws {
        var text = text
        try text.withUTF8 { try write(UnsafeRawBufferPointer($0)) }
    }

    /// Writes bytes at an offset; a gap before it reads as zeros until it is written.
    public func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let step = retrying { pwrite(descriptor, rest.baseAddress, rest.count, off_t(offset + done)) }
            if step <= 0 { throw failure() }
            done += step
        }
    }

    /// Makes the bytes durable and puts the file in its place.
    ///
    /// Afterwards the file is closed.
    public func commit() throws {
        if fsync(descriptor) != 0, errno != EINVAL { throw failure() }
        if close(descriptor) != 0 {
            descriptor = -1
            throw failure()
        }
        descriptor = -1
        if rename(temporaryPath, path) != 0 { throw failure() }
        synchroniseFolder(parentFolder(of: path))
    }

    /// Gives the file up and removes the temporary one; after a commit it does nothing.
    public func cancel() {
        guard descriptor >= 0 else { return }
        close(descriptor)
        descriptor = -1
        unlink(temporaryPath)
    }

    private func failure() -> FormatError {
        let error = FormatError(writing: path, "cannot write this file: \(lastSystemError())")
        cancel()
        unlink(temporaryPath)
        return error
    }
}

extension AtomicFile {
    /// Writes a whole file from data.
    public static func write(_ data: Data, to path: String) throws {
        try write(to: path) { try $0.write(data) }
    }

    /// Writes a whole file from text, as UTF-8.
    public static func write(_ text: String, to path: String) throws {
        try write(to: path) { try $0.write(text) }
    }

    /// Writes a file piece by piece; when `body` throws, nothing is left behind.
    public static func write(to path: String, _ body: (AtomicFile) throws -> Void) throws {
        let file = try AtomicFile(path: path)
        defer { file.cancel() }
        try body(file)
        try file.commit()
    }
}
