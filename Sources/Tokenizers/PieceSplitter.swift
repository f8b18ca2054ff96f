/// Runs the stages of a pre-tokenizer over stretches of text.
struct PieceSplitter: Sendable {
    /// A stage that is ready to run.
    private enum Stage: Sendable {
        case digits(individual: Bool)
        case words
        case prefixSpace
        case byteAlphabet
        case split(SearchPattern, SplitBehavior, invert: Bool)
        case metaspace(MetaspaceStage)
        case predicate(ScalarClass, SplitBehavior)
        case delimiter(Unicode.Scalar)
        case wordRuns
        case scripts
        case fixedLength(Int)
    }

    private let stages: [Stage]
    /// Whether the model gets raw bytes: the pieces are all of the byte-level alphabet, which is then left unwritten.
    let leavesRawBytes: Bool
    /// Whether a stage looks where a piece begins in the original text.
    let needsPlaces: Bool

    /// Makes the stages ready.
    ///
    /// - Parameters:
    ///   - preTokenizer: The stages; none leaves each stretch as one piece.
    ///   - allowsRawBytes: Whether the model can take raw bytes for the characters of the byte-level alphabet.
    /// - Throws: ``RegexError`` when an expression cannot be used.
    init(_ preTokenizer: PreTokenizer?, allowsRawBytes: Bool) throws {
        let steps = preTokenizer?.stages ?? []
        let lastByteLevel = steps.lastIndex { if case .byteLevel = $0 { true } else { false } }
        let leavesRaw =
            allowsRawBytes && lastByteLevel == steps.count - 1 && steps.filter(Self.isByteLevel).count == 1
        leavesRawBytes = leavesRaw
        stages = try steps.flatMap { try Self.stages($0, leavesRaw: leavesRaw) }
        needsPlaces = steps.contains {
            if case .metaspace(_, .first, _) = $0 { true } else { false }
        }
    }

    private static func isByteLevel(_ step: PreTokenizer) -> Bool {
        if case .byteLevel = step { true } else { false }
    }

    private static func stages(_ step: PreTokenizer, leavesRaw: Bool) throws -> [Stage] {
        switch step {
        case .digits(let individual): [.digits(individual: individual)]
        case .byteLevel(let addPrefixSpace, let useRegex):
            (addPrefixSpace ? [.prefixSpace] : []) + (useRegex ? [.words] : []) + (leavesRaw ? [] : [.byteAlphabet])
        case .split(let pattern, let behavior, let invert):
            [.split(try SearchPattern(pattern), behavior, invert: invert)]
        case .metaspace(let replacement, let scheme, let split):
            [.metaspace(MetaspaceStage(replacement: replacement, scheme: scheme, splits: split))]
        case .bert: [.predicate(.whitespace, .removed), .predicate(.punctuation, .isolated)]
        case .whitespace: [.wordRuns]
        case .whitespaceSplit: [.predicate(.whitespace, .removed)]
        case .punctuation(let behavior): [.predicate(.punctuation, behavior)]
        case .charDelimiterSplit(let delimiter): [.delimiter(delimiter)]
        case .unicodeScripts: [.scripts]
        case .fixedLength(let length): [.fixedLength(length)]
        case .sequence(let steps): try steps.flatMap { try stages($0, leavesRaw: leavesRaw) }
        }
    }

    /// Calls `emit` for each piece of a stretch, in order.
    ///
    /// - Parameters:
    ///   - piece: The stretch.
    ///   - tracksSpans: Whether the pieces must know where they come from.
    ///   - emit: Takes the pieces; none is empty.
    func split(_ piece: TextPiece, tracksSpans: Bool, _ emit: (TextPiece) -> Void) {
        apply(0, piece, tracksSpans, emit)
    }

