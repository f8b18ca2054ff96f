/// What the pre-tokenizers need to know of a Unicode scalar: letter, number, white space or none of them.
///
/// The classes are those of the reference implementation, whose regular expressions know Unicode 16 and whose digit test
/// knows Unicode 17; newer scalars count as unassigned, so that ids do not depend on the tables of the Swift runtime.
struct ScalarClass: OptionSet, Sendable {
    let rawValue: UInt8

    /// `\p{L}`.
    static let letter = ScalarClass(rawValue: 1)
    /// `\p{N}`.
    static let number = ScalarClass(rawValue: 2)
    /// `\s`: the Unicode property White_Space.
    static let whitespace = ScalarClass(rawValue: 4)
    /// A numeric scalar in the eyes of the `Digits` step.
    static let digit = ScalarClass(rawValue: 8)

    /// The class of one scalar value.
    @inline(__always)
    static func of(_ value: UInt32) -> ScalarClass {
        value < 0x1_0000 ? ScalarClass(rawValue: basicPlane[Int(value)]) : computed(value)
    }

    /// The class of one ASCII byte; comparisons are faster than a table behind a lazy initialiser.
    @inline(__always)
    static func ofASCII(_ byte: UInt8) -> ScalarClass {
        if (byte | 0x20) &- UInt8(ascii: "a") < 26 { return .letter }
        if byte &- UInt8(ascii: "0") < 10 { return [.number, .digit] }
        return byte == 0x20 || byte &- 0x09 < 5 ? .whitespace : []
    }

    /// The raw classes of the basic plane, computed once on the first scalar that is not ASCII.
    private static let basicPlane: [UInt8] = (0..<0x1_0000).map { computed($0).rawValue }

    private static func computed(_ value: UInt32) -> ScalarClass {
        guard let scalar = Unicode.Scalar(value) else { return [] }
        let properties = scalar.properties
        switch properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter:
            return isKnown(properties, major: 16) ? .letter : []
        case .decimalNumber, .letterNumber, .otherNumber:
            if isKnown(properties, major: 16) { return [.number, .digit] }
            return isKnown(properties, major: 17) ? .digit : []
        default:
            return properties.isWhitespace ? .whitespace : []
        }
    }

    private static func isKnown(_ properties: Unicode.Scalar.Properties, major: Int) -> Bool {
        guard let age = properties.age else { return false }
        return age.major < major || (age.major == major && age.minor == 0)
    }
}

/// One scalar read from UTF-8 text.
struct DecodedScalar {
    let value: UInt32
    /// Bytes the scalar takes, 1 to 4.
    let length: Int

    /// Reads the scalar that begins at `index`; a byte that begins no scalar counts as a scalar of its own.
    @inline(__always)
    init(_ text: UnsafeBufferPointer<UInt8>, at index: Int, end: Int) {
        let first = UInt32(text[index])
        let wanted = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
        guard first >= 0xC0, index + wanted <= end else {
            value = first
            length = 1
            return
        }
        var scalar = first & (0xFF >> UInt32(wanted + 1))
        for step in 1..<wanted {
            scalar = scalar << 6 | UInt32(text[index + step] & 0x3F)
        }
        value = scalar
        length = wanted
    }
}

/// Bytes of the character that begins with `first` in well-formed UTF-8.
@inline(__always)
func utf8Length(_ first: UInt8) -> Int { first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4 }
