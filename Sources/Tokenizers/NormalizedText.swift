/// The bytes of the original text that a byte of changed text stands for.
struct SourceSpan: Sendable, Equatable {
    var start: Int
    var end: Int
}

/// A stretch of text on its way through the normalizers: its bytes, and where in the original text each comes from.
///
/// Every byte of an unchanged character stands for the whole character. A character that replaces another one stands for
/// what that one stood for; a character that was put in stands for the same as the character before it.
struct NormalizedText {
    /// The text as UTF-8; always well formed.
    private(set) var bytes: [UInt8]
    /// One span a byte; nil while the text is as it was, or when nobody asks for places.
    private(set) var spans: [SourceSpan]?
    /// Where the stretch begins in the original text.
    let start: Int
    /// Whether places are wanted; without them changes are cheaper.
    let tracksSpans: Bool

    /// Takes a stretch of the original text that begins at its byte `start`.
    init(_ text: UnsafeBufferPointer<UInt8>, start: Int, tracksSpans: Bool) {
        bytes = Array(text)
        self.start = start
        self.tracksSpans = tracksSpans
    }

    /// Makes a new text from this one: `body` is given the old bytes and, in their order, keeps, drops and replaces them.
    ///
    /// What `body` does not mention at the end is dropped.
    mutating func transform(_ body: (UnsafeBufferPointer<UInt8>, inout TextTransform) -> Void) {
        var result = TextTransform(reserving: bytes.count, tracksSpans: tracksSpans)
        bytes.withUnsafeBufferPointer { source in
            if tracksSpans {
                let old = spans ?? Self.identity(source, start: start)
                old.withUnsafeBufferPointer { result.run(source, $0, start: start, body) }
            } else {
                result.run(source, nil, start: start, body)
            }
        }
        bytes = result.bytes
        if tracksSpans { spans = result.spans }
    }

    /// Takes the places that the text had before.
    mutating func takeSpans(_ known: [SourceSpan]) { spans = known }

    /// The spans of text that has not been changed: each byte stands for its whole character.
    static func identity(_ text: UnsafeBufferPointer<UInt8>, start: Int) -> [SourceSpan] {
        var spans: [SourceSpan] = []
        spans.reserveCapacity(text.count)
        var index = 0
        while index < text.count {
            let length = DecodedScalar(text, at: index, end: text.count).length
            let span = SourceSpan(start: start + index, end: start + index + length)
            for _ in 0..<length { spans.append(span) }
            index += length
        }
        return spans
    }
}

/// The new text while ``NormalizedText/transform(_:)`` makes it.
struct TextTransform {
    fileprivate(set) var bytes: [UInt8] = []
    fileprivate(set) var spans: [SourceSpan] = []
    /// How much of the old text has been kept, dropped or replaced, in bytes.
    private(set) var place = 0

    private let tracksSpans: Bool
    private var source = UnsafeBufferPointer<UInt8>(start: nil, count: 0)
    private var sourceSpans: UnsafeBufferPointer<SourceSpan>?
    private var start = 0

    fileprivate init(reserving count: Int, tracksSpans: Bool) {
        self.tracksSpans = tracksSpans
        bytes.reserveCapacity(count + count / 8 + 16)
        if tracksSpans { spans.reserveCapacity(count + count / 8 + 16) }
    }

    fileprivate mutating func run(
        _ source: UnsafeBufferPointer<UInt8>, _ sourceSpans: UnsafeBufferPointer<SourceSpan>?, start: Int,
        _ body: (UnsafeBufferPointer<UInt8>, inout TextTransform) -> Void
    ) {
        self.source = source
        self.sourceSpans = sourceSpans
        self.start = start
        body(source, &self)
    }

    /// Keeps the next `count` bytes as they are.
    @inline(__always)
    mutating func keep(_ count: Int) {
        let next = place + count
        bytes.append(contentsOf: UnsafeBufferPointer(rebasing: source[place..<next]))
        if let sourceSpans { spans.append(contentsOf: UnsafeBufferPointer(rebasing: sourceSpans[place..<next])) }
        place = next
    }

    /// Drops the next `count` bytes, which must be whole characters.
    @inline(__always)
    mutating func drop(_ count: Int) {
        place += count
    }

    /// Puts a character in the place of the next character of the old text.
    @inline(__always)
    mutating func replace(with scalar: Unicode.Scalar) {
        guard place < source.count else { return insert(scalar) }
        let span = sourceSpans.map { $0[place] }
        place += DecodedScalar(source, at: place, end: source.count).length
        append(scalar, span)
    }

    /// Puts a character in; it stands for what the last character before it, kept, dropped or replaced, stood for.
    @inline(__always)
    mutating func insert(_ scalar: Unicode.Scalar) {
        append(scalar, sourceSpans.map { place > 0 ? $0[place - 1] : SourceSpan(start: start, end: start) })
    }

    /// Puts a character in as the reference's pair of character and change says: above 0 it is new, else it replaces the
    /// next character and as many characters after that are dropped.
    @inline(__always)
    mutating func put(_ scalar: Unicode.Scalar, change: Int) {
        guard change <= 0 else { return insert(scalar) }
        replace(with: scalar)
        for _ in 0..<(-change) where place < source.count {
            place += DecodedScalar(source, at: place, end: source.count).length
        }
    }

    @inline(__always)
    private mutating func append(_ scalar: Unicode.Scalar, _ span: SourceSpan?) {
        let before = bytes.count
        if scalar.value < 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: scalar.value))
        } else {
            bytes.append(contentsOf: scalar.utf8)
        }
        guard let span else { return }
        for _ in before..<bytes.count { spans.append(span) }
    }
}
