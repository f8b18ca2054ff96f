import Formats
import Foundation

/// The lock that keeps two processes from writing one folder; the system lifts it when the process ends in any way.
final class FolderLock {
    /// The name of the file in the folder that carries the lock.
    static let fileName = ".lock"

    private let path: String
    /// Negative after the release.
    private var descriptor: Int32

    /// Takes the lock.
    ///
    /// A file system that has no locks goes without.
    ///
    /// - Throws: ``RunFolderError/inUse(path:by:)`` when another holds it; `FormatError` when the folder cannot be
    ///   written.
    init(folder: String) throws {
        let path = joined(folder, Self.fileName)
        self.path = path
        descriptor = -1
        while true {
            descriptor = retrying { open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o666) }
            guard descriptor >= 0 else {
                throw FormatError(writing: folder, "cannot write in this folder: \(lastSystemError())")
            }
            if retrying({ flock(descriptor, LOCK_EX | LOCK_NB) }) != 0, errno == EWOULDBLOCK {
                let owner = Self.text(descriptor)
                close(descriptor)
                descriptor = -1
                throw RunFolderError.inUse(path: folder, by: owner)
            }
            // The previous holder may have removed the file between its opening and its locking here: then others
            // would lock another file of that name.
            if isInPlace { break }
            close(descriptor)
        }
        let owner = "process \(ProcessInfo.processInfo.processIdentifier) on \(hostName())\n"
        _ = ftruncate(descriptor, 0)
        _ = Array(owner.utf8).withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) }
    }

    deinit { release() }

    /// Gives the lock back and removes its file.
    func release() {
        guard descriptor >= 0 else { return }
        unlink(path)
        close(descriptor)
        descriptor = -1
    }

    private var isInPlace: Bool {
        var (opened, named) = (stat(), stat())
        return fstat(descriptor, &opened) == 0 && stat(path, &named) == 0
            && opened.st_ino == named.st_ino && opened.st_dev == named.st_dev
    }

    private static func text(_ descriptor: Int32) -> String {
        var bytes = [UInt8](repeating: 0, count: 200)
        let count = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, $0.count, 0) }
        let line = bytes.prefix(max(0, count)).prefix { $0 >= 0x20 }
        return line.isEmpty ? "another process" : String(decoding: line, as: UTF8.self)
    }
}
