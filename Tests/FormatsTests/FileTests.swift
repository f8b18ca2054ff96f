import Formats
import Foundation
import TestSupport
import Testing

private func contents(_ path: String) throws -> String {
    String(decoding: try Data(contentsOf: URL(filePath: path)), as: UTF8.self)
}

@Test func filesAppearWhole() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("a.txt")
    try AtomicFile.write("one", to: path)
    #expect(try contents(path) == "one")
    try AtomicFile.write(to: path) { file in
        try file.write("tw")
        try file.write(Data([UInt8(ascii: "o")]))
        #expect(try contents(path) == "one")
        #expect(try folder.contents().count == 2)
    }
    #expect(try contents(path) == "two")
    struct Stop: Error {}
    #expect(throws: Stop.self) {
        try AtomicFile.write(to: path) { file in
            try file.write("three")
            throw Stop()
        }
    }
    #expect(try contents(path) == "two")
    #expect(try folder.contents() == ["a.txt"])
}

@Test func filesThatCannotBeWritten() throws {
    let folder = try TemporaryFolder.lasting("formats")
    #expect(
        try formatError { try AtomicFile.write("x", to: folder("no/a.txt")) }.message.contains(
            "no such file or folder"))
    #expect(try formatError { try AtomicFile.write("x", to: folder.path) }.message.contains("a folder of that name"))
    #expect(try formatError { try AtomicFile.write("x", to: "/dev/null") }.message.contains("a device"))
    try AtomicFile.write("x", to: folder("plain"))
    #expect(
        try formatError { try AtomicFile.write("x", to: folder("plain/a.txt")) }.message.contains("not a folder"))
    if getuid() != 0 {
        chmod(folder.path, 0o500)
        #expect(
            try formatError { try AtomicFile.write("x", to: folder("a.txt")) }.message.contains(
                "permission denied"))
        chmod(folder.path, 0o700)
    }
    #expect(try folder.contents() == ["plain"])
}

@Test func aFullDiskLeavesNothing() async {
    // A limit on the size of files, in a process of its own, stands for the full disk: the write fails half-way.
    await #expect(processExitsWith: .success) {
        let folder = try TemporaryFolder.lasting("formats")
        let path = folder("a.bin")
        try AtomicFile.write("old", to: path)
        var limit = rlimit(rlim_cur: 1 << 20, rlim_max: 1 << 20)
        setrlimit(fileSizeLimit, &limit)
        signal(SIGXFSZ, SIG_IGN)
        let error = try formatError { try AtomicFile.write(Data(count: 3 << 20), to: path) }
        #expect(error.message.hasPrefix("cannot write this file"))
        #expect(try contents(path) == "old")
        #expect(try folder.contents() == ["a.bin"])
    }
}

#if os(Linux)
private let fileSizeLimit = __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
#else
private let fileSizeLimit = RLIMIT_FSIZE
#endif

@Test func foldersAppearWhole() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("run")
    func write(_ text: String, replacing: Bool = true, stop: Bool = false) throws {
        try AtomicFolder.write(to: path + "/", replacing: replacing) { temporary in
            try AtomicFile.write(text, to: temporary + "/a.txt")
            try FileManager.default.createDirectory(atPath: temporary + "/sub", withIntermediateDirectories: false)
            try AtomicFile.write(text, to: temporary + "/sub/\(text).txt")
            if stop { throw CancellationError() }
        }
    }
    try write("one")
    #expect(try contents(path + "/sub/one.txt") == "one")
    try write("two")
    #expect(try contents(path + "/a.txt") == "two")
    #expect(try FileManager.default.contentsOfDirectory(atPath: path + "/sub") == ["two.txt"])
    #expect(throws: CancellationError.self) { try write("three", stop: true) }
    #expect(try formatError { try write("four", replacing: false) }.message.contains("there already"))
    #expect(try contents(path + "/a.txt") == "two")
    #expect(try folder.contents() == ["run"])
    try AtomicFile.write("x", to: folder("plain"))
    #expect(
        try formatError { try AtomicFolder.write(to: folder("plain")) { _ in } }.message.contains(
            "a file of that name"))
    #expect(try formatError { try AtomicFolder.write(to: folder("no/run")) { _ in } }.message.contains("no such"))
}

@Test func mappedFiles() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = try folder.write([1, 2, 3, 4, 5, 6, 7, 8, 9], to: "a.bin")
    let file = try MappedFile(path: path)
    #expect(try file.integer(at: 1, as: UInt32.self) == 0x0504_0302)
    #expect(try file.integer(at: 8, as: UInt8.self) == 9)
    #expect(try formatError { _ = try file.integer(at: 6, as: UInt32.self) }.place == .offset(6))
    for (offset, count) in [(-1, 1), (0, 10), (10, 0), (9, 1), (3, -1), (.max, 1), (1, .max), (.max, .max)] {
        _ = try formatError { _ = try file.slice(offset: offset, count: count) }
    }
    #expect(try file.slice(offset: 9, count: 0).bytes.isEmpty)
    // Writing changes this mapping only.
    let part = try file.slice(offset: 2, count: 3)
    part.mutableBytes[0] = 99
    #expect(Array(part.bytes) == [99, 4, 5])
    #expect(try [UInt8](Data(contentsOf: URL(filePath: path)))[2] == 3)
    #expect(try formatError { _ = try MappedFile(path: folder("none")) }.message.contains("no such file"))
    #expect(try formatError { _ = try MappedFile(path: folder.path) }.message.contains("found a folder"))
    _ = try folder.write([], to: "empty")
    #expect(try formatError { _ = try MappedFile(path: folder("empty")) }.message.contains("empty"))
}

@Test func rowsOfJSONLines() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let text = "\u{feff}{\"text\": \"é\"}\r\n\n  \t\n[1]\n\"last\""
    let path = try folder.write(text, to: "a.jsonl")
    let lines = try JSONLines(path: path)
    let rows = try lines.rows()
    #expect(rows.map(\.line) == [1, 4, 5])
    #expect(rows.map(\.value) == [["text": "é"], [1], "last"])
    #expect(lines.error("no key \"prompt\"", in: rows[1]).description == "\(path), line 4: no key \"prompt\"")

    let broken = try folder.write("{\"a\": 1}\n\n{\"a\": }\n", to: "b.jsonl")
    let error = try formatError { _ = try JSONLines(path: broken).rows() }
    #expect(error.place == .line(3, column: 7, offset: 16) && error.file == broken)
    let invalid = try folder.write(Array("1\n2\n\"".utf8) + [0xC3] + Array("\"\n".utf8), to: "c.jsonl")
    let utf8 = try formatError { _ = try JSONLines(path: invalid).rows() }
    #expect(utf8.description.contains("line 3") && utf8.message.contains("UTF-8"))
    let bare = try folder.write([0x31, 0x0A, 0xFF], to: "d.jsonl")
    #expect(try formatError { _ = try JSONLines(path: bare).rows() }.description.contains("line 2"))
}

@Test(arguments: [
    ("lorra", "lora"), ("LoRA", "lora"), ("batch-size", "batch_size"), ("lerning_rate", "learning_rate"),
    ("aplha", "alpha"), ("rnak", "rank"),
    ("zzz", nil), ("", nil), ("learning", nil),
])
func suggestions(name: String, expected: String?) {
    let names = ["rank", "alpha", "lora", "lorta", "learning_rate", "batch_size", "dropout"]
    #expect(closestMatch(to: name, in: names) == expected)
    #expect(suggestion(for: name, in: names) == (expected.map { " Did you mean \"\($0)\"?" } ?? ""))
}
