import Formats
import Foundation

extension Tokenizer {
    /// Writes the tokenizer in Hugging Face's files, so that `transformers` gives the same tokens.
    ///
    /// A tokenizer of a folder is written as it was, byte for byte, with what its files say beyond encoding.
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, and `chat_template.jinja` when there is a
    /// template; each file whole or not at all.
    ///
    /// - Parameter folder: A folder that exists.
    /// - Throws: ``TokenizerError`` when tokenizer.json cannot express the vocabulary, `FormatError` when a file cannot
    ///   be written.
    public func write(toFolder folder: String) throws {
        let own = [
            ("tokenizer.json", files == nil ? try text(tokenizerJSON()) : ""),
            ("tokenizer_config.json", text(configurationJSON)), ("special_tokens_map.json", text(roles)),
        ]
        for (name, content) in own {
            if let file = files?.contents[name] {
                try AtomicFile.write(file.text, to: folder + "/" + name)
            } else {
                try AtomicFile.write(content, to: folder + "/" + name)
            }
        }
        let template = folder + "/chat_template.jinja"
        if let chatTemplateSource {
            try AtomicFile.write(chatTemplateSource, to: template)
        } else if FileManager.default.fileExists(atPath: template) {
            try FileManager.default.removeItem(atPath: template)
        }
    }

    private func text(_ json: JSON) -> String {
        json.pythonText(indent: 2, ensureASCII: false) + "\n"
    }

    /// The roles with the text of their tokens.
    private var roles: JSON {
        var result = KeyedList<JSON>()
        let ids = [
            ("bos_token", specialTokens.bos), ("eos_token", specialTokens.eos), ("pad_token", specialTokens.pad),
            ("unk_token", specialTokens.unk),
        ]
        for (name, id) in ids { result[name] = id.flatMap { token($0) }.map { .string($0) } }
        return .object(result)
    }

    private var configurationJSON: JSON {
        var result = roles
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
        result["clean_up_tokenization_spaces"] = false
        result["add_bos_token"] = JSON(addsBOS)
        result["add_eos_token"] = JSON(addsEOS)
        return result
    }

    private func tokenizerJSON() throws -> JSON {
        let added: [JSON] = addedTokens.map { token in
            [
                "id": JSON(token.id), "content": .string(token.content), "single_word": JSON(token.singleWord),
                "lstrip": JSON(token.lstrip), "rstrip": JSON(token.rstrip), "normalized": JSON(token.normalized),
                "special": JSON(token.isSpecial),
            ]
        }
        return [
            "version": "1.0", "truncation": nil, "padding": nil, "added_tokens": JSON(added),
            "normalizer": stages?["normalizer"] ?? .null, "pre_tokenizer": stages?["pre_tokenizer"] ?? .null,
            "post_processor": template, "decoder": stages?["decoder"] ?? .null, "model": try modelJSON(),
        ]
    }

    /// The tokens around a text as a post-processor.
    private var template: JSON {
        var items: [JSON] = [["Sequence": ["id": "A", "type_id": 0]]]
        var specials = KeyedList<JSON>()
        func item(_ id: Int?) -> [JSON] {
            guard let id, let name = token(id) else { return [] }
            specials[name] = ["id": .string(name), "ids": JSON([JSON(id)]), "tokens": JSON([.string(name)])]
            return [["SpecialToken": ["id": .string(name), "type_id": 0]]]
        }
        items = item(addsBOS ? specialTokens.bos : nil) + items + item(addsEOS ? specialTokens.eos : nil)
        guard items.count > 1 else { return .null }
        return [
            "type": "TemplateProcessing", "single": JSON(items),
            "pair": JSON(items + [["Sequence": ["id": "B", "type_id": 1]]]),
            "special_tokens": .object(specials),
        ]
    }

    private func modelJSON() throws -> JSON {
        guard let model = model as? BytePairModel, case .bytes = model.alphabet else {
            throw TokenizerError("a tokenizer with a \(model.name) model cannot be written")
        }
        var vocabulary = KeyedList<JSON>()
        for id in 0..<vocabularySize {
            guard let text = token(id) else { continue }
            guard vocabulary.appendIfNew(key: text, value: JSON(id)) else {
                throw TokenizerError(
                    "the token \(pythonRepr(text)) has the number \(id) and an earlier one; tokenizer.json cannot "
                        + "express that")
            }
        }
        let merges = model.merges.ordered.map { merge in
            JSON([.string(token(Int(merge.left)) ?? ""), .string(token(Int(merge.right)) ?? "")])
        }
        return [
            "type": "BPE", "dropout": nil,
            "unk_token": model.unknownToken.flatMap { token(Int($0)) }.map { .string($0) } ?? .null,
            "continuing_subword_prefix": nil, "end_of_word_suffix": nil, "fuse_unk": JSON(model.fusesUnknown),
            "byte_fallback": false, "ignore_merges": JSON(model.ignoresMerges), "vocab": .object(vocabulary),
            "merges": JSON(merges),
        ]
    }
}
