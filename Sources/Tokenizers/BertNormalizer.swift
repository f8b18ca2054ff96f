/// `BertNormalizer`: cleans text up, puts blanks around ideographs, and takes accents and capitals off.
struct BertNormalizer: TextNormalizer {
    let cleansText: Bool
    let separatesIdeographs: Bool
    let stripsAccents: Bool
    let lowercases: Bool

    private static let decomposition = UnicodeNormalization(form: .nfd)
    private static let lowercase = LowercaseNormalizer()

    func normalize(_ text: inout NormalizedText) {
        // ASCII characters change alone, whatever is beside them: only the other steps need the whole text.
        let isASCII = text.bytes.allSatisfy { $0 < 0x80 }
        if isASCII { return normalizeASCII(&text) }
        if cleansText { clean(&text) }
        if separatesIdeographs { separate(&text) }
        if stripsAccents {
            Self.decomposition.normalize(&text)
            text.filter { $0 < 0x300 || !ScalarClass.of($0).contains(.nonspacingMark) }
        }
        if lowercases { Self.lowercase.normalize(&text) }
    }

    private func normalizeASCII(_ text: inout NormalizedText) {
        text.transform { source, output in
            while output.place < source.count {
                let start = output.place
                var end = start
                while end < source.count, isKept(source[end]) { end += 1 }
                output.keep(end - start)
                guard end < source.count else { break }
                let byte = source[end]
                if cleansText, byte == 0x7F || byte < 0x20 {
                    let isSpace = byte == 0x09 || byte == 0x0A || byte == 0x0D
                    isSpace ? output.replace(with: " ") : output.drop(1)
                } else {
                    output.replace(with: Unicode.Scalar(byte | 0x20))
                }
            }
        }
    }

    @inline(__always)
    private func isKept(_ byte: UInt8) -> Bool {
        if byte &- UInt8(ascii: "A") < 26 { return !lowercases }
        return !cleansText || byte >= 0x20 && byte != 0x7F
    }

    private func clean(_ text: inout NormalizedText) {
        text.transform { source, output in
            while output.place < source.count {
                let byte = source[output.place]
                if byte >= 0x20, byte < 0x7F {
                    output.keep(1)
                    continue
                }
                let scalar = DecodedScalar(source, at: output.place, end: source.count)
                let kind = ScalarClass.of(scalar.value)
                let isLineSpace = scalar.value == 0x09 || scalar.value == 0x0A || scalar.value == 0x0D
                if scalar.value == 0xFFFD || (kind.contains(.other) && !isLineSpace) {
                    output.drop(scalar.length)
                } else if kind.contains(.whitespace) {
                    output.replace(with: " ")
                } else {
                    output.keep(scalar.length)
                }
            }
        }
    }

    private func separate(_ text: inout NormalizedText) {
        text.transform { source, output in
            while output.place < source.count {
                let byte = source[output.place]
                let decoded = DecodedScalar(source, at: output.place, end: source.count)
                guard byte >= 0xE3, Self.isIdeograph(decoded.value), let scalar = Unicode.Scalar(decoded.value) else {
                    output.keep(decoded.length)
                    continue
                }
                output.replace(with: " ")
                output.insert(scalar)
                output.insert(" ")
            }
        }
    }

    private static func isIdeograph(_ value: UInt32) -> Bool {
        switch value {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
            0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
            true
        default: false
        }
    }
}
