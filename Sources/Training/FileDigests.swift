import Crypto
import Formats
import Foundation

/// SHA-256 digests of files, remembered in a folder so that an unchanged file is not read again.
///
/// A remembered digest counts as long as the file's ``FileStamp`` is the same, and none is remembered for a file that was
/// changed within the last seconds.
struct FileDigests {
    let folder: String

    /// The digest of a file's content, in hexadecimal.
    ///
    /// - Throws: `FormatError` when the file cannot be read.
    func digest(of path: String) throws -> String {
        if let known = remembered(path) { return known }
        let stamp = FileStamp(path)
        let digest = try Self.digest(ofContent: path)
        if let stamp, stamp == FileStamp(path) { remember(digest, of: path, stamp) }
        return digest
    }

    /// The digest that was found earlier, when the file is as it was then.
    func remembered(_ path: String) -> String? {
        guard let place = place(path), PathKind(place) == .file, let record = try? JSON.read(path: place),
            let stamp = FileStamp(path), record["stamp"]?.string == stamp.text
        else { return nil }
        return record["sha256"]?.string
    }

    /// Remembers a digest; that it cannot be written is no mistake, it is computed again then.
    func remember(_ digest: String, of path: String, _ stamp: FileStamp) {
        guard stamp.isSettled, let place = place(path) else { return }
        let record: JSON = ["path": .string(path), "stamp": .string(stamp.text), "sha256": .string(digest)]
        try? AtomicFile.write(record.compact + "\n", to: place)
    }

    private func place(_ path: String) -> String? {
        guard let whole = realpath(path, nil) else { return nil }
        defer { free(whole) }
        return joined(folder, hexadecimal(SHA256.hash(data: Array(String(cString: whole).utf8))) + ".json")
    }

    /// The digest of a file's content, read now.
    ///
    /// - Throws: `FormatError` when the file cannot be read.
    static func digest(ofContent path: String) throws -> String {
        let file = try MappedFile(path: path)
        return withExtendedLifetime(file) { hexadecimal(sha256(UnsafeRawBufferPointer(file.bytes))) }
    }
}

/// SHA-256 of bytes in memory or in a mapping, in pieces, so that the pages of a large file need not stay.
func sha256(_ bytes: UnsafeRawBufferPointer) -> SHA256.Digest {
    var hash = SHA256()
    for start in stride(from: 0, to: bytes.count, by: 1 << 24) {
        hash.update(bufferPointer: UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + 1 << 24, bytes.count)]))
    }
    return hash.finalize()
}
