import ArgumentParser
import Graft

/// `graft tokenize`: lines to token ids, and back.
struct TokenizeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tokenize",
        abstract: "Turn lines of standard input into token ids, one JSON array a line, or back.",
        discussion: """
            Special tokens written in a line are recognised; none are added. A line ends at its line feed, which is no \
            part of it.
            """)

    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String

    @Flag(help: "Read ids and write text.")
    var decode = false

    func run() throws {
        let tokenizer = try Tokenizer(ofModel: model)
        var buffer = ""
        var number = 0
        while let line = try InputLines.next(number: number + 1) {
            number += 1
            buffer +=
                decode ? try text(of: line, number, tokenizer) : JSON(tokenizer.encode(line).map { JSON($0) }).compact
            buffer += "\n"
            if buffer.utf8.count > 1 << 16 || InputLines.isInteractive {
                try Output.write(buffer)
                buffer = ""
            }
        }
        try Output.write(buffer)
    }

    private func text(of line: String, _ number: Int, _ tokenizer: Tokenizer) throws -> String {
        guard let ids = (try? JSON.parse(line))?.array?.map(\.int), !ids.contains(nil) else {
            throw InputError("standard input, line \(number): expected a JSON array of token ids")
        }
        do {
            return try tokenizer.decode(ids.compactMap(\.self))
        } catch let error as TokenizerError {
            throw InputError("standard input, line \(number): \(error)")
        }
    }
}
