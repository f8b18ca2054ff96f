/// How text is cut into the pieces that the model may merge within, as data.
///
/// A stage cuts every piece of the stage before it. The names are those of tokenizer.json.
public enum PreTokenizer: Sendable, Equatable {
    /// Separates numeric characters from the rest, one by one or in runs.
    case digits(individual: Bool)
    /// Prepares for byte-level merging: optionally begins each piece with a space, and cuts by GPT-2's pattern.
    case byteLevel(addPrefixSpace: Bool, useRegex: Bool)
    /// Applies stages one after the other.
    case sequence([PreTokenizer])

    /// The stages in order, without nesting.
    var stages: [PreTokenizer] {
        if case .sequence(let steps) = self { return steps.flatMap(\.stages) }
        return [self]
    }
}

/// A piece of text between two cuts.
struct TextPiece {
    /// The bytes to merge; they lie in the text itself, or in a copy that begins with a space the text lacks.
    let bytes: UnsafeBufferPointer<UInt8>
    /// Where `bytes[0]` lies in the text; one less than the piece's place when a space was put before it.
    let origin: Int
    /// Where the piece begins in the text; tokens never reach before it.
    let start: Int
}

/// Runs the stages of a pre-tokenizer over stretches of text.
struct PieceSplitter: Sendable {
    private let stages: [PreTokenizer]

    init(_ preTokenizer: PreTokenizer) {
        stages = preTokenizer.stages
    }

    /// Calls `emit` for each piece of `text[range]`, in order.
    func split(
        _ text: UnsafeBufferPointer<UInt8>, _ range: Range<Int>, _ emit: (TextPiece) -> Void
    ) {
        let bytes = UnsafeBufferPointer(rebasing: text[range])
        apply(0, TextPiece(bytes: bytes, origin: range.lowerBound, start: range.lowerBound), emit)
    }

    private func apply(_ stage: Int, _ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        guard !piece.bytes.isEmpty else { return }
        guard stage < stages.count else { return emit(piece) }
        switch stages[stage] {
        case .digits(let individual):
            splitDigits(piece, individual: individual) { apply(stage + 1, $0, emit) }
        case .byteLevel(let addPrefixSpace, let useRegex):
            func cut(_ piece: TextPiece) {
                if !useRegex { return apply(stage + 1, piece, emit) }
                splitWords(piece) { apply(stage + 1, $0, emit) }
            }
            addPrefixSpace ? withPrefixSpace(piece, cut) : cut(piece)
        case .sequence:
            return  // `stages` is flat.
        }
    }

    private func splitWords(_ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        var index = 0
        while index < piece.bytes.count {
            let end = GPT2Pattern.matchEnd(piece.bytes, from: index, end: piece.bytes.count)
            emit(piece.part(index..<end))
            index = end
        }
    }

    private func splitDigits(_ piece: TextPiece, individual: Bool, _ emit: (TextPiece) -> Void) {
        let bytes = piece.bytes
        var begin = 0  // of the run not yet emitted
        var runIsNumeric = false
        var index = 0
        while index < bytes.count {
            let (isNumeric, length) = Self.numeric(bytes, at: index)
            if index > begin, isNumeric != runIsNumeric || (isNumeric && individual) {
                emit(piece.part(begin..<index))
                begin = index
            }
            runIsNumeric = isNumeric
            index += length
        }
        emit(piece.part(begin..<index))
    }

    @inline(__always)
    private static func numeric(_ bytes: UnsafeBufferPointer<UInt8>, at index: Int) -> (Bool, Int) {
        let byte = bytes[index]
        if byte < 0x80 { return (byte &- UInt8(ascii: "0") < 10, 1) }
        let scalar = DecodedScalar(bytes, at: index, end: bytes.count)
        return (ScalarClass.of(scalar.value).contains(.digit), scalar.length)
    }

    private func withPrefixSpace(_ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        guard piece.bytes[0] != UInt8(ascii: " ") else { return emit(piece) }
        let copy = [UInt8(ascii: " ")] + piece.bytes
        copy.withUnsafeBufferPointer {
            emit(TextPiece(bytes: $0, origin: piece.origin - 1, start: piece.start))
        }
    }
}

extension TextPiece {
    /// The part of the piece at the byte offsets `range`.
    @inline(__always)
    fileprivate func part(_ range: Range<Int>) -> TextPiece {
        let place = origin + range.lowerBound
        return TextPiece(
            bytes: UnsafeBufferPointer(rebasing: bytes[range]), origin: place, start: max(place, start))
    }
}
