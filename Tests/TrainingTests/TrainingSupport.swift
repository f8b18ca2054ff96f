import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Tokenizers
import Torch
import Training

/// Tiny models with a tokenizer and a chat template, each made once a test run.
actor ChatModels {
    static let shared = ChatModels()

    private var folders: [Bool: Task<String, any Error>] = [:]

    /// The folder of a random model; with `bos` its tokenizer begins texts with a token of its own.
    func folder(bos: Bool = false) async throws -> String {
        if let known = folders[bos] { return try await known.value }
        let task = Task {
            let folder = try TemporaryFolder.lasting("chat-model").path
            _ = try await Oracle.shared.call(
                "training.make_chat_model", ["folder": JSON(folder), "seed": 11, "bos": JSON(bos)])
            return folder
        }
        folders[bos] = task
        return try await task.value
    }
}

/// Rows of words that are a function of the seed.
func textRows(_ count: Int, seed: UInt64) -> String {
    var generator = SeededGenerator(seed: seed)
    let words = ["the", "quick", "answer", "to", "lazy", "dog", "12", "question", "is", "brown", "over", "fox"]
    func text(_ length: Int) -> String {
        (0..<length).map { _ in words[Int.random(in: words.indices, using: &generator)] }.joined(separator: " ")
    }
    return (0..<count).map { index in
        let prompt = text(Int.random(in: 1...6, using: &generator))
        let answer = text(Int.random(in: 1...5, using: &generator))
        switch index % 3 {
        case 0: return "{\"text\": \"\(prompt) \(answer)\"}\n"
        case 1: return "{\"prompt\": \"\(prompt)\", \"completion\": \" \(answer)\"}\n"
        default:
            return "{\"messages\": [{\"role\": \"user\", \"content\": \"\(prompt)\"}, "
                + "{\"role\": \"assistant\", \"content\": \"\(answer)\"}]}\n"
        }
    }.joined()
}

extension JSON {
    /// Examples as lists `[ids, supervised]`.
    init(rows: [Example]) {
        self = JSON(rows.map { [JSON($0.ids.map { JSON($0) }), JSON($0.supervised.map { JSON($0) })] })
    }
}

/// The largest absolute difference of two tensors.
func largestDifference(_ a: Tensor, _ b: Tensor) throws -> Double {
    try (a.detached() - b.detached()).absolute().maximum().item(as: Double.self)
}

/// The sentence of the error that a closure throws, or an empty one.
func message(_ body: () throws -> Void) -> String {
    do {
        try body()
        return ""
    } catch {
        return "\(error)"
    }
}
