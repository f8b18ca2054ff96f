/// Applies normalizers one after the other.
struct NormalizerSequence: TextNormalizer {
    let steps: [any TextNormalizer]

    func normalize(_ text: inout NormalizedText) {
        for step in steps { step.normalize(&text) }
    }
}

/// `Lowercase`: every character on its own, whatever stands beside it.
struct LowercaseNormalizer: TextNormalizer {
    func normalize(_ text: inout NormalizedText) {
        guard text.bytes.contains(where: { $0 >= 0x80 || $0 &- UInt8(ascii: "A") < 26 }) else { return }
        text.transform { source, output in
            while output.place < source.count {
                let byte = source[output.place]
                if byte < 0x80 {
                    let isUpper = byte &- UInt8(ascii: "A") < 26
                    isUpper ? output.replace(with: Unicode.Scalar(byte | 0x20)) : output.keep(1)
                    continue
                }
                let decoded = DecodedScalar(source, at: output.place, end: source.count)
                guard let scalar = Unicode.Scalar(decoded.value) else {
                    output.keep(decoded.length)
                    continue
                }
                Self.lowered(scalar) { part, isFirst in
                    isFirst ? output.replace(with: part) : output.insert(part)
                }
            }
        }
    }

    /// Calls `body` with the scalars of the lower case of a scalar.
    static func lowered(_ scalar: Unicode.Scalar, _ body: (_ part: Unicode.Scalar, _ isFirst: Bool) -> Void) {
        if ScalarClass.of(scalar.value).contains(.caseless) { return body(scalar, true) }
        var isFirst = true
        for part in scalar.properties.lowercaseMapping.unicodeScalars {
            body(part, isFirst)
            isFirst = false
        }
    }
}

/// `StripAccents`: leaves combining marks out.
struct StripAccentsNormalizer: TextNormalizer {
    func normalize(_ text: inout NormalizedText) {
        text.filter { $0 < 0x300 || !Self.isMark($0) }
    }

    private static func isMark(_ value: UInt32) -> Bool {
        guard let scalar = Unicode.Scalar(value), let age = scalar.properties.age else { return false }
        // The reference's table is that of Unicode 9; three characters have changed since then.
        guard (age.major, age.minor) <= (9, 0), value != 0x111C9 else { return false }
        if value == 0x1CF2 || value == 0x1CF3 { return true }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: return true
        default: return false
        }
    }
}

/// `Strip`: leaves white space at the ends out.
struct StripNormalizer: TextNormalizer {
    let left: Bool
    let right: Bool

    func normalize(_ text: inout NormalizedText) {
        let left = left
        let right = right
        text.transform { source, output in
            var start = 0
            var end = source.count
            while left, start < end, let next = Self.space(source, at: start) { start += next }
            while right, end > start {
                var index = end - 1
                while index > start, source[index] & 0xC0 == 0x80 { index -= 1 }
                guard Self.space(source, at: index) != nil else { break }
                end = index
            }
            output.drop(start)
            output.keep(end - start)
        }
    }

    private static func space(_ text: UnsafeBufferPointer<UInt8>, at index: Int) -> Int? {
        let scalar = DecodedScalar(text, at: index, end: text.count)
        return ScalarClass.of(scalar.value).contains(.whitespace) ? scalar.length : nil
    }
}

/// `Prepend`: puts a text before every stretch that is not empty.
struct PrependNormalizer: TextNormalizer {
    let prefix: String

    func normalize(_ text: inout NormalizedText) {
        let prefix = prefix
        guard !text.bytes.isEmpty, !prefix.utf8.isEmpty else { return }
        text.transform { source, output in output.prepend(prefix.unicodeScalars, to: source) }
    }
}

extension TextTransform {
    /// Puts characters before the first one and keeps the rest; the text must not be empty.
    mutating func prepend(_ prefix: some Sequence<Unicode.Scalar>, to source: UnsafeBufferPointer<UInt8>) {
        let first = DecodedScalar(source, at: 0, end: source.count)
        var isFirst = true
        for scalar in prefix {
            isFirst ? replace(with: scalar) : insert(scalar)
            isFirst = false
        }
        if isFirst { return keep(source.count) }
        if let scalar = Unicode.Scalar(first.value) { insert(scalar) }
        keep(source.count - place)
    }
}

/// `Replace`: puts a text in the place of all matches.
struct ReplaceNormalizer: TextNormalizer {
    let pattern: SearchPattern
    let content: String

    func normalize(_ text: inout NormalizedText) {
        let content = content.unicodeScalars
        let hasMatch = text.bytes.withUnsafeBufferPointer { source in
            var found = false
            if case .string(let bytes) = pattern.kind, let first = bytes.first { return source.contains(first) }
            pattern.forEachMatch(source) { _ in found = true }
            return found
        }
        guard hasMatch else { return }
        text.transform { source, output in
            pattern.forEachMatch(source) { match in
                output.keep(match.lowerBound - output.place)
                output.drop(match.count)
                for scalar in content { output.insert(scalar) }
            }
            output.keep(source.count - output.place)
        }
    }
}

/// `Nmt`: the clean-up of a translation system.
struct NmtNormalizer: TextNormalizer {
    func normalize(_ text: inout NormalizedText) {
        text.filter { value in
            switch value {
            case 0x01...0x08, 0x0B, 0x0E...0x1F, 0x7F, 0x8F, 0x9F: false
            default: true
            }
        }
        text.map { value in
            switch value {
            case 0x09, 0x0A, 0x0C, 0x0D, 0x1680, 0x200B...0x200F, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD: " "
            default: nil
            }
        }
    }
}

/// `ByteLevel`: writes every byte as a character of the byte-level alphabet.
struct ByteLevelNormalizer: TextNormalizer {
    func normalize(_ text: inout NormalizedText) {
        text.transform { source, output in output.writeBytes(of: source) }
    }
}

extension TextTransform {
    /// Writes all bytes of the text in the byte-level alphabet.
    mutating func writeBytes(of source: UnsafeBufferPointer<UInt8>) {
        while place < source.count {
            let start = place
            let length = DecodedScalar(source, at: start, end: source.count).length
            for step in 0..<length {
                guard let scalar = Unicode.Scalar(ByteLevelAlphabet.scalars[Int(source[start + step])]) else {
                    continue
                }
                step == 0 ? replace(with: scalar) : insert(scalar)
            }
        }
    }
}

extension NormalizedText {
    /// Leaves out the characters whose scalar value is not wanted.
    mutating func filter(_ isWanted: (UInt32) -> Bool) {
        transform { source, output in
            while output.place < source.count {
                let scalar = DecodedScalar(source, at: output.place, end: source.count)
                isWanted(scalar.value) ? output.keep(scalar.length) : output.drop(scalar.length)
            }
        }
    }

    /// Puts other characters in the place of those for which `change` gives one.
    mutating func map(_ change: (UInt32) -> Unicode.Scalar?) {
        transform { source, output in
            while output.place < source.count {
                let scalar = DecodedScalar(source, at: output.place, end: source.count)
                if let other = change(scalar.value) { output.replace(with: other) } else { output.keep(scalar.length) }
            }
        }
    }
}
