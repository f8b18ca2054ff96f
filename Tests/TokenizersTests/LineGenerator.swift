import TestSupport

/// Makes lines that tokenizers get wrong: many scripts, odd white space, digits, controls, special tokens inside text.
struct LineGenerator {
    private var random: SeededGenerator
    private let specials: [String]

    init(seed: UInt64, specials: [String] = []) {
        random = SeededGenerator(seed: seed)
        self.specials = specials
    }

    mutating func lines(_ count: Int, fragments: Int = 12) -> [String] {
        (0..<count).map { _ in line(fragments: fragments) }
    }

    mutating func line(fragments: Int = 12) -> String {
        (0..<Int.random(in: 0...fragments, using: &random)).map { _ in fragment() }.joined()
    }

    private mutating func pick<Element>(_ choices: [Element]) -> Element {
        choices[Int.random(in: choices.indices, using: &random)]
    }

    private mutating func scalars(_ range: ClosedRange<UInt32>, _ count: Int) -> String {
        var text = String.UnicodeScalarView()
        for _ in 0..<count {
            if let scalar = Unicode.Scalar(UInt32.random(in: range, using: &random)) { text.append(scalar) }
        }
        return String(text)
    }

    private mutating func fragment() -> String {
        switch Int.random(in: 0..<16, using: &random) {
        case 0, 1, 2: pick(Self.words) + pick(["", " ", " ", " ", "  ", ", ", ". ", "\n"])
        case 3: " " + pick(Self.words)
        case 4: pick(Self.code)
        case 5: String(UInt64.random(in: 0...1 << UInt64.random(in: 1...60, using: &random), using: &random))
        case 6: pick(Self.spaces) + pick(["", pick(Self.spaces), pick(Self.spaces) + pick(Self.words)])
        case 7: scalars(pick(Self.scripts), Int.random(in: 1...8, using: &random))
        case 8: pick(Self.emoji)
        case 9: pick(Self.words) + scalars(0x300...0x36F, Int.random(in: 1...3, using: &random))
        case 10: pick(["'", "’", "\""]) + pick(["s", "t", "re", "ve", "m", "ll", "d", "S", "RE", "x", "l", ""])
        case 11: pick(Self.numerals)
        case 12: scalars(0...0x1F, Int.random(in: 1...3, using: &random))
        case 13: scalars(0x80...0x10FFFF, Int.random(in: 1...4, using: &random))
        case 14: specials.isEmpty ? pick(Self.words) : pick(specials)
        default:
            String(
                repeating: pick(["a", " ", "=", "-", "\n", "ab", "é", "\t"]),
                count: Int.random(in: 1...70, using: &random))
        }
    }

    private static let words = [
        "the", "Tokenizer", "low", "rank", "adapter", "Strasse", "naïve", "café", "don't", "I'll", "we've", "it's", "x",
        "MÜNCHEN", "ﬁne", "übergröße", "antidisestablishmentarianism", "Привет", "мир", "γειά", "שלום", "مرحبا", "नमस्ते",
        "สวัสดี", "你好世界", "こんにちは", "안녕하세요", "ẛ̣", "e\u{301}", "\u{E9}", "Ⅷ", "½", "m²", "CO₂", "_name_", "foo.bar",
        "user@example.org", "https://example.org/a?b=c&d=1", "2024-01-31", "3.14159", "1e-5", "0xFF", "A1B2", "x86_64",
    ]
    private static let code = [
        "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n", "let x: [Int] = []",
        "{\"key\": [1, 2.5, null]}", "\\frac{a}{b}", "<div class=\"a\">&nbsp;</div>", "SELECT * FROM t WHERE id=10;",
        "\r\n",
        "#!/bin/sh\n", "|---|---|\n", "<|", "|>", "<|im_", "im_end|>", "```swift\n",
    ]
    private static let spaces = [
        " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u{0B}", "\u{0C}", "\u{85}", "\u{A0}", "\u{1680}", "\u{2003}",
        "\u{2009}", "\u{200B}", "\u{2028}", "\u{2029}", "\u{202F}", "\u{205F}", "\u{3000}", "\u{FEFF}", "\u{180E}",
        " \u{3000}", "\u{3000} ", "\t \n ",
    ]
    private static let scripts: [ClosedRange<UInt32>] = [
        0x41...0x7A, 0xC0...0x17F, 0x370...0x3FF, 0x400...0x4FF, 0x531...0x58A, 0x5D0...0x5EA, 0x620...0x64A,
        0x660...0x669,
        0x900...0x97F, 0x980...0x9FF, 0xE01...0xE5B, 0xF00...0xFDA, 0x10A0...0x10FF, 0x1100...0x11FF, 0x1780...0x17F9,
        0x1E00...0x1FFE, 0x2070...0x209C, 0x2100...0x218B, 0x2460...0x24FF, 0x3041...0x30FF, 0x3105...0x312F,
        0x4E00...0x9FFF, 0xA000...0xA48C, 0xAC00...0xD7A3, 0xFB00...0xFDFF, 0xFF00...0xFFEF, 0x10000...0x100FA,
        0x10A00...0x10A58, 0x12000...0x12399, 0x1D400...0x1D7FF, 0x1F100...0x1F1FF, 0x20000...0x2A6DF,
        0xE000...0xF8FF, 0xE0100...0xE01EF,
    ]
    private static let emoji = [
        "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇫🇷🇯🇵", "👨🏿‍💻", "❤️", "❤", "1️⃣", "🧑‍🚀 ", "🫠", "☃️", "🤷‍♀️",
        "\u{200D}", "\u{FE0F}", "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    ]
    private static let numerals = [
        "٣٤٥", "१२३", "௧௨", "Ⅻ", "ⅷ", "①②", "¼½", "x²³", "〇一二", "𝟘𝟙𝟚", "١2३", "10 000", "1,234.5", "00", "𐄇", "㉈", "𑁒",
    ]
}
