import Foundation

/// Where the demo writes: results to standard output at once, notes to standard error.
enum Console {
    static func write(_ text: String = "") {
        FileHandle.standardOutput.write(Data((text + "\n").utf8))
    }

    static func note(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }

    static func exit(_ code: Int32) -> Never { Foundation.exit(code) }
}

/// What stops the demo, in one sentence.
struct DemoError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}
