/// What the pipeline needs to know of a Unicode scalar: letter, number, white space, punctuation and so on.
///
/// The classes are those of the reference implementation, whose parts know different versions of Unicode; scalars that a
/// part does not know count as unassigned there, so that ids do not depend on the tables of the Swift runtime.
struct ScalarClass: OptionSet, Sendable {
    let rawValue: UInt16

    /// `\p{L}`.
    static let letter = ScalarClass(rawValue: 1)
    /// `\p{N}`.
    static let number = ScalarClass(rawValue: 2)
    /// `\s`: the Unicode property White_Space.
    static let whitespace = ScalarClass(rawValue: 4)
    /// A numeric scalar in the eyes of the `Digits` step.
    static let digit = ScalarClass(rawValue: 8)
    /// Punctuation, and in ASCII symbols too.
    static let punctuation = ScalarClass(rawValue: 16)
    /// A control, format or private scalar.
    static let other = ScalarClass(rawValue: 32)
    /// `\w`: alphabetic, mark, decimal number, connector punctuation, join control.
    static let word = ScalarClass(rawValue: 64)
    /// `\p{Mn}`.
    static let nonspacingMark = ScalarClass(rawValue: 128)
    /// Its own lower case.
    static let caseless = ScalarClass(rawValue: 256)

    /// The class of one scalar value.
    @inline(__always)
    static func of(_ value: UInt32) -> ScalarClass {
        value < 0x1_0000 ? ScalarClass(rawValue: basicPlane[Int(value)]) : computed(value)
    }

    /// The class of one ASCII byte as far as letters, numbers and white space go; comparisons are faster than a table
    /// behind a lazy initialiser.
    @inline(__always)
    static func ofASCII(_ byte: UInt8) -> ScalarClass {
        if (byte | 0x20) &- UInt8(ascii: "a") < 26 { return .letter }
        if byte &- UInt8(ascii: "0") < 10 { return [.number, .digit] }
        return byte == 0x20 || byte &- 0x09 < 5 ? .whitespace : []
    }

    /// The raw classes of the basic plane, computed once on the first scalar that is not ASCII.
    private static let basicPlane: [UInt16] = (0..<0x1_0000).map { computed($0).rawValue }

    private static func computed(_ value: UInt32) -> ScalarClass {
        guard let scalar = Unicode.Scalar(value) else { return [] }
        let properties = scalar.properties
        let age = properties.age.map { ($0.major, $0.minor) } ?? (99, 0)
        var result: ScalarClass = properties.isWhitespace ? .whitespace : []
        switch properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter:
            if age <= (16, 0) { result.insert(.letter) }
        case .decimalNumber, .letterNumber, .otherNumber:
            if age <= (16, 0) { result.insert(.number) }
            if age <= (17, 0) { result.insert(.digit) }
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            if age <= (8, 0) { result.insert(.punctuation) }
        case .control, .format, .privateUse: if age <= (8, 0) { result.insert(.other) }
        case .nonspacingMark: if age <= (8, 0) { result.insert(.nonspacingMark) }
        default: break
        }
        // What has changed its category since the version that the reference's older part knows.
        switch value {
        case 0x166D, 0x111C9:
            result.insert(.punctuation)
            result.remove(.nonspacingMark)
        case 0x1734, 0x1171E: result.insert(.nonspacingMark)
        case 0x1885, 0x1886, 0xA9BD: result.remove(.nonspacingMark)
        default: break
        }
        if scalar.isASCII, "$+<=>^`|~".unicodeScalars.contains(scalar) { result.insert(.punctuation) }
        if age <= (16, 0), isWord(properties) { result.insert(.word) }
        if !properties.changesWhenLowercased { result.insert(.caseless) }
        return result
    }

    private static func isWord(_ properties: Unicode.Scalar.Properties) -> Bool {
        switch properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: true
        default: properties.isAlphabetic || properties.isJoinControl
        }
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
