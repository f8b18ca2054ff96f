// Times one tokenizer for Benchmarks/tokenizer.py: `TokenizerBenchmark MODEL TEXT`, where MODEL is a folder with a
// tokenizer.json or a GGUF file. Each line on standard input, `lines` or `text`, asks for one round, line by line or the
// whole text at once; the answer is seconds, the number of tokens and a digest of them.
import Formats
import Foundation
import Tokenizers

let arguments = CommandLine.arguments
guard arguments.count == 3, let data = FileManager.default.contents(atPath: arguments[2]) else {
    FileHandle.standardError.write(Data("usage: TokenizerBenchmark MODEL TEXT\n".utf8))
    exit(2)
}
let tokenizer =
    arguments[1].hasSuffix(".gguf")
    ? try Tokenizer(gguf: GGUFFile(path: arguments[1])) : try Tokenizer(folder: arguments[1])
let text = String(decoding: data, as: UTF8.self)
let lines = text.utf8.split(separator: UInt8(ascii: "\n")).map { String(Substring($0)) }

while let command = readLine() {
    let texts = command == "text" ? [text] : lines
    var rows: [[Int]] = []
    rows.reserveCapacity(texts.count)
    let start = ContinuousClock.now
    for text in texts { rows.append(tokenizer.encode(text)) }
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    var digest: UInt64 = 0xCBF2_9CE4_8422_2325
    for id in rows.joined() { digest = (digest ^ UInt64(id)) &* 0x100_0000_01B3 }
    let answer = "\(seconds) \(rows.reduce(0) { $0 + $1.count }) \(digest)\n"
    FileHandle.standardOutput.write(Data(answer.utf8))
}
