import Foundation

/// The table of replacements that SentencePiece compiles its normalisation into (`precompiled_charsmap`).
///
/// Layout, little-endian: u32 bytes of the tree; the tree as a double array of u32 units; the replacements as UTF-8,
/// each ended by a zero byte. A leaf of the tree holds the byte at which its replacement begins.
///
/// As in the reference, a cluster of up to 5 bytes is replaced whole when the table has any beginning of it, else each of
/// its characters is looked up by itself.
struct PrecompiledCharsmap: TextNormalizer {
    private let units: [UInt32]
    private let replacements: [UInt8]
    /// Whether anything that begins with the byte is replaced.
    private let isFirstByte: [Bool]

    /// Longer clusters are not looked up as a whole.
    private static let longestCluster = 5

    /// Takes the table as it lies in a file.
    ///
    /// - Parameters:
    ///   - bytes: The table.
    ///   - origin: Where it comes from, for messages.
    /// - Throws: ``TokenizerError`` when it is no such table.
    init(_ bytes: [UInt8], origin: String) throws {
        func refuse(_ message: String) -> TokenizerError { TokenizerError("\(origin): \(message)") }
        func word(_ index: Int) -> UInt32 {
            (0..<4).reduce(0) { $0 | UInt32(bytes[4 * index + $1]) << UInt32(8 * $1) }
        }
        guard bytes.count >= 4 else {
            throw refuse("expected a table of replacements of at least 4 bytes, found \(bytes.count)")
        }
        let size = Int(word(0))
        guard size >= 4, size % 4 == 0, size <= bytes.count - 4 else {
            throw refuse(
                "the tree of the table of replacements must take a multiple of 4 bytes within the table's "
                    + "\(bytes.count), found a size of \(size)")
        }
        replacements = Array(bytes[(4 + size)...])
        guard String(validating: replacements, as: UTF8.self) != nil else {
            throw refuse("the replacements, which begin at byte \(4 + size) of the table, are not valid UTF-8")
        }
        units = (1...size / 4).map(word)
        var isFirstByte = [Bool](repeating: false, count: 256)
        let base = units[0].offset
        for byte in 1...255 where base ^ byte < units.count {
            isFirstByte[byte] = units[base ^ byte].label == UInt32(byte)
        }
        self.isFirstByte = isFirstByte
    }

    /// Reads a `Precompiled` normalizer of a tokenizer.json.
    init(_ component: JSONComponent) throws {
        let text = try component.string("precompiled_charsmap")
        guard let bytes = Data(base64Encoded: text) else {
            throw component.error("precompiled_charsmap", "the table of replacements is not valid base64")
        }
        try self.init(Array(bytes), origin: "\(component.path), \"\(component.key).precompiled_charsmap\"")
    }

    func normalize(_ text: inout NormalizedText) {
        guard !text.bytes.withUnsafeBufferPointer(surelyKeeps) else { return }
        text.transform { source, output in
            var writer = CharsmapWriter()
            var kept = 0  // where the run of characters that stay begins
            func replaces(_ range: Range<Int>) -> Bool {
                guard let found = replacement(of: UnsafeBufferPointer(rebasing: source[range])) else { return false }
                if kept < range.lowerBound { writer.keep(kept..<range.lowerBound, of: source, &output) }
                kept = range.upperBound
                replacements.withUnsafeBufferPointer {
                    writer.replace(range, of: source, with: UnsafeBufferPointer(rebasing: $0[found]), &output)
                }
                return true
            }
            forEachCluster(source) { cluster in
                if cluster.count <= Self.longestCluster, replaces(cluster) { return }
                var start = cluster.lowerBound
                while start < cluster.upperBound {
                    let end = min(start + utf8Length(source[start]), cluster.upperBound)
                    _ = replaces(start..<end)
                    start = end
                }
            }
            if kept < source.count { writer.keep(kept..<source.count, of: source, &output) }
            writer.finish(&output)
        }
    }

    /// Whether nothing in a text can be replaced, because no string of the table begins with any of its bytes.
    private func surelyKeeps(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
        isFirstByte.withUnsafeBufferPointer { isFirstByte in !text.contains { isFirstByte[Int($0)] } }
    }

