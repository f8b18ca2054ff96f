import Foundation

/// What Unicode's normalization forms need to know of a scalar, read from the platform's tables once.
enum NormalizationTable {
    /// The last version of Unicode that the reference's tables know.
    private static let latestAge = 9

    /// Whether a scalar stays as it is and changes nothing around it; ASCII does.
    @inline(__always)
    static func isInert(_ value: UInt32, _ form: UnicodeNormalization.Form) -> Bool {
        if value < 0xA0 { return true }
        let bit: UInt8 =
            switch form {
            case .nfc: 1
            case .nfd: 2
            case .nfkc: 4
            case .nfkd: 8
            }
        if value < 0x3_0000 { return tables.active[Int(value)] & bit == 0 }
        return true
    }

    static func combiningClass(_ scalar: Unicode.Scalar) -> UInt8 {
        guard scalar.value >= 0x300, isKnown(scalar) else { return 0 }
        return scalar.properties.canonicalCombiningClass.rawValue
    }

    /// Calls `body` with the scalars of a full decomposition, or with the scalar itself.
    static func forEachPart(of scalar: Unicode.Scalar, compatible: Bool, _ body: (Unicode.Scalar) -> Void) {
        let value = scalar.value
        if value < 0xA0 { return body(scalar) }
        if (0xAC00...0xD7A3).contains(value) { return forEachJamo(of: value - 0xAC00, body) }
        let parts = compatible ? tables.compatible[value] ?? tables.canonical[value] : tables.canonical[value]
        guard let parts else { return body(scalar) }
        for part in parts { body(part) }
    }

    /// The scalar that two scalars join to, or nil.
    static func composition(_ first: Unicode.Scalar, _ second: Unicode.Scalar) -> Unicode.Scalar? {
        let (a, b) = (first.value, second.value)
        if (0x1100...0x1112).contains(a), (0x1161...0x1175).contains(b) {
            return Unicode.Scalar(0xAC00 + ((a - 0x1100) * 21 + b - 0x1161) * 28)
        }
        if (0xAC00...0xD7A3).contains(a), (a - 0xAC00) % 28 == 0, (0x11A8...0x11C2).contains(b) {
            return Unicode.Scalar(a + b - 0x11A7)
        }
        return tables.compositions[UInt64(a) << 32 | UInt64(b)]
    }

    private static func forEachJamo(of syllable: UInt32, _ body: (Unicode.Scalar) -> Void) {
        let (lead, vowel, trail) = (0x1100 + syllable / 588, 0x1161 + syllable % 588 / 28, 0x11A7 + syllable % 28)
        for value in [lead, vowel, trail] where value != 0x11A7 {
            if let jamo = Unicode.Scalar(value) { body(jamo) }
        }
    }

    private static func isKnown(_ scalar: Unicode.Scalar) -> Bool {
        guard let age = scalar.properties.age else { return false }
        return (age.major, age.minor) <= (latestAge, 0)
    }

    // MARK: Tables

    private struct Tables {
        var canonical: [UInt32: [Unicode.Scalar]] = [:]
        /// Where it differs from the canonical one.
        var compatible: [UInt32: [Unicode.Scalar]] = [:]
        var compositions: [UInt64: Unicode.Scalar] = [:]
        /// One bit a form for the scalars below U+30000 that are not inert.
        var active = [UInt8](repeating: 0, count: 0x3_0000)
    }

    /// Where decompositions and combining marks lie: the rest of Unicode is not looked through.
    private static let searched: [ClosedRange<UInt32>] = [
        0xA0...0x33FF, 0xA600...0xABFF, 0xF900...0xFFFF, 0x1_0000...0x1_1FFF, 0x1_6000...0x1_6FFF, 0x1_B000...0x1_FFFF,
        0x2_F800...0x2_FA1F,
    ]

    private static let tables: Tables = {
        var tables = Tables()
        for value in searched.joined() {
            guard let scalar = Unicode.Scalar(value), isKnown(scalar) else { continue }
            let text = String(scalar)
            let canonical = Array(text.decomposedStringWithCanonicalMapping.unicodeScalars)
            let compatible = Array(text.decomposedStringWithCompatibilityMapping.unicodeScalars)
            if canonical != [scalar] { tables.canonical[value] = canonical }
            if compatible != canonical { tables.compatible[value] = compatible }
            let isMark = scalar.properties.canonicalCombiningClass.rawValue != 0
            if isMark { tables.active[Int(value)] = 0xF }
            if canonical != [scalar] { tables.active[Int(value)] |= 2 | 8 }
            if compatible != [scalar] { tables.active[Int(value)] |= 8 | 4 }
        }
        addCompositions(&tables)
        for value in 0xAC00...0xD7A3 { tables.active[value] |= 2 | 8 }
        return tables
    }()

    /// Finds the pairs that join, and marks all that may be a second of a pair or that do not survive composition.
    private static func addCompositions(_ tables: inout Tables) {
        for (value, parts) in tables.canonical {
            let composed = Array(
                String(String.UnicodeScalarView(parts)).precomposedStringWithCanonicalMapping.unicodeScalars)
            guard composed.count == 1, composed[0].value == value, let last = parts.last else {
                tables.active[Int(value)] |= 1 | 4
                continue
            }
            let first = Array(
                String(String.UnicodeScalarView(parts.dropLast())).precomposedStringWithCanonicalMapping.unicodeScalars)
            guard first.count == 1 else { continue }
            tables.compositions[UInt64(first[0].value) << 32 | UInt64(last.value)] = composed[0]
            tables.active[Int(last.value)] |= 1 | 4
        }
        for value in 0x1161...0x1175 { tables.active[value] |= 1 | 4 }
        for value in 0x11A8...0x11C2 { tables.active[value] |= 1 | 4 }
    }
}
