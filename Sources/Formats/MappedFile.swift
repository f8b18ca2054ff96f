#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// A file mapped into memory, copy on write: writing to the mapping changes this process's copy, never the file.
///
/// The mapping lives as long as the object; whoever keeps a pointer into it keeps the object too. The mapping itself
/// is not synchronised: share it for reading only.
public final class MappedFile: @unchecked Sendable {
    /// The file's path.
    public let path: String
    /// The whole file.
    ///
    /// Valid while this object lives.
    public let bytes: UnsafeMutableRawBufferPointer

    /// Number of bytes.
    public var count: Int { bytes.count }

    /// Maps a file.
    ///
    /// - Throws: ``FormatError`` when it is missing, empty, not a plain file or not readable.
    public init(path: String) throws {
        self.path = path
        switch PathKind(path) {
        case .folder: throw FormatError(file: path, "expected a file, found a folder")
        case .other: throw FormatError(file: path, "expected a plain file, found a device or a pipe")
        case .file, .missing: break
        }
        let descriptor = retrying { open(path, O_RDONLY | O_CLOEXEC) }
        if descriptor < 0 { throw FormatError(file: path, "cannot read this file: \(lastSystemError())") }
        defer { close(descriptor) }
        var info = stat()
        if fstat(descriptor, &info) != 0 {
            throw FormatError(file: path, "cannot read this file: \(lastSystemError())")
        }
        guard let size = Int(exactly: info.st_size), size > 0 else {
            throw FormatError(file: path, "the file is empty")
        }
        let address = mmap(nil, size, PROT_READ | PROT_WRITE, mappingFlags, descriptor, 0)
        guard let address, address != MAP_FAILED else {
            throw FormatError(file: path, "cannot map this file of \(size) bytes into memory: \(lastSystemError())")
        }
        bytes = UnsafeMutableRawBufferPointer(start: address, count: size)
    }

    deinit { munmap(bytes.baseAddress, bytes.count) }

    /// A part of the file.
    ///
    /// - Throws: ``FormatError`` when the part reaches beyond the end.
    public func slice(offset: Int, count: Int) throws -> MappedBytes {
        guard offset >= 0, count >= 0, offset <= bytes.count, count <= bytes.count - offset else {
            throw FormatError(
                file: path, place: .offset(offset),
                "\(count) bytes are needed here, but the file ends at byte \(bytes.count); it may be truncated")
        }
        return MappedBytes(file: self, offset: offset, count: count)
    }

    /// A little-endian integer at an offset, which need not be aligned.
    ///
    /// - Throws: ``FormatError`` when it reaches beyond the end.
    public func integer<Value: FixedWidthInteger>(at offset: Int, as type: Value.Type = Value.self) throws -> Value {
        let part = try slice(offset: offset, count: MemoryLayout<Value>.size)
        return Value(littleEndian: part.bytes.loadUnaligned(as: Value.self))
    }
}

// A private mapping of a large file must not be counted as memory that this process has promised to use.
#if os(Linux)
private let mappingFlags = MAP_PRIVATE | MAP_NORESERVE
#else
private let mappingFlags = MAP_PRIVATE
#endif

/// A part of a mapped file, which it keeps alive.
public struct MappedBytes: Sendable {
    /// The file.
    public let file: MappedFile
    /// First byte.
    public let offset: Int
    /// Number of bytes.
    public let count: Int

    fileprivate init(file: MappedFile, offset: Int, count: Int) {
        self.file = file
        self.offset = offset
        self.count = count
    }

    /// The bytes; valid while ``file`` lives (`withExtendedLifetime` where only the pointer is in use).
    public var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(mutableBytes) }

    /// Gives the memory of whole pages back, after the bytes have been copied: what is read again comes from the file.
    ///
    /// What was written into this process's own copy is lost.
    package func forget() {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        guard let base = file.bytes.baseAddress, page > 0 else { return }
        let (first, last) = ((offset + page - 1) / page * page, (offset + count) / page * page)
        if first < last { madvise(base + first, last - first, Int32(MADV_DONTNEED)) }
    }

    /// The bytes for writing into this process's own copy; valid while ``file`` lives.
    public var mutableBytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: file.bytes[offset..<(offset + count)])
    }
}

extension JSON {
    /// Reads a JSON file; see ``parse(_:file:firstLine:firstOffset:)``.
    ///
    /// - Throws: ``FormatError`` naming the file, and the place of a mistake.
    public static func read(path: String) throws -> JSON {
        let file = try MappedFile(path: path)
        return try withExtendedLifetime(file) { try parse(UnsafeRawBufferPointer(file.bytes), file: path) }
    }
}
