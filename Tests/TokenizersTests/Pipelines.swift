import Formats
import Testing

/// A tokenizer.json that the reference trains, with the components of a known model or with a single one.
struct Pipeline: Sendable, CustomTestStringConvertible {
    let name: String
    var normalizer: JSON = .null
    var preTokenizer: JSON = .null
    var postProcessor: JSON = .null
    var decoder: JSON = .null
    var options: JSON = ["unk_token": "<unk>"]
    var added: JSON = []
    var testDescription: String { name }

    var components: JSON {
        ["normalizer": normalizer, "pre_tokenizer": preTokenizer, "post_processor": postProcessor, "decoder": decoder]
    }

    // MARK: Parts

    static let gpt2Words = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    static let llama3Words =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let qwen2Words =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let qwen35Words =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let clipWords =
        #"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"#
    static let o200kWords =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

    static func split(
        _ pattern: String, _ behavior: String = "Isolated", invert: Bool = false, isRegex: Bool = true
    ) -> JSON {
        [
            "type": "Split", "pattern": .object([isRegex ? "Regex" : "String": .string(pattern)]),
            "behavior": .string(behavior), "invert": JSON(invert),
        ]
    }

    static func byteLevel(prefix: Bool = false, trim: Bool = false, regex: Bool = true) -> JSON {
        [
            "type": "ByteLevel", "add_prefix_space": JSON(prefix), "trim_offsets": JSON(trim), "use_regex": JSON(regex),
        ]
    }

    static func metaspace(_ scheme: String, split: Bool = true) -> JSON {
        [
            "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": .string(scheme), "split": JSON(split),
        ]
    }

    static func sequence(_ key: String, _ steps: JSON...) -> JSON { .object(["type": "Sequence", key: JSON(steps)]) }

    static func replace(_ pattern: String, _ content: String, isRegex: Bool = false) -> JSON {
        [
            "type": "Replace", "pattern": .object([isRegex ? "Regex" : "String": .string(pattern)]),
            "content": .string(content),
        ]
    }

    /// `<s> A </s>`, and `<s> A </s> B:1 </s>:1`, or with BOS alone.
    static func template(eos: Bool = true, first: Int = 1, last: Int = 2) -> JSON {
        func special(_ id: String, _ type: Int) -> JSON {
            ["SpecialToken": ["id": .string(id), "type_id": JSON(type)]]
        }
        func text(_ id: String, _ type: Int) -> JSON { ["Sequence": ["id": .string(id), "type_id": JSON(type)]] }
        let end: [JSON] = eos ? [special("</s>", 0)] : []
        let single: [JSON] = [special("<s>", 0), text("A", 0)] + end
        return [
            "type": "TemplateProcessing", "single": JSON(single),
            "pair": JSON(single + [text("B", 1)] + (eos ? [special("</s>", 1)] : [special("<s>", 1)])),
            "special_tokens": [
                "<s>": ["id": "<s>", "ids": [JSON(first)], "tokens": ["<s>"]],
                "</s>": ["id": "</s>", "ids": [JSON(last)], "tokens": ["</s>"]],
            ],
        ]
    }

