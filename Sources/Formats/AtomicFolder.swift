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

/// A folder that appears whole or not at all.
public enum AtomicFolder {
    /// Fills a temporary folder beside `path`, makes its files durable and renames it into place.
    ///
    /// An old folder at `path` is moved aside first and removed last; when anything fails it is put back, and nothing
    /// new is left behind.
    ///
    /// - Parameters:
    ///   - path: Where the folder will be; its parent must exist.
    ///   - replaces: Whether an old folder may be replaced.
    ///   - body: Receives the temporary folder's path and writes into it.
    /// - Throws: ``FormatError`` of the file system, or what `body` throws.
    public static func write(to path: String, replacing replaces: Bool = true, _ body: (String) throws -> Void) throws {
        let path = withoutTrailingSlashes(path)
        try check(path, replaces: replaces)
        let suffix = randomSuffix()
        let temporary = path + ".tmp-" + suffix
        if mkdir(temporary, 0o777) != 0 { throw failure(path) }
        do {
            try body(temporary)
            try synchroniseTree(temporary)
            try check(path, replaces: replaces)
            try moveIntoPlace(temporary, path: path, aside: path + ".old-" + suffix)
        } catch {
            try? FileManager.default.removeItem(atPath: temporary)
            throw error
        }
    }

    private static func check(_ path: String, replaces: Bool) throws {
        switch PathKind(path) {
        case .missing: return
        case .folder:
            if !replaces { throw FormatError(file: path, "this folder is there already; choose another name") }
        case .file, .other: throw FormatError(writing: path, "cannot make this folder: a file of that name is there")
        }
    }

    private static func moveIntoPlace(_ temporary: String, path: String, aside: String) throws {
        let hasOld = PathKind(path) == .folder
        if hasOld, rename(path, aside) != 0 { throw failure(path) }
        if rename(temporary, path) != 0 {
            let error = failure(path)
            if hasOld { _ = rename(aside, path) }
            throw error
        }
        synchroniseFolder(parentFolder(of: path))
        if hasOld { try? FileManager.default.removeItem(atPath: aside) }
    }

    /// Makes every file below a folder durable, then the folder itself.
    private static func synchroniseTree(_ folder: String) throws {
        let names: [String]
        do {
            names = try FileManager.default.contentsOfDirectory(atPath: folder)
        } catch {
            throw failure(folder)
        }
        for name in names {
            let path = joined(folder, name)
            switch PathKind(path) {
            case .folder: try synchroniseTree(path)
            case .file:
                let descriptor = retrying { open(path, O_RDONLY | O_CLOEXEC) }
                if descriptor < 0 { throw failure(path) }
                defer { close(descriptor) }
                if fsync(descriptor) != 0, errno != EINVAL { throw failure(path) }
            case .other, .missing: continue
            }
        }
        synchroniseFolder(folder)
    }

    private static func failure(_ path: String) -> FormatError {
        FormatError(writing: path, "cannot write this folder: \(lastSystemError())")
    }
}
