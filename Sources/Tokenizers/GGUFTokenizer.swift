import Formats

extension Tokenizer {
    /// Loads the tokenizer of a GGUF file.
    ///
    /// The kinds are byte-level BPE (`gpt2`, with the pre-tokenizers that ``GGUFFile`` files of common models name),
    /// SentencePiece's BPE (`llama`), WordPiece (`bert`) and Unigram (`t5`).
    ///
    /// - Throws: ``TokenizerError`` or `FormatError` when the file has none, a broken one, or one of a kind that is not
    ///   supported; the message names what is.
    public init(gguf file: GGUFFile) throws {
        let reader = GGUFTokenizerReader(keys: GGUFTokenizerKeys(file: file))
        self.init(try reader.parts())
    }
}

/// Reads the tokenizer of a GGUF file.
private struct GGUFTokenizerReader {
    let keys: GGUFTokenizerKeys

    /// Control tokens that end a turn in the common templates, for files that do not name theirs.
    static let endOfTurnTokens = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]

    func parts() throws -> Tokenizer.Parts {
        // What kind it is comes first: that another one is needed matters more than anything wrong in it.
        let vocabulary = try GGUFVocabulary(keys)
        let tokens = vocabulary.tokens
        let stages = vocabulary.stages
        let preTokenizer = try stages.component("pre_tokenizer").map { try PreTokenizerJSON.preTokenizer($0) }
        let splitter = try PieceSplitter(preTokenizer, allowsRawBytes: vocabulary.isByteLevel)
        let added = addedTokens(vocabulary)
        let special = SpecialTokens(
            bos: try keys.id("bos", below: tokens.count) ?? vocabulary.beginning,
            eos: try keys.id("eos", below: tokens.count) ?? vocabulary.end,
            pad: try keys.id("padding", below: tokens.count), unk: try keys.id("unknown", below: tokens.count))
        let turns = [try keys.id("eot", below: tokens.count), try keys.id("eom", below: tokens.count)]
        let known = added.filter { $0.isSpecial && Self.endOfTurnTokens.contains($0.content) }.map(\.id)
        var parts = Tokenizer.Parts(model: vocabulary.model, preTokenizer: preTokenizer, splitter: splitter)
        parts.normalizer = try stages.component("normalizer").map { try NormalizerJSON.normalizer($0) }
        parts.decoder = try DecoderJSON.steps(stages.component("decoder"))
        parts.addedTokens = added
        parts.addedTokensArePlain = true
        parts.specialTokens = special
        parts.stopTokenIDs = ([special.eos] + turns).compactMap(\.self) + known
        let addsBOS = try keys.flag("tokenizer.ggml.add_bos_token") ?? vocabulary.pipeline.addsBOS
        let addsEOS = try keys.flag("tokenizer.ggml.add_eos_token") ?? vocabulary.pipeline.addsEOS
        parts.postProcessor = PostProcessor(bos: addsBOS ? special.bos : nil, eos: addsEOS ? special.eos : nil)
        if vocabulary.pipeline.trimsBlanks { parts.postProcessor.steps.insert(.trim(addPrefixSpace: false), at: 0) }
        parts.chatTemplateSource = keys.file.metadata["tokenizer.chat_template"]?.string
        parts.stages = stages.json
        parts.addedTokensArePlain = vocabulary.isByteLevel
        return parts
    }

    /// The tokens that are recognised in text: unknown, control and user defined ones.
    private func addedTokens(_ vocabulary: GGUFVocabulary) -> [AddedToken] {
        vocabulary.tokens.indices.compactMap { id in
            guard !vocabulary.tokens[id].utf8.isEmpty else { return nil }
            switch vocabulary.kinds[id] {
            case .unknown, .control: return AddedToken(id: id, content: vocabulary.tokens[id], isSpecial: true)
            case .userDefined:
                return AddedToken(id: id, content: vocabulary.tokens[id], isSpecial: false, normalized: false)
            default: return nil
            }
        }
    }
}
