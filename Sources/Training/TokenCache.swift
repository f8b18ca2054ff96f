import Crypto
import Formats
import Foundation

/// A folder with the tokens of files that were read before, so that the next run begins at once.
///
/// A table in it belongs to the content of a file, the tokenizer, the chat template and the way that columns are read; what
/// cuts rows is applied when it is read. Tables appear whole or not at all, are checked against the digest at their
/// end, and are made again where anything is wrong with them. Several processes may share the folder.
public struct TokenCache: Sendable {
    /// The folder.
    public let folder: String
    /// Files with fewer bytes are not worth it: they are read in less than half a second.
    package var minimumBytes = 1 << 20

    /// A cache in a folder, which need not exist.
    public init(folder: String) {
        self.folder = folder
    }

    /// The cache in `$GRAFT_CACHE`, else in `~/.cache/graft`; nil where there is no home.
    public static var standard: TokenCache? {
        let environment = ProcessInfo.processInfo.environment
        if let folder = environment["GRAFT_CACHE"], !folder.isEmpty { return TokenCache(folder: folder) }
        guard let home = environment["HOME"], !home.isEmpty else { return nil }
        return TokenCache(folder: home + "/.cache/graft")
    }

    /// The version of all that turns rows into tokens; part of every key.
    private static let rules = "rows 2"

    private var tables: String { joined(folder, "tokens") }
    private var locks: String { joined(folder, "locks") }
    private var digests: FileDigests { FileDigests(folder: joined(folder, "digests")) }

    /// Whether a file is large enough to be worth a table.
    func isWorthwhile(_ file: RowFile) -> Bool { file.file.count * (file.isPacked ? 4 : 1) >= minimumBytes }

    /// The table of a file, made now where there is none.
    ///
    /// - Parameters:
    ///   - file: The file.
    ///   - text: The digest of what turns text into tokens.
    ///   - columns: How columns are read.
    ///   - kind: What the rows teach.
    ///   - fill: Writes the rows.
    /// - Throws: `FormatError` with `isWriteFailure` when the folder cannot be written or is full, and then nothing is
    ///   left in it; else what `fill` throws.
    func table(
        of file: RowFile, text: String, columns: KeyedList<String>, kind: RowKind,
        fill: (inout TokenTableWriter) throws -> Void
    ) throws -> TokenTable {
        try makeFolders()
        let before = FileStamp(file.path)
        let digest = try digests.digest(of: file.path)
        // Of one file other kinds of rows are refused, so its table belongs to one kind.
        let rules = kind == .text ? [Self.rules] : [Self.rules, kind.rawValue]
        let key = Self.key(rules + [digest, file.format.rawValue, text] + columns.flatMap { [$0.key, $0.value] })
        let path = joined(tables, hexadecimal(key) + ".tokens")
        if let known = existing(path, key) { return known }
        // Of processes that begin together one makes the table, and the others find it made.
        let lock = WaitingLock(joined(locks, hexadecimal(key)))
        defer { withExtendedLifetime(lock) {} }
        if let known = existing(path, key) { return known }
        removeLeftovers()
        try AtomicFile.write(to: path) { output in
            var writer = try TokenTableWriter(key: key) { try output.write($0) }
            try fill(&writer)
            try writer.finish()
            guard FileStamp(file.path) == before else {
                throw FormatError(file: file.path, "the file was changed while it was read; begin again")
            }
        }
        guard let made = existing(path, key) else {
            throw FormatError(writing: path, "this file was changed while it was written; clear the folder")
        }
        return made
    }

    /// A table that is whole, or nil.
    private func existing(_ path: String, _ key: [UInt8]) -> TokenTable? {
        guard PathKind(path) == .file, let stamp = FileStamp(path), let file = try? MappedFile(path: path) else {
            return nil
        }
        let isVerified = digests.remembered(path) == Self.wholeMark
        guard let table = try? TokenTable(.mapped(file), key: key, isVerified: isVerified) else { return nil }
        if !isVerified, stamp == FileStamp(path) { digests.remember(Self.wholeMark, of: path, stamp) }
        return table
    }

    /// What is remembered, in place of a digest, of a table whose digest was found right.
    private static let wholeMark = "whole"

    private static func key(_ parts: [String]) -> [UInt8] {
        var hash = SHA256()
        for part in parts { hash.update(data: Array("\(part.utf8.count):\(part)\n".utf8)) }
        return Array(hash.finalize())
    }

    private func makeFolders() throws {
        for path in [tables, locks, digests.folder] {
            do {
                try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
            } catch {
                throw FormatError(writing: path, "cannot make this folder: \(lastSystemError())")
            }
        }
    }

    /// Removes what killed processes left half-written an hour ago or earlier.
    private func removeLeftovers() {
        for folder in [tables, digests.folder] {
            for name in (try? RunLayout.names(in: folder)) ?? [] where name.contains(".tmp-") {
                let path = joined(folder, name)
                let date = try? FileManager.default.attributesOfItem(atPath: path)[.modificationDate] as? Date
                if let date, Date().timeIntervalSince(date) > 3600 { unlink(path) }
            }
        }
    }

    // MARK: Housekeeping

    /// The bytes and the number of the tables in the cache.
    public var size: (tables: Int, bytes: Int) {
        let names = (try? RunLayout.names(in: tables)) ?? []
        let sizes = names.compactMap {
            try? FileManager.default.attributesOfItem(atPath: joined(tables, $0))[.size] as? Int
        }
        return (names.count, sizes.reduce(0, +))
    }

    /// Removes all tables; processes that are reading them go on.
    ///
    /// - Throws: `FormatError` when one cannot be removed.
    public func clear() throws {
        for folder in [tables, locks, digests.folder] where PathKind(folder) == .folder {
            for name in try RunLayout.names(in: folder) where unlink(joined(folder, name)) != 0 {
                throw FormatError(writing: joined(folder, name), "cannot remove this file: \(lastSystemError())")
            }
        }
    }
}
