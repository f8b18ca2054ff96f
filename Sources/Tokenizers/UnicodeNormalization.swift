/// One of Unicode's normalization forms, with the reference's count of places.
///
/// The reference's tables are those of Unicode 9; newer scalars are left as they are.
struct UnicodeNormalization: TextNormalizer {
    /// The forms.
    enum Form: Sendable {
        case nfc, nfd, nfkc, nfkd

        var isCompatible: Bool { self == .nfkc || self == .nfkd }
        var composes: Bool { self == .nfc || self == .nfkc }
    }

    let form: Form

    func normalize(_ text: inout NormalizedText) {
        let form = form
        guard let first = text.bytes.withUnsafeBufferPointer({ Self.firstChange($0, form) }) else { return }
        text.transform { source, output in
            output.keep(first)
            var segment = NormalizationSegment()
            while output.place < source.count {
                let start = output.place
                segment.read(source, from: start, form)
                segment.write(form, &output)
                output.drop(start + segment.length - output.place)
                let next = Self.nextChange(source, from: output.place, form) ?? source.count
                output.keep(next - output.place)
            }
        }
    }

    /// Where the first character is that may change, with the character before it, which it may join.
    private static func firstChange(_ text: UnsafeBufferPointer<UInt8>, _ form: Form) -> Int? {
        nextChange(text, from: 0, form)
    }

    private static func nextChange(_ text: UnsafeBufferPointer<UInt8>, from start: Int, _ form: Form) -> Int? {
        var index = start
        var starter = start
        while index < text.count {
            if text[index] < 0x80 {
                starter = index
                index += 1
                continue
            }
            let scalar = DecodedScalar(text, at: index, end: text.count)
            if !NormalizationTable.isInert(scalar.value, form) { return form.composes ? starter : index }
            starter = index
            index += scalar.length
        }
        return nil
    }
}

/// A stretch of characters that can only change together.
private struct NormalizationSegment {
    private struct Entry {
        var scalar: Unicode.Scalar
        var combiningClass: UInt8
        /// How the places change: see ``TextTransform/put(_:change:)``.
        var change: Int
    }

    private var entries: [Entry] = []
    /// Bytes of the stretch.
    private(set) var length = 0

    /// Reads and decomposes from `start` up to the next character that stays as it is, whatever is before it.
    mutating func read(_ text: UnsafeBufferPointer<UInt8>, from start: Int, _ form: UnicodeNormalization.Form) {
        entries.removeAll(keepingCapacity: true)
        var index = start
        var sorted = 0  // the entries before are in their order
        while index < text.count {
            let decoded = DecodedScalar(text, at: index, end: text.count)
            if index > start, NormalizationTable.isInert(decoded.value, form) { break }
            index += decoded.length
            guard let scalar = Unicode.Scalar(decoded.value) else { continue }
            var change = 0
            NormalizationTable.forEachPart(of: scalar, compatible: form.isCompatible) { part in
                let combiningClass = NormalizationTable.combiningClass(part)
                if combiningClass == 0 {
                    sort(from: sorted)
                    sorted = entries.count + 1
                }
                entries.append(Entry(scalar: part, combiningClass: combiningClass, change: change))
                change = 1
            }
        }
        sort(from: sorted)
        length = index - start
    }

    private mutating func sort(from start: Int) {
        guard entries.count - start > 1 else { return }
        let ordered = entries[start...].enumerated().sorted {
            ($0.element.combiningClass, $0.offset) < ($1.element.combiningClass, $1.offset)
        }
        entries.replaceSubrange(start..., with: ordered.map(\.element))
    }

    func write(_ form: UnicodeNormalization.Form, _ output: inout TextTransform) {
        guard form.composes else {
            for entry in entries { output.put(entry.scalar, change: entry.change) }
            return
        }
        var starter: Entry?
        var marks: [Entry] = []
        func flush(_ output: inout TextTransform) {
            if let starter { output.put(starter.scalar, change: starter.change) }
            for mark in marks { output.put(mark.scalar, change: mark.change) }
            marks.removeAll(keepingCapacity: true)
        }
        for entry in entries {
            guard let base = starter else {
                if entry.combiningClass == 0 { starter = entry } else { output.put(entry.scalar, change: entry.change) }
                continue
            }
            let isBlocked = marks.last.map { $0.combiningClass >= entry.combiningClass } ?? false
            if !isBlocked, let joined = NormalizationTable.composition(base.scalar, entry.scalar) {
                starter = Entry(scalar: joined, combiningClass: 0, change: base.change + entry.change - 1)
            } else if entry.combiningClass == 0 {
                flush(&output)
                starter = entry
            } else {
                marks.append(entry)
            }
        }
        flush(&output)
    }
}