    private func apply(_ stage: Int, _ piece: TextPiece, _ tracksSpans: Bool, _ emit: (TextPiece) -> Void) {
        guard !piece.bytes.isEmpty else { return }
        guard stage < stages.count else { return emit(piece) }
        func next(_ piece: TextPiece) { apply(stage + 1, piece, tracksSpans, emit) }
        switch stages[stage] {
        case .digits(let individual): Self.splitDigits(piece, individual: individual, next)
        case .words: Self.splitWords(piece, next)
        case .prefixSpace:
            if piece.bytes[0] == UInt8(ascii: " ") { return next(piece) }
            piece.transformed(tracksSpans: tracksSpans) {
                $1.prepend([" "], to: $0)
            } _: {
                next($0)
            }
        case .byteAlphabet:
            piece.transformed(tracksSpans: tracksSpans) {
                $1.writeBytes(of: $0)
            } _: {
                next($0)
            }
        case .split(let pattern, let behavior, let invert):
            Cutter.cut(piece, behavior, invert: invert, pattern, next)
        case .metaspace(let metaspace): metaspace.apply(piece, tracksSpans: tracksSpans, next)
        case .predicate(let wanted, .removed): Self.splitAway(piece, wanted, next)
        case .predicate(let wanted, let behavior):
            Cutter.cut(piece, behavior, invert: false, ScalarFinder(wanted: wanted), next)
        case .delimiter(let delimiter):
            let pattern = SearchPattern(kind: .string(Array(delimiter.utf8)))
            Cutter.cut(piece, .removed, invert: false, pattern, next)
        case .wordRuns: Self.splitWordRuns(piece, next)
        case .scripts: ScriptRuns.split(piece, next)
        case .fixedLength(let length): Self.splitEvery(length, piece, next)
        }
    }

    // MARK: Stages

    private static func splitWords(_ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        var index = 0
        while index < piece.bytes.count {
            let end = GPT2Pattern.matchEnd(piece.bytes, from: index, end: piece.bytes.count)
            emit(piece.part(index..<end))
            index = end
        }
    }

    private static func splitDigits(_ piece: TextPiece, individual: Bool, _ emit: (TextPiece) -> Void) {
        let bytes = piece.bytes
        var begin = 0  // of the run not yet emitted
        var runIsNumeric = false
        var index = 0
        while index < bytes.count {
            let (isNumeric, length) = ScalarFinder.isIn(bytes, at: index, .digit)
            if index > begin, isNumeric != runIsNumeric || (isNumeric && individual) {
                emit(piece.part(begin..<index))
                begin = index
            }
            runIsNumeric = isNumeric
            index += length
        }
        emit(piece.part(begin..<index))
    }

    /// Cuts the characters of a class away.
    private static func splitAway(_ piece: TextPiece, _ wanted: ScalarClass, _ emit: (TextPiece) -> Void) {
        var begin = 0
        ScalarFinder(wanted: wanted).forEachMatch(piece.bytes) { match in
            if match.lowerBound > begin { emit(piece.part(begin..<match.lowerBound)) }
            begin = match.upperBound
        }
        if begin < piece.bytes.count { emit(piece.part(begin..<piece.bytes.count)) }
    }

    /// `\w+|[^\w\s]+`.
    private static func splitWordRuns(_ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        let mask: ScalarClass = [.word, .whitespace]
        var begin = 0
        var run = ScalarClass()
        var index = 0
        while index < piece.bytes.count {
            let scalar = DecodedScalar(piece.bytes, at: index, end: piece.bytes.count)
            let kind = ScalarClass.of(scalar.value).intersection(mask)
            if kind != run {
                if index > begin, run != .whitespace { emit(piece.part(begin..<index)) }
                begin = index
                run = kind
            }
            index += scalar.length
        }
        if index > begin, run != .whitespace { emit(piece.part(begin..<index)) }
    }

    private static func splitEvery(_ count: Int, _ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        var begin = 0
        var index = 0
        var scalars = 0
        while index < piece.bytes.count {
            index += DecodedScalar(piece.bytes, at: index, end: piece.bytes.count).length
            scalars += 1
            if scalars == count || index >= piece.bytes.count {
                emit(piece.part(begin..<index))
                begin = index
                scalars = 0
            }
        }
    }
}
