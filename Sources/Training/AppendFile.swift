import Formats
import Foundation

/// A file that grows by whole records, each handed to the system at once, so that a reader beside the run sees it.
///
/// A record that does not fit (a full disk) is taken back, so that the file never ends in part of one.
final class AppendFile {
    let path: String
    private let descriptor: Int32

    /// Opens a file for appending.
    ///
    /// - Parameters:
    ///   - path: The file.
    ///   - isNew: Whether the file must not exist yet.
    /// - Throws: `FormatError` when the system refuses.
    init(path: String, isNew: Bool) throws {
        self.path = path
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (isNew ? O_EXCL : 0)
        descriptor = retrying { open(path, flags, 0o666) }
        guard descriptor >= 0 else { throw FormatError(writing: path, "cannot write this file: \(lastSystemError())") }
    }

    deinit { close(descriptor) }

    /// Appends one record.
    ///
    /// - Throws: `FormatError` when it could not be written whole; the file then ends where it ended before.
    func append(_ record: [UInt8]) throws {
        let start = lseek(descriptor, 0, SEEK_END)
        var done = 0
        while done < record.count {
            let step = record[done...].withUnsafeBytes { rest in
                retrying { write(descriptor, rest.baseAddress, rest.count) }
            }
            guard step > 0 else {
                let error = FormatError(writing: path, "cannot write this file: \(lastSystemError())")
                if start >= 0 { _ = ftruncate(descriptor, start) }
                throw error
            }
            done += step
        }
    }
}
