import Foundation

/// Where the demo writes: results to standard output at once, notes to standard error.
enum Console {
    static func write(_ text: String = "") {
        FileHandle.standardOutput.write(Data((text + "\n").utf8))
    }

    static func note(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }

    /// Text in lines of at most 100 columns.
    static func wrapped(_ text: String, indent: Int) -> String {
        let margin = String(repeating: " ", count: indent)
        return text.split(separator: "\n").map { paragraph in
            var lines: [String] = []
            var line = margin
            for word in paragraph.split(separator: " ") {
                if line.count + word.count >= 100 {
                    lines.append(line)
                    line = margin
                }
                line += (line == margin ? "" : " ") + word
            }
            return (lines + [line]).joined(separator: "\n")
        }.joined(separator: "\n")
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
