import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// The tokenizer of SmolLM2-135M-Instruct, loaded once.
let smolLM2 = Task { try loadSmolLM2() }

func loadSmolLM2() throws -> Tokenizer {
    try Tokenizer(gguf: GGUFFile(path: RepositoryPaths.required(RepositoryPaths.smolLM2)))
}

/// What the reference makes of a line.
struct ReferenceEncoding {
    let ids: [Int]
    /// For each token the bytes of the whole characters that it touches.
    let ranges: [Range<Int>]
}

func referenceEncodings(
    _ path: String, _ lines: [String], ranges: Bool = true
) async throws -> [ReferenceEncoding] {
    var encodings: [ReferenceEncoding] = []
    // Requests of moderate size: the answer to a megabyte of text is a line of many megabytes.
    for start in stride(from: 0, to: lines.count, by: 50) {
        let part = lines[start..<min(start + 50, lines.count)]
        let result = try await Oracle.shared.call(
            "tokenizers.encode",
            ["path": .string(path), "lines": JSON(part.map { .string($0) }), "ranges": JSON(ranges)])
        encodings += try #require(result.array).map { line in
            let bounds = ranges ? try integers(line["ranges"]) : []
            return ReferenceEncoding(
                ids: try integers(line["ids"]),
                ranges: stride(from: 0, to: bounds.count, by: 2).map { bounds[$0]..<bounds[$0 + 1] })
        }
    }
    return encodings
}

/// What the reference makes of a line or a pair of lines with the tokens around them.
struct WholeEncoding {
    let ids: [Int]
    let types: [Int]
    let ranges: [Range<Int>]
}

func wholeEncodings(_ path: String, _ lines: [String], _ pairs: [String]? = nil) async throws -> [WholeEncoding] {
    var arguments: KeyedList<JSON> = ["path": .string(path), "lines": JSON(lines.map { .string($0) })]
    if let pairs { arguments["pairs"] = JSON(pairs.map { .string($0) }) }
    let result = try await Oracle.shared.call("tokenizers.encode_whole", arguments)
    return try #require(result.array).map { line in
        let bounds = try integers(line["ranges"])
        return WholeEncoding(
            ids: try integers(line["ids"]), types: try integers(line["types"]),
            ranges: stride(from: 0, to: bounds.count, by: 2).map { bounds[$0]..<bounds[$0 + 1] })
    }
}

/// Integers that the oracle sent as one string.
func integers(_ json: JSON?) throws -> [Int] {
    try #require(json?.string).utf8.split(separator: UInt8(ascii: " ")).map { try #require(Int(String($0) ?? "")) }
}

func strings(_ json: JSON?) throws -> [String] {
    try #require(json?.array).map { try #require($0.string) }
}

/// Equality of bytes; `==` on strings is canonical equivalence.
func isSame(_ a: String, _ b: String) -> Bool { Array(a.utf8) == Array(b.utf8) }

/// Widens byte ranges to whole characters, as the reference counts.
func widened(_ ranges: [Range<Int>], in text: String) -> [Range<Int>] {
    let bytes = Array(text.utf8)
    func isInside(_ place: Int) -> Bool { place < bytes.count && bytes[place] & 0xC0 == 0x80 }
    return ranges.map { range in
        var (start, end) = (range.lowerBound, range.upperBound)
        while isInside(start) { start -= 1 }
        while isInside(end) { end += 1 }
        return start..<end
    }
}