    /// Where the replacement of the shortest beginning of `string` that has one lies.
    private func replacement(of string: UnsafeBufferPointer<UInt8>) -> Range<Int>? {
        var place = units[0].offset
        for byte in string {
            guard byte != 0, (place ^ Int(byte)) < units.count else { return nil }
            place ^= Int(byte)
            let unit = units[place]
            guard unit.label == UInt32(byte) else { return nil }
            place ^= unit.offset
            guard unit.hasLeaf else { continue }
            guard place < units.count else { return nil }
            return replacementRange(from: Int(units[place] & 0x7FFF_FFFF))
        }
        return nil
    }

    private func replacementRange(from start: Int) -> Range<Int>? {
        guard start < replacements.count, replacements[start] & 0xC0 != 0x80 else { return nil }
        var end = start
        while end < replacements.count, replacements[end] != 0 { end += 1 }
        return start..<end
    }
}

extension UInt32 {
    fileprivate var hasLeaf: Bool { self >> 8 & 1 == 1 }
    fileprivate var label: UInt32 { self & 0x8000_00FF }
    fileprivate var offset: Int { Int((self >> 10) << ((self & 1 << 9) >> 6)) }
}

/// Writes a text with its replacements, and counts places as the reference does: characters for which nothing is put in
/// belong to the character before them.
private struct CharsmapWriter {
    private var pending: (scalar: Unicode.Scalar, change: Int)?

    /// Takes over characters.
    mutating func keep(
        _ range: Range<Int>, of source: UnsafeBufferPointer<UInt8>, _ output: inout TextTransform
    ) {
        finish(&output)
        var last = range.upperBound - 1
        while last > range.lowerBound, source[last] & 0xC0 == 0x80 { last -= 1 }
        if output.place == range.lowerBound {
            output.keep(last - range.lowerBound)
            pending = (DecodedScalar(source, at: last, end: range.upperBound).scalar, 0)
        } else {
            // What was dropped at the beginning had no character before it: the reference is out of step from there on.
            forEachScalar(UnsafeBufferPointer(rebasing: source[range])) { put($0, 0, &output) }
        }
    }

    /// Puts a replacement in.
    mutating func replace(
        _ range: Range<Int>, of source: UnsafeBufferPointer<UInt8>, with replacement: UnsafeBufferPointer<UInt8>,
        _ output: inout TextTransform
    ) {
        let old = source[range].count { $0 & 0xC0 != 0x80 }
        let new = replacement.count { $0 & 0xC0 != 0x80 }
        var index = 0
        forEachScalar(replacement) {
            put($0, index < min(old, new) ? 0 : 1, &output)
            index += 1
        }
        if new < old { pending?.change -= old - new }
    }

    /// Writes what waits for what comes after it.
    mutating func finish(_ output: inout TextTransform) {
        if let pending { output.put(pending.scalar, change: pending.change) }
        pending = nil
    }

    private mutating func put(_ scalar: Unicode.Scalar, _ change: Int, _ output: inout TextTransform) {
        finish(&output)
        pending = (scalar, change)
    }
}

private func forEachScalar(_ text: UnsafeBufferPointer<UInt8>, _ body: (Unicode.Scalar) -> Void) {
    var index = 0
    while index < text.count {
        let decoded = DecodedScalar(text, at: index, end: text.count)
        body(decoded.scalar)
        index += decoded.length
    }
}

extension DecodedScalar {
    fileprivate var scalar: Unicode.Scalar { Unicode.Scalar(value) ?? "\u{FFFD}" }
}

/// Calls `body` with the extended grapheme clusters of valid UTF-8, in order.
private func forEachCluster(_ text: UnsafeBufferPointer<UInt8>, _ body: (Range<Int>) -> Void) {
    /// Between two ASCII characters lies a boundary, unless they end a line together.
    func isPlain(_ index: Int) -> Bool {
        guard text[index] < 0x80 else { return false }
        guard index + 1 < text.count else { return true }
        return text[index + 1] < 0x80 && !(text[index] == 0x0D && text[index + 1] == 0x0A)
    }
    var index = 0
    while index < text.count {
        if isPlain(index) {
            body(index..<index + 1)
            index += 1
            continue
        }
        // Up to the next character that surely begins a cluster; String knows the rules in between.
        var end = index
        repeat { end += 1 } while end < text.count && !(isPlain(end) && isPlain(end - 1))
        let stretch = String(decoding: UnsafeBufferPointer(rebasing: text[index..<end]), as: UTF8.self)
        for cluster in stretch {
            let length = cluster.utf8.count
            body(index..<index + length)
            index += length
        }
    }
}
