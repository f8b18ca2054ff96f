import Formats
import Foundation
import Torch

/// Small good files to begin with.
enum Seeds {
    static func text(_ path: String) throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: path))) }

    static func write(_ bytes: [UInt8], _ path: String) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    static func write(_ text: String, _ path: String) throws { try write(Array(text.utf8), path) }

    // MARK: Models

    static let configuration = """
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-05, "max_position_embeddings": 32, "tie_word_embeddings": true, "hidden_act": "silu",
        "rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false, "torch_dtype": "float32"}
        """

    static let modelShapes: [(String, [Int])] = [
        ("model.embed_tokens.weight", [16, 8]), ("model.norm.weight", [8]),
        ("model.layers.0.input_layernorm.weight", [8]), ("model.layers.0.post_attention_layernorm.weight", [8]),
        ("model.layers.0.self_attn.q_proj.weight", [8, 8]), ("model.layers.0.self_attn.k_proj.weight", [4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", [4, 8]), ("model.layers.0.self_attn.o_proj.weight", [8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", [12, 8]), ("model.layers.0.mlp.up_proj.weight", [12, 8]),
        ("model.layers.0.mlp.down_proj.weight", [8, 12]),
    ]

    static func tensors(_ shapes: [(String, [Int])], to path: String) throws {
        var infos = KeyedList<SafetensorsInfo>()
        for (name, shape) in shapes { infos.appendIfNew(key: name, value: SafetensorsInfo(type: .f32, shape: shape)) }
        let writer = try SafetensorsWriter(path: path, tensors: infos, metadata: ["format": "pt"])
        for name in writer.order {
            let count = infos[name]?.shape.reduce(4, *) ?? 0
            try [UInt8](repeating: 0x3C, count: count).withUnsafeBytes { try writer.write(name, $0) }
        }
        try writer.finish()
    }

    static func model(in folder: String) throws {
        try write(configuration, folder + "/config.json")
        try tensors(modelShapes, to: folder + "/model.safetensors")
    }

    static func shards(in folder: String) throws {
        try tensors(Array(modelShapes[..<5]), to: folder + "/model-00001-of-00002.safetensors")
        try tensors(Array(modelShapes[5...]), to: folder + "/model-00002-of-00002.safetensors")
        // What an index must not reach.
        try tensors(modelShapes, to: folder + "/../outside.safetensors")
    }

    static let index: String = {
        let pairs = modelShapes.enumerated().map { index, tensor in
            "\"\(tensor.0)\": \"model-0000\(index < 5 ? 1 : 2)-of-00002.safetensors\""
        }
        return "{\"metadata\": {\"total_size\": 100}, \"weight_map\": {\(pairs.joined(separator: ", "))}}"
    }()

    // MARK: GGUF

    /// A GGUF file with a model's keys, a vocabulary and tensors of several types.
    static func gguf() -> [UInt8] {
        var bytes = Array("GGUF".utf8)
        func number<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
            (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> Value(8 * $0)) }
        }
        func string(_ text: String) -> [UInt8] { number(UInt64(text.utf8.count)) + Array(text.utf8) }
        func strings(_ values: [String]) -> [UInt8] {
            number(UInt32(9)) + number(UInt32(8)) + number(UInt64(values.count)) + values.flatMap(string)
        }
        func word(_ value: UInt32) -> [UInt8] { number(UInt32(4)) + number(value) }
        func text(_ value: String) -> [UInt8] { number(UInt32(8)) + string(value) }
        let tokens = ["a", "b", "ab", "\u{120}", "<s>", "</s>", "c", "d"]
        let keys: [(String, [UInt8])] = [
            ("general.architecture", text("llama")), ("general.alignment", word(32)),
            ("llama.block_count", word(1)), ("llama.context_length", word(32)), ("llama.embedding_length", word(32)),
            ("llama.feed_forward_length", word(32)), ("llama.attention.head_count", word(2)),
            ("llama.attention.layer_norm_rms_epsilon", number(UInt32(6)) + number(Float(1e-5).bitPattern)),
            ("tokenizer.ggml.model", text("gpt2")), ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.tokens", strings(tokens)), ("tokenizer.ggml.merges", strings(["a b"])),
            (
                "tokenizer.ggml.token_type",
                number(UInt32(9)) + number(UInt32(5)) + number(UInt64(8))
                    + [1, 1, 1, 1, 3, 3, 1, 1].flatMap { number(UInt32($0)) }
            ),
            ("tokenizer.ggml.bos_token_id", word(4)), ("tokenizer.ggml.eos_token_id", word(5)),
            ("tokenizer.ggml.add_bos_token", number(UInt32(7)) + [1]),
            ("tokenizer.chat_template", text("{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")),
        ]
        let tensors: [(String, [UInt64], UInt32, Int)] = [
            ("token_embd.weight", [32, 8], 8, 8 * 34), ("output_norm.weight", [32], 0, 128),
            ("blk.0.attn_q.weight", [32, 2], 2, 2 * 18), ("half", [4, 2], 1, 16),
        ]
        bytes += number(UInt32(3)) + number(UInt64(tensors.count)) + number(UInt64(keys.count))
        for (key, value) in keys { bytes += string(key) + value }
        var offset = 0
        for (name, shape, type, count) in tensors {
            bytes += string(name) + number(UInt32(shape.count)) + shape.flatMap(number) + number(type)
            bytes += number(UInt64(offset))
            offset += (count + 31) / 32 * 32
        }
        bytes += [UInt8](repeating: 0, count: (32 - bytes.count % 32) % 32)
        return bytes + [UInt8](repeating: 0x11, count: offset)
    }

    // MARK: Tokenizers

    static let tokenizers = [
        """
        {"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 4, "content": "<s>", "special": true},
        {"id": 5, "content": "</s>", "special": true, "lstrip": false, "rstrip": true, "normalized": false,
        "single_word": false}], "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true}, "post_processor": null, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": {"a": 0, "b": 1, "ab": 2, "\u{120}": 3, "<s>": 4, "</s>": 5}, "merges": ["a b"]}}
        """,
        """
        {"added_tokens": [{"id": 3, "content": "<s>", "special": true}], "normalizer": null, "pre_tokenizer":
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": true}]}, "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE",
        "vocab": {"a": 0, "1": 1, "\u{120}": 2, "\u{120}a": 4}, "merges": [["\u{120}", "a"]]}}
        """,
    ]

    static let tokenizerWords = [
        "NFC", "NFKC", "Lowercase", "Replace", "Prepend", "Sequence", "Split", "Digits", "Punctuation", "Metaspace",
        "Whitespace", "BertPreTokenizer", "TemplateProcessing", "ByteFallback", "Fuse", "Strip", "WordPiece", "Unigram",
        "WordLevel", "BPE", "Precompiled", "Regex", "String", "pattern", "behavior", "content", "type", "vocab",
        "merges",
        "unk_token", "byte_fallback", "Isolated", "Removed", "MergedWithPrevious", "\\\\p{L}+|(?i:'s)", "(?:a|a)*$",
    ]

    // MARK: Templates

    static let templates = [
        """
        {%- set ns = namespace(n=0) %}{% macro m(x, y=2) %}{{ x }}{{ y * 2 }}{{ caller() if caller }}{% endmacro %}
        {%- for message in messages if message.role != 'x' %}
            {{- '<|' + message['role'] + '|>' ~ message.content | trim }}{% set ns.n = ns.n + loop.index0 %}
            {%- if loop.last and not message.tool_calls is defined %}{{ eos_token }}{% elif false %}b{% else %}c{% endif %}
        {%- endfor %}{{ m(1, y=ns.n) }}{% call m(*[1], **{'y': 3}) %}z{% endcall %}
        {%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
        """,
        """
        {{ bos_token }}{% for k, v in {'a': [1, 2.5, none], 2: (1,)}|items recursive %}{{ k }}={{ v | tojson(indent=2) }}
        {{ loop.previtem | default('x') }}{{ loop.changed(k) }}{{ loop.cycle('a', 'b') }}{% endfor %}
        {% filter upper | indent(2) %}{{ messages[::-1] | map(attribute='role') | join(', ') }}{% endfilter %}
        {% set x | replace('a', 'b') %}{{ 'a%s' % 'b' }}{{ '{:>5}'.format(3) }}{% endset %}{{ x[1:-1] ~ x.split('b', 1)[0] }}
        {{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ range(3) | batch(2) | list }}
        {{ ('a' if 1 > 2 else 'c').upper().center(9, '*').rsplit('*', 2) | tojson }}{{ raise_exception('no') if false }}
        """,
    ]

    static let templateWords = [
        "{{", "}}", "{%", "%}", "{#", "#}", "-%}", "{%-", "for", "in", "if", "else", "elif", "endif", "endfor", "set",
        "endset",
        "macro", "endmacro", "call", "endcall", "filter", "recursive", "loop", "namespace", "not", "and", "is",
        "defined", "|",
        "join", "map", "select", "sort", "tojson", "groupby", "batch", "slice", "sum", "range(99999)", "* 99999999",
        "** 99",
        "[::-1]", "[1:", "(", ")", "messages", "[", "]", "~", "+", "//", "%", "loop(x)", "break", "continue", "raw",
        "endraw",
        "center(9999999)", "replace('', x)", "generation", "endgeneration", "'%99d' % 1", "format", "x.x.x",
        "9999999999",
    ]

    // MARK: Recipes and runs

    static let recipes = [
        """
        # A recipe.
        model: smollm2-135m
        data: rows.jsonl
        method: lora
        settings: {r: 8, lora_alpha: 16.0, target_modules: [q_proj, v_proj]}
        learning_rate: 1e-4
        epochs: 2
        batch_size: 4
        max_length: 512
        seed: 42
        """,
        """
        model: "a\\tb"
        method: lortra
        settings:
          r: 4
          target_modules:
            - q_proj
            - 'k_proj'
        steps: 10
        warmup_ratio: 0.1
        """,
    ]

    static let recipeWords = [
        "&a", "*a", "<<: *a", "!!binary", "!!int", "---", "...", "|", ">-", "? ", ": ", "- ", "{a: *a}", "%YAML 1.1",
        "\t", "#",
        "no", "on", "0x1F", "1_000", ".inf", ".nan", "~", "2001-01-01", "target_modules", "settings", "seed", "dtype",
    ]

    static let rows = [
        """
        {"text": "a b c"}
        {"prompt": "a", "completion": "b"}

        {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": null, "tool_calls": [{"function":
        {"name": "f", "arguments": "{\\"a\\": 1}"}}]}], "tools": [{"type": "function"}]}
        """.split(separator: "\n", omittingEmptySubsequences: false).enumerated().map {
            $0.offset == 3 ? $0.element + " " : $0.element + "\n"
        }
        .joined(),
        "{\"text\": \"one\"}\r\n{\"text\": \"two \\ud83d\\ude00\"}\r\n",
    ]

    static let jsonRows = ["[{\"text\": \"a\"}, {\"prompt\": \"b\", \"completion\": \"\\u00e9\"}]"]

    static let tables = [
        "prompt,completion\na,b\n\"c, \"\"d\"\"\",\"e\nf\"\n", "text\r\none\r\ntwo\r\n",
    ]

    static let tabbedTables = ["prompt\tcompletion\na\tb\n\"c\t\"\"d\"\"\"\t\"e\nf\"\n", "text\r\none\r\n"]

    static let tableWords = ["\"", ",", "\t", "\r", "\n", "\"\"", "\",\"", "text", "\u{FEFF}", ";"]

    /// Twelve rows of JSON Lines, packed by gzip.
    static let packedRows: [UInt8] = [
        0x1F, 0x8B, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xAB, 0x56, 0x2A, 0x49, 0xAD, 0x28, 0x51, 0xB2,
        0x52, 0x50, 0x4A, 0x54, 0x48, 0x52, 0x48, 0x56, 0xAA, 0xE5, 0xAA, 0x56, 0x2A, 0x28, 0xCA, 0xCF, 0x2D, 0x80,
        0x88, 0x29, 0xE9, 0x28, 0x28, 0x25, 0x03, 0x79, 0x39, 0xA9, 0x25, 0x99, 0xF9, 0x79, 0x20, 0xA1, 0x24, 0xB0,
        0x92, 0x51, 0x4D, 0x60, 0x4D, 0x00, 0x5A, 0xC0, 0x4F, 0x7B, 0x3E, 0x01, 0x00, 0x00,
    ]

    static let moreTokenizers = [
        """
        {"added_tokens": [{"id": 0, "content": "[UNK]", "special": true}, {"id": 1, "content": "[CLS]", "special": true}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}, "model": {"type": "WordPiece",
        "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[CLS]": 1, "a": 2, "##b": 3, "b": 4}}}
        """,
        """
        {"added_tokens": [{"id": 0, "content": "<unk>", "special": true}], "normalizer": {"type": "Sequence",
        "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "post_processor": null, "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
        "split": true}, "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["\u{2581}a", -1.0], ["b", -2.5], ["a", -3]]}}
        """,
        """
        {"added_tokens": [{"id": 3, "content": "<s>", "special": true}], "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex":
        "(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 0, "b": 1,
        "ab": 2, "<s>": 3}, "merges": ["a b"]}}
        """,
        """
        {"added_tokens": [{"id": 0, "content": "<unk>", "special": true}], "normalizer": {"type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "},
        "content": "\u{2581}"}]}, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}, "model": {"type": "BPE",
        "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": {"<unk>": 0, "<0x0A>": 1,
        "\u{2581}": 2, "a": 3, "\u{2581}a": 4}, "merges": ["\u{2581} a"]}}
        """,
    ]
}
