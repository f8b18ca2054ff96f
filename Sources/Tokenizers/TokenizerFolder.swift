import Formats
import Foundation

extension Tokenizer {
    /// Loads the tokenizer of a Hugging Face model folder.
    ///
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` (end-of-sequence tokens) and `chat_template.jinja`. Truncation and padding that
    /// tokenizer.json may ask for are left to the caller.
    ///
    /// - Throws: ``TokenizerError`` or `FormatError` when the folder has no tokenizer, a broken one, or one with a
    ///   component that is not supported; the message names it and what is.
    public init(folder: String) throws {
        self.init(try TokenizerFolderReader(folder: folder).parts())
    }
}

/// Reads the tokenizer files of a model folder.
private struct TokenizerFolderReader {
    let folder: String

    func parts() throws -> Tokenizer.Parts {
        let path = folder + "/tokenizer.json"
        var parts = try TokenizerJSONReader(path: path, json: try JSON.read(path: path)).parts()
        let configuration = try optionalJSON("tokenizer_config.json")
        // As in `transformers`, the map counts where the configuration is of the time before it listed all added tokens.
        let map = configuration?["added_tokens_decoder"] == nil ? try optionalJSON("special_tokens_map.json") : nil
        func role(_ name: String) throws -> Int? {
            guard let text = try tokenText(map?[name] ?? configuration?[name], name) else { return nil }
            return try addedID(text, name, &parts)
        }
        parts.specialTokens = SpecialTokens(
            bos: try role("bos_token"), eos: try role("eos_token"), pad: try role("pad_token"),
            unk: try role("unk_token"))
        overrideTemplate(configuration, &parts)
        parts.files = try TokenizerFiles(folder: folder)
        parts.stopTokenIDs = [parts.specialTokens.eos].compactMap(\.self) + (try generationStops())
        parts.chatTemplateSource = try chatTemplate(configuration)
        return parts
    }

    /// As in `transformers`, a post-processor that adds tokens decides alone; without one the configuration does.
    private func overrideTemplate(_ configuration: JSON?, _ parts: inout Tokenizer.Parts) {
        let flags = (configuration?["add_bos_token"]?.bool, configuration?["add_eos_token"]?.bool)
        guard flags.0 == true || flags.1 == true, parts.postProcessor.template == nil else { return }
        let template = PostProcessor(
            bos: flags.0 ?? false ? parts.specialTokens.bos : nil, eos: flags.1 ?? false ? parts.specialTokens.eos : nil
        )
        parts.postProcessor.steps += template.steps
    }

    private func optionalJSON(_ name: String) throws -> JSON? {
        let path = folder + "/" + name
        return FileManager.default.fileExists(atPath: path) ? try JSON.read(path: path) : nil
    }

    /// A token is written as a string or as an object with its content.
    private func tokenText(_ json: JSON?, _ name: String) throws -> String? {
        guard let json, !json.isNull else { return nil }
        guard let text = json.string ?? json["content"]?.string else {
            throw TokenizerError("\(folder)/tokenizer_config.json, \"\(name)\": expected a string, found \(json.kind)")
        }
        return text
    }

    /// The number of a token with a role; such a token is recognised in text, as `transformers` does it.
    private func addedID(_ text: String, _ name: String, _ parts: inout Tokenizer.Parts) throws -> Int {
        guard let id = parts.id(of: text) else {
            throw TokenizerError(
                "\(folder)/tokenizer_config.json names \(pythonRepr(text)) as \"\(name)\", but tokenizer.json has no "
                    + "such token; add it there or take the line out")
        }
        if let place = parts.addedTokens.firstIndex(where: { $0.id == id }) {
            parts.addedTokens[place].isSpecial = true
        } else {
            parts.addedTokens.append(AddedToken(id: id, content: text, isSpecial: true))
        }
        return id
    }

    private func generationStops() throws -> [Int] {
        guard let value = try optionalJSON("generation_config.json")?["eos_token_id"], !value.isNull else { return [] }
        let ids = (value.array ?? [value]).map(\.int)
        guard ids.allSatisfy({ $0 != nil }) else {
            throw TokenizerError(
                "\(folder)/generation_config.json, \"eos_token_id\": expected an integer or a list of integers")
        }
        return ids.compactMap(\.self)
    }

    private func chatTemplate(_ configuration: JSON?) throws -> String? {
        let path = folder + "/chat_template.jinja"
        if FileManager.default.fileExists(atPath: path) {
            let file = try MappedFile(path: path)
            let source = withExtendedLifetime(file) { String(validating: file.bytes, as: UTF8.self) }
            guard let source else { throw TokenizerError("\(path): expected a text in UTF-8") }
            return source
        }
        guard let value = configuration?["chat_template"], !value.isNull else { return nil }
        if let source = value.string { return source }
        let named = value.array?.first { $0["name"]?.string == "default" }
        guard let source = named?["template"]?.string else {
            throw TokenizerError(
                "\(folder)/tokenizer_config.json, \"chat_template\": expected a string or a list with a template named "
                    + "\"default\"")
        }
        return source
    }
}
