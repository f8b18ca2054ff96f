#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The system's last error as the end of a sentence, with advice where there is any.
package func lastSystemError() -> String {
    let code = errno
    switch code {
    case ENOSPC, EDQUOT: return "the disk is full; free some space or choose another folder"
    case EACCES, EPERM: return "permission denied"
    case EROFS: return "the file system is read-only"
    case ENOENT: return "no such file or folder"
    case ENOTDIR: return "a part of the path is a file, not a folder"
    case EISDIR: return "it is a folder"
    case EMFILE, ENFILE: return "too many files are open"
    default: return String(cString: strerror(code))
    }
}

/// Repeats a system call while a signal interrupts it.
package func retrying<Result: FixedWidthInteger & SignedInteger>(_ call: () -> Result) -> Result {
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}

/// Makes what was renamed or created in a folder durable; folders that cannot be synchronised are left.
package func synchroniseFolder(_ path: String) {
    let descriptor = retrying { open(path, O_RDONLY | O_CLOEXEC) }
    guard descriptor >= 0 else { return }
    _ = fsync(descriptor)
    close(descriptor)
}

/// The folder that holds a path: "a/b" gives "a", "b" gives ".".
package func parentFolder(of path: String) -> String {
    let trimmed = withoutTrailingSlashes(path)
    guard let slash = trimmed.utf8.lastIndex(of: UInt8(ascii: "/")) else { return "." }
    return slash == trimmed.startIndex ? "/" : String(trimmed[..<slash])
}

/// The path without slashes at its end (the root stays).
package func withoutTrailingSlashes(_ path: String) -> String {
    var path = path[...]
    while path.utf8.count > 1, path.utf8.last == UInt8(ascii: "/") { path.removeLast() }
    return String(path)
}

/// Joins a folder and a name.
package func joined(_ folder: String, _ name: String) -> String {
    folder.hasSuffix("/") ? folder + name : folder + "/" + name
}

/// Whether a name is that of a file right in a folder: it cannot lead out of the folder, whatever wrote it.
///
/// Looks at bytes: to Swift's strings a slash with a combining mark after it is no slash.
package func isPlainFileName(_ name: String) -> Bool {
    let bytes = Array(name.utf8)
    return !bytes.isEmpty && bytes != Array(".".utf8) && bytes != Array("..".utf8)
        && !bytes.contains(UInt8(ascii: "/")) && !bytes.contains(0)
}

/// Kinds of what may be at a path.
package enum PathKind {
    case file, folder, other, missing

    /// Looks, following symbolic links.
    package init(_ path: String) {
        var info = stat()
        guard stat(path, &info) == 0 else {
            self = .missing
            return
        }
        switch info.st_mode & S_IFMT {
        case S_IFREG: self = .file
        case S_IFDIR: self = .folder
        default: self = .other
        }
    }
}

/// A suffix that no other process uses.
package func randomSuffix() -> String {
    let digits = String(UInt32.random(in: 0...UInt32.max), radix: 36)
    return String(repeating: "0", count: 7 - digits.utf8.count) + digits
}