    private static let bytes: JSON = ["byte_level": true]
    private static let visibleSpace = replace(" ", "\u{2581}")
    private static let fallback: JSON = ["unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true]
    private static let strip: JSON = ["type": "Strip", "content": " ", "start": 1, "stop": 0]

    // MARK: Known models

    static let models: [Pipeline] = [
        Pipeline(
            name: "GPT-2", preTokenizer: byteLevel(), postProcessor: byteLevel(), decoder: byteLevel(), options: bytes),
        Pipeline(
            name: "Llama-3",
            preTokenizer: sequence("pretokenizers", split(llama3Words), byteLevel(regex: false)),
            postProcessor: sequence("processors", byteLevel(prefix: true), template(eos: false)), decoder: byteLevel(),
            options: ["byte_level": true, "ignore_merges": true],
            added: [["content": "<|eot_id|>", "special": true], ["content": "<|begin|>", "special": true]]),
        Pipeline(
            name: "Qwen2", normalizer: ["type": "NFC"],
            preTokenizer: sequence("pretokenizers", split(qwen2Words), byteLevel(regex: false)),
            postProcessor: byteLevel(regex: false), decoder: byteLevel(), options: bytes,
            added: [["content": "<|im_end|>", "special": true], ["content": "<tool_call>", "special": false]]),
        Pipeline(
            name: "Qwen3.5", normalizer: ["type": "NFC"],
            preTokenizer: sequence("pretokenizers", split(qwen35Words), byteLevel(regex: false)),
            decoder: byteLevel(), options: bytes),
        Pipeline(
            name: "o200k", preTokenizer: sequence("pretokenizers", split(o200kWords), byteLevel(regex: false)),
            decoder: byteLevel(), options: bytes),
        Pipeline(
            name: "RoBERTa", preTokenizer: byteLevel(),
            postProcessor: [
                "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": true,
                "add_prefix_space": false,
            ], decoder: byteLevel(), options: bytes,
            added: [["content": "<mask>", "special": true, "lstrip": true]]),
        Pipeline(
            name: "byte level with prefix and trim", preTokenizer: byteLevel(prefix: true, trim: true),
            postProcessor: byteLevel(prefix: true, trim: true), decoder: byteLevel(), options: bytes),
        Pipeline(
            name: "CLIP",
            normalizer: sequence(
                "normalizers", ["type": "NFC"], replace(#"\s+"#, " ", isRegex: true), ["type": "Lowercase"]),
            preTokenizer: sequence(
                "pretokenizers", split(clipWords, "Removed", invert: true), byteLevel(regex: false)),
            postProcessor: [
                "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": false,
                "add_prefix_space": false,
            ], decoder: byteLevel(),
            options: ["byte_level": true, "end_of_word_suffix": "</w>", "unk_token": "<unk>"]),
        Pipeline(
            name: "Llama-2",
            normalizer: sequence("normalizers", ["type": "Prepend", "prepend": "\u{2581}"], visibleSpace),
            postProcessor: template(eos: false),
            decoder: sequence(
                "decoders", replace("\u{2581}", " "), ["type": "ByteFallback"], ["type": "Fuse"], strip),
            options: fallback),
        Pipeline(
            name: "Mistral", preTokenizer: metaspace("first", split: false), postProcessor: template(eos: false),
            decoder: sequence(
                "decoders", replace("\u{2581}", " "), ["type": "ByteFallback"], ["type": "Fuse"], strip),
            options: fallback,
            added: [["content": "[INST]", "special": true], ["content": "[/INST]", "special": true]]),
        Pipeline(
            name: "Gemma", normalizer: visibleSpace, preTokenizer: split(" ", "MergedWithPrevious", isRegex: false),
            postProcessor: template(eos: false),
            decoder: sequence("decoders", replace("\u{2581}", " "), ["type": "ByteFallback"], ["type": "Fuse"]),
            options: fallback),
    ]

    // MARK: Single components

    static let normalizers: [Pipeline] = [
        ("NFC", ["type": "NFC"]), ("NFD", ["type": "NFD"]), ("NFKC", ["type": "NFKC"]), ("NFKD", ["type": "NFKD"]),
        ("Lowercase", ["type": "Lowercase"]), ("StripAccents", ["type": "StripAccents"]),
        ("NFD and StripAccents", sequence("normalizers", ["type": "NFD"], ["type": "StripAccents"])),
        ("Strip", ["type": "Strip", "strip_left": true, "strip_right": true]),
        ("Strip left", ["type": "Strip", "strip_left": true, "strip_right": false]),
        ("Prepend", ["type": "Prepend", "prepend": "ab "]), ("Replace", replace("the", "thé")),
        ("Replace by regex", replace(#"[aeiou](?=\w)|\p{Lu}+"#, "", isRegex: true)),
        ("Replace nothing", replace("x*", "-", isRegex: true)), ("Nmt", ["type": "Nmt"]),
        ("ByteLevel", ["type": "ByteLevel"]), ("BertNormalizer", bert()), ("cased", bert(lowercase: false)),
        ("accents kept", bert(strip: false)), ("accents alone", bert(lowercase: false, strip: true)),
        ("no cleaning", bert(clean: false, ideographs: false)),
        (
            "several",
            sequence(
                "normalizers", ["type": "Strip", "strip_left": true, "strip_right": true], ["type": "NFKD"],
                ["type": "Prepend", "prepend": "\u{2581}"], replace(" ", "\u{2581}\u{2581}"), ["type": "Lowercase"])
        ),
    ].map { Pipeline(name: $0.0, normalizer: $0.1) }

    private static func bert(
        lowercase: Bool = true, strip: Bool? = nil, clean: Bool = true, ideographs: Bool = true
    ) -> JSON {
        [
            "type": "BertNormalizer", "clean_text": JSON(clean), "handle_chinese_chars": JSON(ideographs),
            "strip_accents": strip.map { JSON($0) } ?? .null, "lowercase": JSON(lowercase),
        ]
    }

    static let preTokenizers: [Pipeline] =
        [
            ("Whitespace", ["type": "Whitespace"]), ("WhitespaceSplit", ["type": "WhitespaceSplit"]),
            ("BertPreTokenizer", ["type": "BertPreTokenizer"]),
            ("UnicodeScripts", ["type": "UnicodeScripts"]),
            ("FixedLength", ["type": "FixedLength", "length": 3]),
            ("CharDelimiterSplit", ["type": "CharDelimiterSplit", "delimiter": "e"]),
            ("Digits", ["type": "Digits", "individual_digits": true]),
            ("runs of digits", ["type": "Digits", "individual_digits": false]),
            ("Metaspace always", metaspace("always")), ("Metaspace first", metaspace("first")),
            ("Metaspace never", metaspace("never")), ("Metaspace unsplit", metaspace("always", split: false)),
            ("words and Metaspace", sequence("pretokenizers", ["type": "WhitespaceSplit"], metaspace("first"))),
            ("byte level", byteLevel()), ("byte level with prefix", byteLevel(prefix: true, regex: false)),
            (
                "byte level and digits",
                sequence("pretokenizers", byteLevel(), ["type": "Digits", "individual_digits": true])
            ),
        ].map { Pipeline(name: $0.0, preTokenizer: $0.1) }
        + ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"].flatMap { behavior in
            [
                Pipeline(
                    name: "Punctuation \(behavior)",
                    preTokenizer: ["type": "Punctuation", "behavior": .string(behavior)]),
                Pipeline(name: "Split \(behavior)", preTokenizer: split(" ", behavior, isRegex: false)),
                Pipeline(
                    name: "Split by regex \(behavior)", preTokenizer: split(#"\s|[[:upper:]]|\d{2}"#, behavior)),
                Pipeline(
                    name: "Split inverted \(behavior)", preTokenizer: split(#"\w+|[^\w\s]"#, behavior, invert: true)),
            ]
        }

    static let expressions = [
        #"\w"#, #"\W"#, #"\s+"#, #"\S"#, #"\d"#, #"\D"#, #"\h"#, #"\p{L}"#, #"\P{L}"#, #"\p{^Lu}"#, #"\p{Letter}"#,
        #"\p{N}"#, #"\p{M}"#, #"\p{P}"#, #"\p{S}"#, #"\p{Z}"#, #"\p{Nd}"#, #"\p{Han}"#, #"\p{Hiragana}"#, #"\p{Latin}"#,
        #"\p{Arabic}"#, #"\p{Greek}+"#, #"\p{Cyrillic}"#,
        #"[[:alpha:]]"#, #"[[:upper:]]"#, #"[[:lower:]]"#, #"[[:alnum:]]"#, #"[[:digit:]]"#, #"[[:space:]]"#,
        #"[[:punct:]]"#,
        #"[[:^alpha:]\d]"#, #"[[:word:]]"#, #"[^\w\s]"#, #"[\W&&\S]"#, #"[a-z&&[^b]]"#, #"[\p{L}&&[^\p{Han}a]]"#,
        #"[^\S\r\n]"#,
        #"\b"#, #"\B."#, #"(?i)s"#, #"(?i:k)"#, #"(?i)[k-s]"#, #"(?i:\u00e5)"#, #"(?i:σ)"#, #"a(?i)b|\."#, #"(?m:b.)"#,
        #"b.$"#, #"^a"#,
        #"\x61"#, #"\x{0301}+"#, #"(?<!b) "#, #"(?<=a)."#, #"a{,2}b"#, #"(?:a|b){1}?"#, #"[^a]{2}+"#, #".??b"#,
        #"a*+."#, #"\.|(?<n>b)\g<n>?"#, "[一-龥぀-ゟ゠-ヿ]+",
        #"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"#, #"\p{Alphabetic}"#, #"\R"#, #"\O\."#, #"[\]\[\-^&]"#, #"[b\]]"#,
        #"\Qb"#,
        ##" ?[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]+"##,
    ]

    static let others: [Pipeline] = [
        Pipeline(
            name: "continuing prefix", preTokenizer: ["type": "Whitespace"],
            decoder: ["type": "WordPiece", "prefix": "##", "cleanup": true],
            options: ["unk_token": "<unk>", "continuing_subword_prefix": "##"]),
        Pipeline(
            name: "end of word", preTokenizer: ["type": "WhitespaceSplit"], postProcessor: template(),
            decoder: ["type": "BPEDecoder", "suffix": "</w>"],
            options: ["unk_token": "<unk>", "end_of_word_suffix": "</w>", "fuse_unk": true]),
        Pipeline(
            name: "byte fallback without unknown", preTokenizer: metaspace("always"),
            postProcessor: ["type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]],
            decoder: metaspace("always"), options: ["byte_fallback": true]),
        Pipeline(
            name: "CTC", decoder: ["type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true]),
        Pipeline(
            name: "Strip and Replace", preTokenizer: ["type": "Whitespace"],
            decoder: sequence(
                "decoders", replace("e+", "E", isRegex: true),
                ["type": "Strip", "content": "a", "start": 2, "stop": 0], ["type": "Fuse"])),
        Pipeline(
            name: "added tokens", normalizer: ["type": "Lowercase"], preTokenizer: ["type": "Whitespace"],
            added: [
                ["content": "Alone", "special": false, "single_word": true],
                ["content": "[L]", "special": true, "lstrip": true],
                ["content": "[R]", "special": true, "rstrip": true],
                ["content": "Norm", "special": false, "normalized": true],
                ["content": "norm al", "special": false, "normalized": true, "lstrip": true],
                ["content": "Raw", "special": false, "normalized": false], ["content": "RawNorm", "special": false],
                ["content": " [S]", "special": true, "lstrip": true, "rstrip": true],
            ]),
    ]
}
