import Foundation

/// A folder that exists while a closure runs; see `withTemporaryFolder`.
public struct TemporaryFolder: Sendable {
    /// The folder's absolute path.
    public let path: String

    /// The path of a file or folder inside; missing folders on the way are not made.
    public func callAsFunction(_ name: String) -> String { path + "/" + name }

    /// Writes a text file and returns its path; folders on the way are made.
    @discardableResult
    public func write(_ text: String, to name: String) throws -> String {
        try write(Data(text.utf8), to: name)
    }

    /// Writes a file and returns its path; folders on the way are made.
    @discardableResult
    public func write(_ data: Data, to name: String) throws -> String {
        let url = URL(fileURLWithPath: self(name))
        try FileManager.default.createDirectory(at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try data.write(to: url)
        return url.path
    }

    /// Names of everything in the folder or in a folder inside, sorted.
    public func contents(of name: String = "") throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: name.isEmpty ? path : self(name)).sorted()
    }

    /// A new folder that stays until the test process ends.
    public static func lasting(_ name: String) throws -> TemporaryFolder {
        try TemporaryFolder(below: try processFolder.get().path, name: name)
    }

    init(below parent: String, name: String) throws {
        path = "\(parent)/\(name)-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    /// The folder of this process: removed when it exits in order.
    private static let processFolder: Result<TemporaryFolder, any Error> = Result {
        let folder = try TemporaryFolder(below: NSTemporaryDirectory(), name: "graft-tests")
        atexit { try? FileManager.default.removeItem(atPath: (try? TemporaryFolder.processFolder.get().path) ?? "") }
        return folder
    }
}

/// Runs a closure with a new empty folder and removes the folder afterwards, also when the closure throws.
///
/// A closure rather than an object that cleans up in `deinit`: Swift may end an object's life at its last use, when
/// its path is still needed.
public func withTemporaryFolder<Result>(_ body: (TemporaryFolder) throws -> Result) throws -> Result {
    let folder = try TemporaryFolder.lasting("folder")
    defer { try? FileManager.default.removeItem(atPath: folder.path) }
    return try body(folder)
}

/// As the synchronous form, for a closure that awaits.
public func withTemporaryFolder<Result>(
    isolation: isolated (any Actor)? = #isolation, _ body: (TemporaryFolder) async throws -> Result
) async throws -> Result {
    let folder = try TemporaryFolder.lasting("folder")
    defer { try? FileManager.default.removeItem(atPath: folder.path) }
    return try await body(folder)
}
