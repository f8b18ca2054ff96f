/// The alphabet in which byte-level vocabularies write bytes as printable characters.
///
/// Bytes that print as themselves in Latin-1 stand for themselves; the other 68 are written, in order, as U+0100 and
/// up. A space is therefore written U+0120.
package enum ByteLevelAlphabet {
    /// The scalar that stands for each byte.
    package static let scalars: [UInt16] = {
        var next: UInt16 = 0x100
        return (0..<256).map { (byte: UInt16) in
            if isPrintable(byte) { return byte }
            defer { next += 1 }
            return next
        }
    }()

    /// The byte of each scalar below U+0144; 0xFFFF where the scalar is not in the alphabet.
    private static let bytes: [UInt16] = {
        var table = [UInt16](repeating: .max, count: 0x144)
        for (byte, scalar) in scalars.enumerated() { table[Int(scalar)] = UInt16(byte) }
        return table
    }()

    private static func isPrintable(_ byte: UInt16) -> Bool {
        (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
    }

    /// Appends the bytes that `written` stands for; a text with a character outside the alphabet stands for itself.
    static func appendBytes(of written: UnsafeBufferPointer<UInt8>, to output: inout [UInt8]) {
        if !appendBytesIfWritten(written, to: &output) { output.append(contentsOf: written) }
    }

    /// Appends the bytes that `written` stands for; nothing when a character is outside the alphabet.
    @discardableResult
    static func appendBytesIfWritten(_ written: UnsafeBufferPointer<UInt8>, to output: inout [UInt8]) -> Bool {
        let before = output.count
        var index = 0
        while index < written.count {
            let first = written[index]
            var scalar = Int(first)
            var length = 1
            if first >= 0x80 {
                // All of the alphabet beyond ASCII takes two bytes of UTF-8.
                guard first & 0xE0 == 0xC0, index + 1 < written.count else { break }
                scalar = Int(first & 0x1F) << 6 | Int(written[index + 1] & 0x3F)
                length = 2
            }
            guard scalar < bytes.count, bytes[scalar] != .max else { break }
            output.append(UInt8(truncatingIfNeeded: bytes[scalar]))
            index += length
        }
        guard index < written.count else { return true }
        output.removeSubrange(before...)
        return false
    }

    /// Writes bytes in the alphabet.
    package static func written(_ bytes: some Sequence<UInt8>) -> String {
        var text = String.UnicodeScalarView()
        for byte in bytes {
            if let scalar = Unicode.Scalar(scalars[Int(byte)]) { text.append(scalar) }
        }
        return String(text)
    }
}
