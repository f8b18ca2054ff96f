import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Tokenizers of GGUF files that are not as they should be.
struct GGUFTokenizerTests {
    /// The bytes of a GGUF file without tensors.
    private struct Builder {
        var values: [(String, Data)] = []

        private static func number(_ value: some FixedWidthInteger) -> Data {
            withUnsafeBytes(of: value.littleEndian) { Data($0) }
        }

        private static func text(_ text: String) -> Data { number(UInt64(text.utf8.count)) + Data(text.utf8) }

        mutating func set(_ key: String, _ value: String?) {
            set(key, value.map { Self.number(UInt32(8)) + Self.text($0) })
        }

        mutating func set(_ key: String, _ value: Int) { set(key, Self.number(UInt32(5)) + Self.number(Int32(value))) }

        mutating func set(_ key: String, _ values: [String]) {
            let head = Self.number(UInt32(9)) + Self.number(UInt32(8)) + Self.number(UInt64(values.count))
            set(key, head + values.reduce(Data()) { $0 + Self.text($1) })
        }

        mutating func set(_ key: String, _ values: [Int]) {
            let head = Self.number(UInt32(9)) + Self.number(UInt32(5)) + Self.number(UInt64(values.count))
            set(key, head + values.reduce(Data()) { $0 + Self.number(Int32($1)) })
        }

        private mutating func set(_ key: String, _ data: Data?) {
            values.removeAll { $0.0 == key }
            if let data { values.append((key, data)) }
        }

        var data: Data {
            let head = Data("GGUF".utf8) + Self.number(UInt32(3)) + Self.number(UInt64(0))
            let body = values.reduce(head + Self.number(UInt64(values.count))) { $0 + Self.text($1.0) + $1.1 }
            return body + Data(count: (32 - body.count % 32) % 32)
        }
    }

    private func load(_ change: (inout Builder) -> Void) throws -> Tokenizer {
        var builder = Builder()
        builder.set("tokenizer.ggml.model", "gpt2")
        builder.set("tokenizer.ggml.pre", "gpt-2")
        builder.set("tokenizer.ggml.tokens", ["a", "b", "ab", "\u{120}", "<|im_end|>", "né", "1", "11"])
        builder.set("tokenizer.ggml.token_type", [1, 1, 1, 1, 3, 4, 1, 1])
        builder.set("tokenizer.ggml.merges", ["a b", "1 1"])
        builder.set("tokenizer.ggml.eos_token_id", 1)
        change(&builder)
        return try withTemporaryFolder { folder in
            try Tokenizer(gguf: GGUFFile(path: folder.write(builder.data, to: "model.gguf")))
        }
    }

    @Test func aSmallFileIsRead() throws {
        let tokenizer = try load { _ in }
        #expect(tokenizer.encode("ab a11né<|im_end|>né") == [2, 3, 0, 7, 5, 4, 5])
        #expect(try tokenizer.decode([2, 5, 4, 5], skipSpecialTokens: true) == "abnéné")
        #expect(tokenizer.stopTokenIDs == [1, 4])
        #expect(try load { $0.set("tokenizer.ggml.pre", "smollm") }.encode("a11") == [0, 6, 6])
        #expect(try load { $0.set("tokenizer.ggml.eot_token_id", 0) }.stopTokenIDs == [0, 1, 4])
        #expect(throws: TokenizerError.self) { try tokenizer.chatTemplate() }
    }

    @Test func mistakesAreNamed() throws {
        let cases: [(String, (inout Builder) -> Void)] = [
            ("\"tokenizer.ggml.scores\"", { $0.set("tokenizer.ggml.model", "llama") }),
            ("\"bert\", \"gpt2\", \"llama\", \"t5\"", { $0.set("tokenizer.ggml.model", "rwkv") }),
            ("tokenizer.ggml.model", { $0.set("tokenizer.ggml.model", nil) }),
            ("\"gpt-2\", \"llama-bpe\"", { $0.set("tokenizer.ggml.pre", "gpt-5") }),
            ("tokenizer.ggml.pre", { $0.set("tokenizer.ggml.pre", 1) }),
            ("tokenizer.ggml.tokens", { $0.set("tokenizer.ggml.tokens", "a") }),
            ("tokenizer.ggml.tokens", { $0.set("tokenizer.ggml.tokens", [] as [String]) }),
            ("tokenizer.ggml.tokens", { $0.set("tokenizer.ggml.tokens", [1]) }),
            ("8 tokens, found 1", { $0.set("tokenizer.ggml.token_type", [1]) }),
            ("tokenizer.ggml.token_type", { $0.set("tokenizer.ggml.token_type", "x") }),
            ("merge 1 'a c'", { $0.set("tokenizer.ggml.merges", ["a b", "a c"]) }),
            ("merge 0 'ab'", { $0.set("tokenizer.ggml.merges", ["ab"]) }),
            ("merge 0 'b a'", { $0.set("tokenizer.ggml.merges", ["b a"]) }),
            ("tokenizer.ggml.merges", { $0.set("tokenizer.ggml.merges", nil) }),
            ("tokenizer.ggml.eos_token_id", { $0.set("tokenizer.ggml.eos_token_id", 8) }),
            ("tokenizer.ggml.bos_token_id", { $0.set("tokenizer.ggml.bos_token_id", -1) }),
            ("tokenizer.ggml.unknown_token_id", { $0.set("tokenizer.ggml.unknown_token_id", "a") }),
        ]
        for (part, change) in cases {
            do {
                _ = try load(change)
                Issue.record("no error about \(part)")
            } catch {
                #expect("\(error)".contains(part), "\(error)")
                #expect("\(error)".contains("model.gguf"), "\(error)")
            }
        }
    }
}
