import Formats
import Foundation

/// A reader to be given broken files: one file of a folder changes, the others stay.
struct FuzzCase: Sendable {
    let name: String
    /// The file that changes.
    let file: String
    let form: FileForm
    /// Words of the format.
    let words: [String]
    /// Good contents of the file.
    let seeds: @Sendable () throws -> [[UInt8]]
    /// Writes what else the folder needs.
    let prepare: @Sendable (String) throws -> Void
    /// Reads the file, and uses what was read; gets the folder.
    let read: @Sendable (String) throws -> Void

    init(
        _ name: String, _ file: String, _ form: FileForm, words: [String] = [],
        seeds: @escaping @Sendable () throws -> [[UInt8]],
        prepare: @escaping @Sendable (String) throws -> Void = { _ in },
        read: @escaping @Sendable (String) throws -> Void
    ) {
        self.name = name
        self.file = file
        self.form = form
        self.words = words
        self.seeds = seeds
        self.prepare = prepare
        self.read = read
    }

    /// A case whose seeds are texts.
    init(
        _ name: String, _ file: String, _ form: FileForm, words: [String] = [], texts: [String],
        prepare: @escaping @Sendable (String) throws -> Void = { _ in },
        read: @escaping @Sendable (String) throws -> Void
    ) {
        self.init(
            name, file, form, words: words, seeds: { texts.map { Array($0.utf8) } }, prepare: prepare, read: read)
    }
}

/// A reader that gave back something that it must not.
struct FuzzDefect: Error, CustomStringConvertible {
    let description: String
}
