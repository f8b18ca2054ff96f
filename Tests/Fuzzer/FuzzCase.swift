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
    /// How many bytes of memory reading one file may take beside what good files take.
    let memory: Int
    /// How many seconds reading one file may take.
    let seconds: UInt32
    /// Good contents of the file.
    let seeds: @Sendable () throws -> [[UInt8]]
    /// Writes what else the folder needs.
    let prepare: @Sendable (String) throws -> Void
    /// Reads the file, and uses what was read; gets the folder.
    let read: @Sendable (String) throws -> Void

    init(
        _ name: String, _ file: String, _ form: FileForm, words: [String] = [],
        seeds: @escaping @Sendable () throws -> [[UInt8]], memory: Int = 64 << 20, seconds: UInt32 = 30,
        prepare: @escaping @Sendable (String) throws -> Void = { _ in },
        read: @escaping @Sendable (String) throws -> Void
    ) {
        self.name = name
        self.file = file
        self.form = form
        self.words = words
        self.memory = memory
        self.seconds = seconds
        self.seeds = seeds
        self.prepare = prepare
        self.read = read
    }

    /// A case whose seeds are texts.
    init(
        _ name: String, _ file: String, _ form: FileForm, words: [String] = [], texts: [String],
        memory: Int = 64 << 20, seconds: UInt32 = 30,
        prepare: @escaping @Sendable (String) throws -> Void = { _ in },
        read: @escaping @Sendable (String) throws -> Void
    ) {
        self.init(
            name, file, form, words: words, seeds: { texts.map { Array($0.utf8) } }, memory: memory, seconds: seconds,
            prepare: prepare, read: read)
    }

    /// A template of a few bytes may well write a long text; its own limit is on the text.
    static let templateMemory = 256 << 20
}

/// A reader that gave back something that it must not.
struct FuzzDefect: Error, CustomStringConvertible {
    let description: String
}
