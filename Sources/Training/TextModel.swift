import Backbones
import Crypto
import Formats
import Foundation
import Tokenizers

/// The part of a model that works on text: tokenizer, chat template and the length that it is made for.
///
/// It is read in an instant, without the weights and without the engine.
public struct TextModel: Sendable {
    /// The tokenizer.
    public let tokenizer: Tokenizer
    /// The chat template, or nil where the model has none.
    public let template: ChatTemplate?
    /// The positions that the model is made for; nil where they are unknown.
    public let maxPositions: Int?
    /// SHA-256, in hexadecimal, over the files that tokenizer and template come from and what they make of a sample; nil
    /// for parts that come from no file.
    package let digest: String?

    /// Puts parts together.
    ///
    /// Without a digest nothing that depends on them can be kept for later runs.
    public init(tokenizer: Tokenizer, template: ChatTemplate? = nil) {
        self.tokenizer = tokenizer
        self.template = template
        maxPositions = nil
        digest = nil
    }

    /// Reads a model's tokenizer and template.
    ///
    /// - Parameter name: A folder, a `.gguf` file, or an alias such as `smollm2-135m`.
    /// - Throws: `ModelError`, `FormatError`, `TokenizerError` or `TemplateError` saying what is missing or wrong.
    public static func load(_ name: String) throws -> TextModel {
        let location = try ModelCatalog.locate(name)
        guard case .gguf(let path) = location else { return try TextModel(location: location, gguf: nil) }
        return try TextModel(location: location, gguf: GGUFFile(path: path))
    }

    /// Reads the part of an opened model.
    ///
    /// - Throws: As ``load(_:)``.
    package init(location: Checkpoint.Location, gguf: GGUFFile?) throws {
        tokenizer = try gguf.map { try Tokenizer(gguf: $0) } ?? Tokenizer(folder: location.path)
        template = tokenizer.chatTemplateSource == nil ? nil : try tokenizer.chatTemplate()
        maxPositions = try Self.positions(location.path, gguf)
        var hash = SHA256()
        if let gguf {
            let head = try gguf.file.slice(offset: 0, count: min(gguf.dataOffset, gguf.file.count))
            withExtendedLifetime(gguf.file) { hash.update(bufferPointer: head.bytes) }
        } else {
            try Self.add(folder: location.path, to: &hash)
        }
        hash.update(data: Array(Self.sample(tokenizer, template).utf8))
        digest = hexadecimal(hash.finalize())
    }

    private static func positions(_ path: String, _ gguf: GGUFFile?) throws -> Int? {
        if let gguf { return try? LlamaConfiguration(gguf: gguf).maxPositionEmbeddings }
        return try? JSON.read(path: joined(path, "config.json"))["max_position_embeddings"]?.int
    }

    /// All small files of a model's folder, for any of them may say something about its text.
    private static func add(folder: String, to hash: inout SHA256) throws {
        let names = try RunLayout.names(in: folder).filter { name in
            ["json", "jinja", "txt", "model"].contains { name.hasSuffix("." + $0) } && !name.hasSuffix(".index.json")
        }
        for name in names.sorted() where PathKind(joined(folder, name)) == .file {
            guard let digest = try? FileDigests.digest(ofContent: joined(folder, name)) else { continue }
            hash.update(data: Array("\(name.utf8.count):\(name)=\(digest)\n".utf8))
        }
    }

    /// What the parts make of a text: programs that read the same files otherwise have other digests.
    private static func sample(_ tokenizer: Tokenizer, _ template: ChatTemplate?) -> String {
        let text =
            "Ab cd's  12345\u{9}é e\u{301} 漢字 Ωмир नमस्ते 👩\u{200D}👩\u{200D}👧 \u{0}\u{7F}\u{A0}\r\n\n\n{\"x\": [1.5, true]} "
            + "<s></s>"
        var parts = [
            graftVersion, "\(tokenizer.encode(text))", "\(tokenizer.stopTokenIDs)", "\(tokenizer.addsBOS)",
        ]
        if let template {
            let talk = [ChatMessage(role: "user", content: text), ChatMessage(role: "assistant", content: text)]
            let rendered = try? template.renderWithAssistantSpans(messages: talk)
            parts.append(rendered.map { "\($0.spans) \($0.text)" } ?? "refused")
        }
        return parts.joined(separator: "\n")
    }
}
