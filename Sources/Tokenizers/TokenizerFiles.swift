import Formats
import Foundation

/// The files of a tokenizer folder, so that they can be written again as they were.
///
/// They are mapped, not copied: a vocabulary of many megabytes takes no memory for that.
struct TokenizerFiles: Sendable {
    /// By name, those that there are.
    let contents: [String: Content]

    /// One file.
    struct Content: Sendable {
        fileprivate let file: MappedFile

        /// What is in it.
        var text: String {
            withExtendedLifetime(file) { String(decoding: file.bytes, as: UTF8.self) }
        }
    }

    init(folder: String) throws {
        var contents: [String: Content] = [:]
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder + "/" + name
            guard FileManager.default.fileExists(atPath: path) else { continue }
            contents[name] = Content(file: try MappedFile(path: path))
        }
        self.contents = contents
    }
}
