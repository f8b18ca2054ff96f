import Formats

/// Reads the pre-tokenizer of a tokenizer.json.
enum PreTokenizerJSON {
    private static let supported = [
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation",
        "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    ]

    static func preTokenizer(_ component: JSONComponent) throws -> PreTokenizer {
        switch try component.type() {
        case "ByteLevel":
            return .byteLevel(
                addPrefixSpace: try component.flag("add_prefix_space", default: true),
                useRegex: try component.flag("use_regex", default: true))
        case "Digits": return .digits(individual: try component.flag("individual_digits", default: false))
        case "Split":
            _ = try component.searchPattern("pattern")  // so that a bad expression is named with its key
            return .split(
                pattern: try component.pattern("pattern"), behavior: try component.behavior(default: nil),
                invert: try component.flag("invert", default: false))
        case "Metaspace":
            let (replacement, scheme, split) = try component.metaspace()
            return .metaspace(replacement: replacement, prependScheme: scheme, split: split)
        case "BertPreTokenizer": return .bert
        case "Whitespace": return .whitespace
        case "WhitespaceSplit": return .whitespaceSplit
        case "Punctuation": return .punctuation(behavior: try component.behavior(default: .isolated))
        case "CharDelimiterSplit": return .charDelimiterSplit(delimiter: try component.scalar("delimiter"))
        case "UnicodeScripts": return .unicodeScripts
        case "FixedLength":
            let length = try component.count("length", default: 5)
            guard length > 0 else { throw component.error("length", "expected a number above 0, found 0") }
            return .fixedLength(length)
        case "Sequence": return .sequence(try component.components("pretokenizers").map { try preTokenizer($0) })
        case let type: throw component.unsupported(type, supported: supported)
        }
    }
}

extension JSONComponent {
    fileprivate func behavior(default fallback: SplitBehavior?) throws -> SplitBehavior {
        guard let name = try optionalString("behavior") else {
            if let fallback { return fallback }
            throw error("behavior", "expected a string, found nothing")
        }
        guard let behavior = SplitBehavior(rawValue: name) else {
            let names = SplitBehavior.allCases.map(\.rawValue).joined(separator: ", ")
            throw error("behavior", "expected one of \(names), found \(pythonRepr(name))")
        }
        return behavior
    }
}
