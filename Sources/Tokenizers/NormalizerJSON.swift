import Formats

/// Reads the normalizer of a tokenizer.json.
enum NormalizerJSON {
    /// What makes a normalizer from its object.
    typealias Maker = @Sendable (JSONComponent) throws -> any TextNormalizer

    /// The kinds by the name that tokenizer.json gives them: one line a kind.
    static let makers: [String: Maker] = [
        "NFC": { _ in UnicodeNormalization(form: .nfc) },
        "NFD": { _ in UnicodeNormalization(form: .nfd) },
        "NFKC": { _ in UnicodeNormalization(form: .nfkc) },
        "NFKD": { _ in UnicodeNormalization(form: .nfkd) },
        "Lowercase": { _ in LowercaseNormalizer() },
        "StripAccents": { _ in StripAccentsNormalizer() },
        "Strip": { StripNormalizer(left: try $0.flag("strip_left"), right: try $0.flag("strip_right")) },
        "Prepend": { PrependNormalizer(prefix: try $0.string("prepend")) },
        "Replace": {
            ReplaceNormalizer(pattern: try $0.searchPattern("pattern"), content: try $0.string("content"))
        },
        "Precompiled": { try PrecompiledCharsmap($0) },
        "Nmt": { _ in NmtNormalizer() },
        "ByteLevel": { _ in ByteLevelNormalizer() },
        "BertNormalizer": { component in
            let lowercases = try component.flag("lowercase", default: true)
            return BertNormalizer(
                cleansText: try component.flag("clean_text", default: true),
                separatesIdeographs: try component.flag("handle_chinese_chars", default: true),
                stripsAccents: try component.flag("strip_accents", default: lowercases), lowercases: lowercases)
        },
        "Sequence": { component in
            NormalizerSequence(steps: try component.components("normalizers").map { try normalizer($0) })
        },
    ]

    static func normalizer(_ component: JSONComponent) throws -> any TextNormalizer {
        let type = try component.type()
        guard let maker = makers[type] else { throw component.unsupported(type, supported: Array(makers.keys)) }
        return try maker(component)
    }
}
