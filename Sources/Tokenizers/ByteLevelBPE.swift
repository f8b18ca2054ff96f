/// Byte-pair encoding over bytes, as GPT-2 introduced it: every piece begins as single bytes, and ranked merges join them.
struct ByteLevelBPE: TokenizerModel {
    /// What each token stands for, as bytes.
    let tokens: ByteStringTable
    let merges: MergeTable
    /// The token of each single byte; nil where the vocabulary lacks it.
    let byteTokens: [UInt32?]
    /// What stands for a byte that the vocabulary lacks; without it such a byte is dropped, as the reference does.
    let unknownToken: UInt32?
    /// Whether a run of unknown bytes gives one token.
    let fusesUnknown: Bool
    /// A piece that is a token as a whole is not merged (`ignore_merges`).
    let ignoresMerges: Bool

    var name: String { "BPE" }

    func encode(_ piece: TextPiece, state: inout EncodingState, output: inout TokenList) {
        guard state.cache.isEnabled, piece.bytes.count <= PieceCache.longestPiece else {
            merge(piece, &state.merger)
            return emit(state.merger, piece, &output)
        }
        let key = PieceCache.Key(piece.bytes)
        let isKnown = state.cache.withTokens(of: key) { remembered in
            var place = piece.origin
            for token in remembered {
                let end = place + tokens.length(of: Int(token))
                output.append(Int(token), max(place, piece.start)..<end)
                place = end
            }
        }
        if isKnown { return }
        merge(piece, &state.merger)
        emit(state.merger, piece, &output)
        // The places of remembered tokens follow from their lengths: only where they tile the piece.
        let symbols = state.merger.symbols
        guard symbols.reduce(0, { $0 + tokens.length(of: Int($1.token)) }) == piece.bytes.count,
            symbols.allSatisfy({ tokens.length(of: Int($0.token)) == $0.end - $0.start })
        else { return }
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: symbols.count) { buffer in
            for (index, symbol) in symbols.enumerated() { buffer.initializeElement(at: index, to: symbol.token) }
            state.cache.remember(key, UnsafeBufferPointer(buffer))
        }
    }

    private func emit(_ merger: PairMerger, _ piece: TextPiece, _ output: inout TokenList) {
        for symbol in merger.symbols {
            output.append(
                Int(symbol.token),
                max(piece.origin + Int(symbol.start), piece.start)..<max(piece.origin + Int(symbol.end), piece.start))
        }
    }

    private func merge(_ piece: TextPiece, _ merger: inout PairMerger) {
        merger.symbols.removeAll(keepingCapacity: true)
        if ignoresMerges, let whole = tokens.number(of: piece.bytes) {
            let end = Int32(truncatingIfNeeded: piece.bytes.count)
            merger.symbols.append(.init(token: UInt32(whole), start: 0, end: end))
            return
        }
        var lastIsUnknown = false
        for (index, byte) in piece.bytes.enumerated() {
            let start = Int32(truncatingIfNeeded: index)
            if let token = byteTokens[Int(byte)] {
                merger.symbols.append(.init(token: token, start: start, end: start + 1))
                lastIsUnknown = false
            } else if let unknownToken {
                if fusesUnknown, lastIsUnknown {
                    merger.symbols[merger.symbols.count - 1].end = start + 1
                } else {
                    merger.symbols.append(.init(token: unknownToken, start: start, end: start + 1))
                }
                lastIsUnknown = true
            }
        }
        merger.merge(merges)
    }
}
