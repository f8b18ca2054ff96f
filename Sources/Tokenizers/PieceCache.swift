/// Remembers the tokens of short pieces, so that frequent words are merged once.
///
/// Each piece has one place, found by its hash; a newer piece takes the place of an older one, so memory is bounded.
struct PieceCache: Sendable {
    /// The longest piece that is remembered, in bytes.
    static let longestPiece = 16
    /// The most tokens a remembered piece may have.
    static let mostTokens = 8

    /// A piece packed in two words; pieces of equal length are equal when their words are.
    struct Key {
        let low: UInt64
        let high: UInt64
        let length: UInt8

        /// Packs a piece of 1 to 16 bytes.
        @inline(__always)
        init(_ piece: UnsafeBufferPointer<UInt8>) {
            let bytes = UnsafeRawBufferPointer(piece)
            let count = bytes.count
            length = UInt8(truncatingIfNeeded: count)
            if count >= 8 {
                low = bytes.loadUnaligned(as: UInt64.self)
                high = bytes.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
            } else if count >= 4 {
                low = UInt64(bytes.loadUnaligned(as: UInt32.self))
                high = UInt64(bytes.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self))
            } else {
                low = UInt64(bytes[0]) | UInt64(bytes[count / 2]) << 8 | UInt64(bytes[count - 1]) << 16
                high = 0
            }
        }

        @inline(__always)
        fileprivate var place: Int {
            let mixed = ((low &* 0x9E37_79B9_7F4A_7C15) ^ high ^ UInt64(length)) &* 0xBF58_476D_1CE4_E5B9
            return Int(truncatingIfNeeded: mixed >> (64 - PieceCache.placeBits))
        }
    }

    private struct Place {
        var low: UInt64 = 0
        var high: UInt64 = 0
        var length: UInt8 = 0  // 0: free
        var count: UInt8 = 0
    }

    private static let placeBits: UInt64 = 14

    private var places: [Place] = []
    private var tokens: [UInt32] = []
    /// Where each token ends in its piece, beside `tokens`.
    private var ends: [UInt8] = []

    /// Whether anything can be remembered.
    var isEnabled: Bool { !places.isEmpty }

    /// Makes room, if there is none.
    mutating func enable() {
        guard !isEnabled else { return }
        places = [Place](repeating: Place(), count: 1 << Int(Self.placeBits))
        tokens = [UInt32](repeating: 0, count: Self.mostTokens << Int(Self.placeBits))
        ends = [UInt8](repeating: 0, count: Self.mostTokens << Int(Self.placeBits))
    }

    /// Calls `body` with each token of a remembered piece and its places; returns false when it is not remembered.
    @inline(__always)
    func forEachToken(of key: Key, _ body: (_ token: UInt32, _ start: Int, _ end: Int) -> Void) -> Bool {
        let index = key.place
        let place = places[index]
        guard place.low == key.low, place.high == key.high, place.length == key.length else { return false }
        let begin = index * Self.mostTokens
        var start = 0
        for slot in begin..<begin + Int(place.count) {
            let end = Int(ends[slot])
            body(tokens[slot], start, end)
            start = end
        }
        return true
    }

    /// Remembers the tokens of a piece, unless there are too many or they do not follow each other without a gap.
    mutating func remember(_ key: Key, _ pieceTokens: [PieceToken]) {
        guard pieceTokens.count <= Self.mostTokens else { return }
        var end: Int32 = 0
        for token in pieceTokens {
            guard token.start == end, token.end >= end else { return }
            end = token.end
        }
        let index = key.place
        places[index] = Place(
            low: key.low, high: key.high, length: key.length, count: UInt8(truncatingIfNeeded: pieceTokens.count))
        for (offset, token) in pieceTokens.enumerated() {
            tokens[index * Self.mostTokens + offset] = token.token
            ends[index * Self.mostTokens + offset] = UInt8(truncatingIfNeeded: token.end)
        }
    }
}
