import CPCRE2

/// The named sets of Oniguruma in PCRE2's words, with the characters that are newer than PCRE2's tables.
enum RegexProperties {
    /// The names that may stand in `[:name:]`.
    static let posixNames: Set<String> = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ]

    /// The set of a name; nil when there is none.
    static func set(_ name: String) -> RegexSet? {
        var key = ""
        for scalar in name.unicodeScalars where !" _-".unicodeScalars.contains(scalar) {
            key.unicodeScalars.append(contentsOf: scalar.properties.lowercaseMapping.unicodeScalars)
        }
        if let items = fixed[key] { return RegexSet(items: items) }
        if let category = categories[key] ?? (categories.values.contains(key) ? key : nil) { return general(category) }
        switch key {
        case "alpha", "alphabetic": return binary("Alphabetic") { $0.properties.isAlphabetic }
        case "upper", "uppercase": return binary("Uppercase") { $0.properties.isUppercase }
        case "lower", "lowercase": return binary("Lowercase") { $0.properties.isLowercase }
        case "alnum":
            return binary("Alphabetic", "\\p{Nd}") { $0.properties.isAlphabetic || category($0) == "nd" }
        case "word":
            return binary("Alphabetic", "\\p{M}\\p{Nd}\\p{Pc}") {
                $0.properties.isAlphabetic || ["nd", "pc"].contains(category($0)) || category($0).hasPrefix("m")
            }
        case "punct": return RegexSet(items: (general("p")?.items ?? "") + (general("s")?.items ?? ""))
        default: return script(name)
        }
    }

    /// Sets that never change.
    private static let fixed: [String: String] = [
        "space":
            "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}",
        "whitespace":
            "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}",
        "blank": "\\x{9}\\p{Zs}", "cntrl": "\\p{Cc}", "ascii": "\\x{0}-\\x{7f}", "any": "\\x{0}-\\x{10ffff}",
        "xdigit": "0-9a-fA-F", "asciihexdigit": "0-9a-fA-F",
    ]

    private static let categories: [String: String] = [
        "letter": "l", "uppercaseletter": "lu", "lowercaseletter": "ll", "titlecaseletter": "lt",
        "modifierletter": "lm", "otherletter": "lo", "mark": "m", "nonspacingmark": "mn", "spacingmark": "mc",
        "enclosingmark": "me", "number": "n", "decimalnumber": "nd", "digit": "nd", "letternumber": "nl",
        "othernumber": "no", "punctuation": "p", "connectorpunctuation": "pc", "dashpunctuation": "pd",
        "openpunctuation": "ps", "closepunctuation": "pe", "initialpunctuation": "pi", "finalpunctuation": "pf",
        "otherpunctuation": "po", "symbol": "s", "mathsymbol": "sm", "currencysymbol": "sc", "modifiersymbol": "sk",
        "othersymbol": "so", "separator": "z", "spaceseparator": "zs", "lineseparator": "zl",
        "paragraphseparator": "zp", "other": "c", "control": "cc", "format": "cf", "privateuse": "co",
    ]

    private static func general(_ category: String) -> RegexSet? {
        let name = category.prefix(1).uppercased() + category.dropFirst()
        return RegexSet(items: "\\p{\(name)}" + newer { Self.category($0).hasPrefix(category) })
    }

    private static func binary(
        _ name: String, _ more: String = "", _ contains: (Unicode.Scalar) -> Bool
    ) -> RegexSet {
        let items = "\\p{\(name)}" + more
        // Such properties have changed for old characters too: what PCRE2 does not find of them is added.
        var text = String.UnicodeScalarView()
        for value in 0x80...UInt32(0x3_3479) {
            guard let scalar = Unicode.Scalar(value), contains(scalar), let age = scalar.properties.age,
                (age.major, age.minor) <= (16, 0)
            else { continue }
            text.append(scalar)
        }
        let missing = Regex.matches(ofPlain: "[^\(items)]", in: String(text))
        return RegexSet(items: items + ranges(missing))
    }

    /// A script, where PCRE2 knows it; its extensions are not meant.
    private static func script(_ name: String) -> RegexSet? {
        guard !name.isEmpty, name.unicodeScalars.allSatisfy({ $0.properties.isAlphabetic && $0.isASCII || $0 == "_" })
        else { return nil }
        let items = "\\p{sc:\(name)}"
        let newer = newerScripts[name.lowercased()] ?? []
        var status: Int32 = 0
        var offset = 0
        let text = Array("[\(items)]".utf8)
        let code = text.withUnsafeBufferPointer {
            pcre2_compile_8($0.baseAddress, $0.count, UInt32(PCRE2_UTF), &status, &offset, nil)
        }
        guard let code else { return nil }
        pcre2_code_free_8(code)
        return RegexSet(items: items + ranges(newer.joined().compactMap { Unicode.Scalar($0) }.filter(isNewer)))
    }

    /// Where scripts have gained characters since version 14.
    private static let newerScripts: [String: [ClosedRange<UInt32>]] = [
        "han": [0x2EBF0...0x2EE5D, 0x31350...0x323AF], "hiragana": [0x1B132...0x1B132],
        "katakana": [0x1B155...0x1B155], "cyrillic": [0x1C89...0x1C8A, 0x1E030...0x1E06D, 0x1E08F...0x1E08F],
        "latin": [0xA7CB...0xA7CD, 0xA7DA...0xA7DC, 0x1DF25...0x1DF2A], "lao": [0xECE...0xECE],
        "arabic": [0x897...0x897, 0x10EC2...0x10EC4, 0x10EFC...0x10EFF], "kannada": [0xCF3...0xCF3],
        "devanagari": [0x11B00...0x11B09], "balinese": [0x1B4E...0x1B4F, 0x1B7F...0x1B7F],
    ]

    // MARK: Newer characters

    /// The characters that Oniguruma knows and this PCRE2 does not, of those that belong to a set, as ranges.
    private static func newer(_ contains: (Unicode.Scalar) -> Bool) -> String { ranges(newerScalars.filter(contains)) }

    /// Scalars in ascending order as what stands between brackets.
    private static func ranges(_ scalars: [Unicode.Scalar]) -> String {
        var text = ""
        var run: ClosedRange<UInt32>?
        func flush() {
            guard let run else { return }
            text += "\\x{\(String(run.lowerBound, radix: 16))}-\\x{\(String(run.upperBound, radix: 16))}"
        }
        for scalar in scalars {
            if let known = run, known.upperBound + 1 == scalar.value {
                run = known.lowerBound...scalar.value
            } else {
                flush()
                run = scalar.value...scalar.value
            }
        }
        flush()
        return text
    }

    /// The scalars between PCRE2's version of Unicode and Oniguruma's, which is 16.
    private static let newerScalars = recent.joined().compactMap { Unicode.Scalar($0) }.filter(isNewer)

    private static func isNewer(_ scalar: Unicode.Scalar) -> Bool {
        guard let age = scalar.properties.age else { return false }
        return (age.major, age.minor) > knownVersion && (age.major, age.minor) <= (16, 0)
    }

    /// The version of Unicode that PCRE2 knows.
    private static let knownVersion: (Int, Int) = {
        var buffer = [UInt8](repeating: 0, count: 64)
        pcre2_config_8(UInt32(PCRE2_CONFIG_UNICODE_VERSION), &buffer)
        let known = buffer.prefix { $0 != 0 }.split(separator: UInt8(ascii: ".")).map {
            Int(String(decoding: $0, as: UTF8.self)) ?? 0
        }
        return (known.first ?? 16, known.dropFirst().first ?? 0)
    }()

    /// Where the characters lie that Unicode has gained since version 14.
    private static let recent: [ClosedRange<UInt32>] = [
        0x88F...0x897, 0xC5C...0xCF3, 0xECE...0xECE, 0x1ACF...0x1AEB, 0x1B4E...0x1B7F, 0x1C89...0x1C8A,
        0x20C1...0x20C1, 0x2427...0x2429, 0x2B96...0x2B96, 0x2FFC...0x2FFF, 0x31E4...0x31EF, 0xA7CB...0xA7F1,
        0xFBC3...0xFBD2, 0xFD90...0xFDCE, 0x105C0...0x105F3, 0x10940...0x10959, 0x10D40...0x10D8F, 0x10EC2...0x10EFF,
        0x1123F...0x11241, 0x11380...0x113E2, 0x116D0...0x116E3, 0x11B00...0x11BF9, 0x11DB0...0x11DE9,
        0x11F00...0x11F5A, 0x1342F...0x143FA, 0x16100...0x16139, 0x16D40...0x16D79, 0x16EA0...0x16ED3,
        0x16FF2...0x16FF6, 0x187F8...0x18DF2, 0x1B132...0x1B155, 0x1CC00...0x1CEF0, 0x1D2C0...0x1D2D3,
        0x1DF25...0x1DF2A, 0x1E030...0x1E08F, 0x1E4D0...0x1E4F9, 0x1E5D0...0x1E5FF, 0x1E6C0...0x1E6FF,
        0x1F6D8...0x1F6DC, 0x1F774...0x1F7D9, 0x1F8B2...0x1F8D8, 0x1FA54...0x1FAF8, 0x1FBCB...0x1FBFA,
        0x2B739...0x2B73F, 0x2CEA2...0x2CEAD, 0x2EBF0...0x2EE5D, 0x31350...0x33479,
    ]

    /// The general category by its short name in lower case.
    private static func category(_ scalar: Unicode.Scalar) -> String {
        switch scalar.properties.generalCategory {
        case .uppercaseLetter: "lu"
        case .lowercaseLetter: "ll"
        case .titlecaseLetter: "lt"
        case .modifierLetter: "lm"
        case .otherLetter: "lo"
        case .nonspacingMark: "mn"
        case .spacingMark: "mc"
        case .enclosingMark: "me"
        case .decimalNumber: "nd"
        case .letterNumber: "nl"
        case .otherNumber: "no"
        case .connectorPunctuation: "pc"
        case .dashPunctuation: "pd"
        case .openPunctuation: "ps"
        case .closePunctuation: "pe"
        case .initialPunctuation: "pi"
        case .finalPunctuation: "pf"
        case .otherPunctuation: "po"
        case .mathSymbol: "sm"
        case .currencySymbol: "sc"
        case .modifierSymbol: "sk"
        case .otherSymbol: "so"
        case .spaceSeparator: "zs"
        case .lineSeparator: "zl"
        case .paragraphSeparator: "zp"
        case .control: "cc"
        case .format: "cf"
        case .privateUse: "co"
        default: "cn"
        }
    }
}
