/// A piece of text between two cuts.
struct TextPiece {
    /// The bytes of the piece, as far as changed.
    let bytes: UnsafeBufferPointer<UInt8>
    /// Where `bytes[0]` lies in the original text, where that is not changed.
    let origin: Int
    /// Where each byte comes from; nil for text that is as it was, and when nobody asks for places.
    let spans: UnsafePointer<SourceSpan>?

    /// The part of the piece at the byte offsets `range`.
    @inline(__always)
    func part(_ range: Range<Int>) -> TextPiece {
        TextPiece(
            bytes: UnsafeBufferPointer(rebasing: bytes[range]), origin: origin + range.lowerBound,
            spans: spans.map { $0 + range.lowerBound })
    }

    /// The bytes of the original text that the piece's bytes from `start` to `end` stand for.
    @inline(__always)
    func range(_ start: Int, _ end: Int) -> Range<Int> {
        guard let spans else { return origin + start..<origin + end }
        guard start < end else {
            // As in the reference, what covers nothing is counted from the piece's beginning.
            let place = (bytes.isEmpty ? origin : spans[0].start) + start
            return place..<place
        }
        let first = spans[start].start
        return first..<max(first, spans[end - 1].end)
    }

    /// Where the piece begins in the original text.
    var start: Int {
        guard let spans, !bytes.isEmpty else { return origin }
        return spans[0].start
    }

    /// Calls `body` with the piece as `change` makes it.
    func transformed(
        tracksSpans: Bool, _ change: (UnsafeBufferPointer<UInt8>, inout TextTransform) -> Void,
        _ body: (TextPiece) -> Void
    ) {
        var text = NormalizedText(self, tracksSpans: tracksSpans)
        text.transform(change)
        text.withPiece { body($0) }
    }
}

extension NormalizedText {
    /// Takes a piece with the places that it has.
    init(_ piece: TextPiece, tracksSpans: Bool) {
        self.init(piece.bytes, start: piece.start, tracksSpans: tracksSpans)
        if tracksSpans, let spans = piece.spans {
            takeSpans(Array(UnsafeBufferPointer(start: spans, count: piece.bytes.count)))
        }
    }

    /// Calls `body` with the text as one piece.
    func withPiece(_ body: (TextPiece) -> Void) {
        bytes.withUnsafeBufferPointer { bytes in
            guard let spans else { return body(TextPiece(bytes: bytes, origin: start, spans: nil)) }
            spans.withUnsafeBufferPointer { body(TextPiece(bytes: bytes, origin: start, spans: $0.baseAddress)) }
        }
    }
}
