import Formats

/// The stages around the model, which a GGUF file only names; here they are as a tokenizer.json would say them.
struct GGUFPipeline {
    var normalizer: JSON = .null
    var preTokenizer: JSON = .null
    var decoder: JSON
    /// Whether a piece that is a token as a whole is not merged.
    var ignoresMerges = false
    /// What holds where the file does not say.
    var addsBOS = false
    var addsEOS = false
    /// Whether blanks at the ends of tokens are none of their places.
    var trimsBlanks = false

    /// The stages under the keys of a tokenizer.json.
    var json: JSON { ["normalizer": normalizer, "pre_tokenizer": preTokenizer, "decoder": decoder] }
}

// MARK: Byte-level BPE

extension GGUFPipeline {
    /// The pipelines of byte-level BPE by the name in `tokenizer.ggml.pre`.
    static let byteLevel: [String: GGUFPipeline] = [
        "default": byteLevel(splits(defaultPatterns)),
        "deepseek-r1-qwen": byteLevel(splits([qwen2]), normalizer: ["type": "NFC"]),
        "gpt-2": byteLevel([]),
        "llama-bpe": byteLevel(splits([llama3]), ignoresMerges: true, addsBOS: true),
        "qwen2": byteLevel(splits([qwen2]), normalizer: ["type": "NFC"]),
        "qwen35": byteLevel(splits([qwen35]), normalizer: ["type": "NFC"]),
        "roberta-bpe": byteLevel([], addsBOS: true, addsEOS: true, trimsBlanks: true),
        "smollm": byteLevel([["type": "Digits", "individual_digits": true]], usesPattern: true),
        "tekken": byteLevel(splits([tekken]), ignoresMerges: true, addsBOS: true),
    ]

    private static func byteLevel(
        _ steps: [JSON], normalizer: JSON = .null, ignoresMerges: Bool = false, addsBOS: Bool = false,
        addsEOS: Bool = false, trimsBlanks: Bool = false, usesPattern: Bool = false
    ) -> GGUFPipeline {
        let last: JSON = [
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": JSON(steps.isEmpty || usesPattern),
        ]
        let sequence: JSON = ["type": "Sequence", "pretokenizers": JSON(steps + [last])]
        return GGUFPipeline(
            normalizer: normalizer, preTokenizer: steps.isEmpty ? last : sequence,
            decoder: ["type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true],
            ignoresMerges: ignoresMerges, addsBOS: addsBOS, addsEOS: addsEOS, trimsBlanks: trimsBlanks)
    }

    private static func splits(_ patterns: [String]) -> [JSON] {
        patterns.map {
            ["type": "Split", "pattern": ["Regex": .string($0)], "behavior": "Isolated", "invert": false]
        }
    }

    private static let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    private static let llama3 =
        contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let qwen2 =
        contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    private static let qwen35 =
        contractions + #"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"#
        + #"|\s+(?!\S)|\s+"#
    private static let tekken =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"#
        + #"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"#
        + #"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    /// What the format's own programs do for files that name no better: four cuts, one after the other.
    private static let defaultPatterns = [
        #"[\p{P}\$\+<=>\^~\|]+"#,
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"#,
        #"\p{N}+"#,
        "[0-9][0-9][0-9]",
    ]
}

// MARK: Other models

extension GGUFPipeline {
    private static let metaspace = "\u{2581}"

    /// SentencePiece's BPE: blanks become `▁`, and one is put before each stretch of text when `addsSpace`.
    static func sentencePieceBPE(addsSpace: Bool) -> GGUFPipeline {
        let blank: JSON = ["type": "Replace", "pattern": ["String": " "], "content": .string(metaspace)]
        let prepend: JSON = ["type": "Prepend", "prepend": .string(metaspace)]
        var decoders: [JSON] = [
            ["type": "Replace", "pattern": ["String": .string(metaspace)], "content": " "], ["type": "ByteFallback"],
            ["type": "Fuse"],
        ]
        if addsSpace { decoders.append(["type": "Strip", "content": " ", "start": 1, "stop": 0]) }
        return GGUFPipeline(
            normalizer: ["type": "Sequence", "normalizers": JSON(addsSpace ? [prepend, blank] : [blank])],
            decoder: ["type": "Sequence", "decoders": JSON(decoders)], addsBOS: true)
    }

    /// BERT's pipeline; a vocabulary with capital letters is of text that kept its case.
    static func wordPiece(lowercases: Bool) -> GGUFPipeline {
        GGUFPipeline(
            normalizer: [
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": .null,
                "lowercase": JSON(lowercases),
            ],
            preTokenizer: ["type": "BertPreTokenizer"],
            decoder: ["type": "WordPiece", "prefix": "##", "cleanup": true], addsBOS: true, addsEOS: true)
    }

    /// T5's pipeline.
    ///
    /// - Parameters:
    ///   - charsmap: The table of replacements in base64, or nil.
    ///   - removesExtraBlanks: Whether runs of white space count as one blank.
    ///   - addsSpace: Whether words begin with `▁` also where no blank is before them.
    static func unigram(charsmap: String?, removesExtraBlanks: Bool, addsSpace: Bool) -> GGUFPipeline {
        let scheme: JSON = addsSpace ? "always" : "never"
        let blanks: JSON = [
            "type": "Metaspace", "replacement": .string(metaspace), "prepend_scheme": scheme, "split": true,
        ]
        let words: JSON = ["type": "Sequence", "pretokenizers": JSON([["type": "WhitespaceSplit"], blanks])]
        return GGUFPipeline(
            normalizer: charsmap.map { ["type": "Precompiled", "precompiled_charsmap": .string($0)] } ?? .null,
            preTokenizer: removesExtraBlanks ? words : blanks, decoder: blanks, addsEOS: true)
    }
}
