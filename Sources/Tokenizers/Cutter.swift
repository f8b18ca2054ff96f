/// Something that finds matches in text.
protocol MatchFinder {
    /// Calls `body` with each match from left to right; they do not overlap.
    func forEachMatch(_ text: UnsafeBufferPointer<UInt8>, _ body: (Range<Int>) -> Void)
}

/// Finds the characters of a class, one by one.
struct ScalarFinder: MatchFinder {
    let wanted: ScalarClass

    @inline(__always)
    func forEachMatch(_ text: UnsafeBufferPointer<UInt8>, _ body: (Range<Int>) -> Void) {
        var index = 0
        while index < text.count {
            let (isWanted, length) = Self.isIn(text, at: index, wanted)
            if isWanted { body(index..<index + length) }
            index += length
        }
    }

    /// Whether the character at a place is of a class, and its length.
    @inline(__always)
    static func isIn(_ text: UnsafeBufferPointer<UInt8>, at index: Int, _ wanted: ScalarClass) -> (Bool, Int) {
        let byte = text[index]
        if byte < 0x80, wanted == .digit || wanted == .whitespace {
            return (!ScalarClass.ofASCII(byte).isDisjoint(with: wanted), 1)
        }
        let scalar = DecodedScalar(text, at: index, end: text.count)
        return (!ScalarClass.of(scalar.value).isDisjoint(with: wanted), scalar.length)
    }
}

/// Cuts a piece where something matches.
enum Cutter {
    /// Calls `emit` for the parts of a piece in order.
    ///
    /// - Parameters:
    ///   - piece: What is cut.
    ///   - behavior: What becomes of the matches.
    ///   - invert: Whether what lies between the matches is taken for matches, and the other way round.
    ///   - finder: Gives the matches.
    ///   - emit: Takes the parts; a part may be empty.
    static func cut(
        _ piece: TextPiece, _ behavior: SplitBehavior, invert: Bool, _ finder: some MatchFinder,
        _ emit: (TextPiece) -> Void
    ) {
        switch behavior {
        case .isolated: forEachPart(piece, finder) { part, _ in emit(piece.part(part)) }
        case .removed:
            forEachPart(piece, finder) { part, isMatch in if isMatch == invert { emit(piece.part(part)) } }
        case .contiguous, .mergedWithPrevious:
            var pending: Range<Int>?
            var previousMatched = false
            forEachPart(piece, finder) { part, matches in
                let isMatch = matches != invert
                let joins = behavior == .contiguous ? isMatch == previousMatched : isMatch && !previousMatched
                if joins, let known = pending {
                    pending = known.lowerBound..<part.upperBound
                } else {
                    if let pending { emit(piece.part(pending)) }
                    pending = part
                }
                previousMatched = isMatch
            }
            if let pending { emit(piece.part(pending)) }
        case .mergedWithNext:
            // A match joins what follows it, unless that is a match too.
            var pending: Range<Int>?  // a match that waits for what follows
            forEachPart(piece, finder) { part, matches in
                let isMatch = matches != invert
                if let match = pending {
                    emit(piece.part(match.lowerBound..<(isMatch ? match.upperBound : part.upperBound)))
                    pending = isMatch ? part : nil
                } else if isMatch {
                    pending = part
                } else {
                    emit(piece.part(part))
                }
            }
            if let pending { emit(piece.part(pending)) }
        }
    }

    /// Calls `body` with the matches and with what lies between them.
    @inline(__always)
    private static func forEachPart(
        _ piece: TextPiece, _ finder: some MatchFinder, _ body: (Range<Int>, Bool) -> Void
    ) {
        var end = 0
        finder.forEachMatch(piece.bytes) { match in
            if match.lowerBound > end { body(end..<match.lowerBound, false) }
            body(match, true)
            end = match.upperBound
        }
        if end < piece.bytes.count { body(end..<piece.bytes.count, false) }
    }
}
