/// `Metaspace` as a stage: spaces are written as a visible character, and pieces begin with it.
struct MetaspaceStage: Sendable {
    private let replacement: [UInt8]
    private let scheme: PrependScheme
    private let splits: Bool

    init(replacement: Unicode.Scalar, scheme: PrependScheme, splits: Bool) {
        self.replacement = Array(replacement.utf8)
        self.scheme = scheme
        self.splits = splits
    }

    /// Calls `emit` for the parts of a piece, which is not empty.
    func apply(_ piece: TextPiece, tracksSpans: Bool, _ emit: (TextPiece) -> Void) {
        let capacity = (piece.bytes.count + 1) * replacement.count
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: capacity) { bytes in
            guard tracksSpans else {
                let count = write(piece, bytes, nil)
                return cut(bytes, count, piece.start, nil, emit)
            }
            withUnsafeTemporaryAllocation(of: SourceSpan.self, capacity: capacity) { spans in
                let count = write(piece, bytes, spans.baseAddress)
                cut(bytes, count, piece.start, spans.baseAddress.map { UnsafePointer($0) }, emit)
            }
        }
    }

    private func write(
        _ piece: TextPiece, _ bytes: UnsafeMutableBufferPointer<UInt8>, _ spans: UnsafeMutablePointer<SourceSpan>?
    ) -> Int {
        let source = piece.bytes
        let beginsVisibly = source[0] == UInt8(ascii: " ") || starts(source)
        let prepends = !beginsVisibly && (scheme == .always || scheme == .first && piece.start == 0)
        var count = 0
        func put(_ byte: UInt8, _ span: SourceSpan) {
            bytes.initializeElement(at: count, to: byte)
            if let spans { (spans + count).initialize(to: span) }
            count += 1
        }
        var index = 0
        while index < source.count {
            let length = DecodedScalar(source, at: index, end: source.count).length
            let span: SourceSpan
            if let known = piece.spans {
                span = known[index]
            } else {
                span = SourceSpan(start: piece.origin + index, end: piece.origin + index + length)
            }
            if index == 0, prepends { for byte in replacement { put(byte, span) } }
            if source[index] == UInt8(ascii: " ") {
                for byte in replacement { put(byte, span) }
            } else {
                for step in 0..<length { put(source[index + step], span) }
            }
            index += length
        }
        return count
    }

    private func starts(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
        text.count >= replacement.count && replacement.indices.allSatisfy { text[$0] == replacement[$0] }
    }

    /// Cuts before every visible space, but not between two that follow each other without text: each is a piece.
    private func cut(
        _ bytes: UnsafeMutableBufferPointer<UInt8>, _ count: Int, _ origin: Int,
        _ spans: UnsafePointer<SourceSpan>?, _ emit: (TextPiece) -> Void
    ) {
        let whole = TextPiece(bytes: UnsafeBufferPointer(rebasing: bytes[..<count]), origin: origin, spans: spans)
        guard splits else { return emit(whole) }
        let text = whole.bytes
        var begin = 0
        var index = 0
        while index + replacement.count <= count {
            guard text[index] == replacement[0], starts(UnsafeBufferPointer(rebasing: text[index...])) else {
                index += 1
                continue
            }
            if index > begin { emit(whole.part(begin..<index)) }
            begin = index
            index += replacement.count
        }
        if begin < count { emit(whole.part(begin..<count)) }
    }
}
