import Formats

/// Reads the decoder of a tokenizer.json.
enum DecoderJSON {
    private static let supported = [
        "BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Sequence", "Strip",
        "WordPiece",
    ]

    static func steps(_ component: JSONComponent?) throws -> [DecoderStep] {
        guard let component else { return [.join] }
        switch try component.type() {
        case "Sequence": return try component.components("decoders").flatMap { try steps($0) }
        case "ByteLevel": return [.byteLevel]
        case "WordPiece":
            return [
                .wordPiece(
                    prefix: Array((try component.optionalString("prefix") ?? "##").utf8),
                    cleansUp: try component.flag("cleanup", default: true))
            ]
        case "Metaspace":
            let (replacement, scheme, _) = try component.metaspace()
            return [.metaspace(replacement: Array(replacement.utf8), dropsFirst: scheme != .never)]
        case "ByteFallback": return [.byteFallback]
        case "Fuse": return [.fuse]
        case "Replace":
            return [
                .replace(try component.searchPattern("pattern"), content: Array(try component.string("content").utf8))
            ]
        case "Strip":
            return [
                .strip(
                    content: Array(try component.scalar("content").utf8), start: try component.count("start"),
                    stop: try component.count("stop"))
            ]
        case "BPEDecoder": return [.bytePair(suffix: try component.optionalString("suffix") ?? "</w>")]
        case "CTC":
            return [
                .ctc(
                    padToken: try component.optionalString("pad_token") ?? "<pad>",
                    wordDelimiter: try component.optionalString("word_delimiter_token") ?? "|",
                    cleansUp: try component.flag("cleanup", default: true))
            ]
        case let type: throw component.unsupported(type, supported: supported)
        }
    }
}

extension JSONComponent {
    /// The fields of a Metaspace; the old `add_prefix_space` must not contradict `prepend_scheme`.
    func metaspace() throws -> (replacement: Unicode.Scalar, scheme: PrependScheme, split: Bool) {
        var scheme = PrependScheme.always
        if let name = try optionalString("prepend_scheme") {
            guard let known = PrependScheme(rawValue: name) else {
                throw error("prepend_scheme", "expected always, first or never, found \(pythonRepr(name))")
            }
            scheme = known
        } else if try !flag("add_prefix_space", default: true) {
            scheme = .never
        }
        guard try flag("add_prefix_space", default: scheme != .never) || scheme == .never else {
            throw error("add_prefix_space", "false contradicts the \"prepend_scheme\" \(pythonRepr(scheme.rawValue))")
        }
        return (try scalar("replacement"), scheme, try flag("split", default: true))
    }
}
