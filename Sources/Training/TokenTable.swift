import Crypto
import Formats

/// The rows of a file as tokens, whole and in the file's order: mapped from a cache file or in memory.
///
/// The same bytes in both cases, little-endian:
///
///     header    magic (8), version (4), zero (4), key (32), zeros (16)
///     blocks    tokens of up to 65536 rows, 4 bytes each: the number, with bit 31 set where it is part of the loss;
///               zeros up to a multiple of 8; an entry of 32 bytes for each of these rows:
///               offset of its tokens (8), line (8), tokens (4), supervised tokens (4), place of the first supervised
///               token (4), place of the first end-of-turn token that is supervised (4; all ones: none)
///     table     for each block the offset of its entries (8) and its rows (8)
///     facts     JSON, see `TokenTableFacts`
///     trailer   offset of the table (8), blocks (8), offset of the facts (8), SHA-256 of all bytes before it (32),
///               magic (8)
final class TokenTable: Sendable {
    static let magic = Array("GRAFTTOK".utf8)
    static let version: UInt32 = 1
    static let headerSize = 64
    static let trailerSize = 64
    static let entrySize = 32
    static let rowsPerBlock = 65_536
    static let none = UInt32.max

    /// What is known of a row without its tokens.
    struct Entry {
        var offset: Int
        var line: Int
        var count: Int
        var supervised: Int
        var firstSupervised: Int
        /// Nil where no end-of-turn token is supervised.
        var firstStop: Int?

        /// Whether the tokens lie before an offset, and the places among them.
        func isSound(before end: Int) -> Bool {
            offset >= TokenTable.headerSize && offset <= end && count > 0 && count * 4 <= end - offset && line > 0
                && supervised <= count && firstStop ?? 0 < count
                && (supervised == 0 ? firstSupervised == Int(TokenTable.none) : firstSupervised < count)
        }
    }

    /// The number of sequences of tokens.
    let count: Int
    let facts: TokenTableFacts
    private let memory: TokenMemory
    /// The offsets of the blocks' entries.
    private let blocks: [Int]

    private var bytes: UnsafeRawBufferPointer { memory.bytes }

    /// Opens a table.
    ///
    /// - Parameters:
    ///   - memory: Its bytes.
    ///   - key: What it must be the table of, 32 bytes.
    ///   - isVerified: Whether the digest is known to be right.
    /// - Throws: ``TrainingError`` when the bytes are not a whole table of that key.
    init(_ memory: TokenMemory, key: [UInt8], isVerified: Bool) throws {
        let bytes = memory.bytes
        let trailer = bytes.count - Self.trailerSize
        guard trailer >= Self.headerSize, bytes.starts(with: Self.magic), Self.word(bytes, 8) == Self.version,
            bytes[16..<48].elementsEqual(key), bytes[(trailer + 56)...].elementsEqual(Self.magic)
        else { throw TrainingError("not a whole token table of these rows") }
        if !isVerified {
            let digest = sha256(UnsafeRawBufferPointer(rebasing: bytes[..<(trailer + 24)]))
            guard bytes[(trailer + 24)..<(trailer + 56)].elementsEqual(digest) else {
                throw TrainingError("the token table is damaged")
            }
        }
        let (table, blockCount, factsStart) = (
            Self.long(bytes, trailer), Self.long(bytes, trailer + 8), Self.long(bytes, trailer + 16)
        )
        guard Self.headerSize <= table, table <= factsStart, factsStart <= trailer, blockCount >= 0,
            blockCount == (factsStart - table) / 16
        else { throw TrainingError("the token table is damaged") }
        facts = try TokenTableFacts(
            JSON.parse(UnsafeRawBufferPointer(rebasing: bytes[factsStart..<trailer])))
        var blocks: [Int] = []
        var count = 0
        for block in 0..<blockCount {
            let (start, rows) = (Self.long(bytes, table + block * 16), Self.long(bytes, table + block * 16 + 8))
            let isLast = block == blockCount - 1
            let isFull = rows == Self.rowsPerBlock || (isLast && (1...Self.rowsPerBlock).contains(rows))
            guard isFull, start >= Self.headerSize, start <= table, rows * Self.entrySize <= table - start else {
                throw TrainingError("the token table is damaged")
            }
            blocks.append(start)
            count += rows
        }
        self.memory = memory
        self.blocks = blocks
        self.count = count
        guard (facts.rows - facts.badCount) * facts.sequencesPerRow == count,
            (0..<count).allSatisfy({ self.entry($0).isSound(before: table) })
        else { throw TrainingError("the token table is damaged") }
    }

    /// What is known of a row.
    func entry(_ row: Int) -> Entry {
        let (block, index) = row.quotientAndRemainder(dividingBy: Self.rowsPerBlock)
        let start = blocks[block] + index * Self.entrySize
        let stop = Self.word(bytes, start + 28)
        return Entry(
            offset: Self.long(bytes, start), line: Self.long(bytes, start + 8),
            count: Int(Self.word(bytes, start + 16)),
            supervised: Int(Self.word(bytes, start + 20)), firstSupervised: Int(Self.word(bytes, start + 24)),
            firstStop: stop == Self.none ? nil : Int(stop))
    }

    /// The words of the first tokens of a row: bit 31 says that a token is supervised.
    func words(of entry: Entry, prefix: Int) -> [UInt32] {
        (0..<min(prefix, entry.count)).map { Self.word(bytes, entry.offset + 4 * $0) }
    }

    /// Offsets that no file can have become negative, which every check refuses.
    private static func long(_ bytes: UnsafeRawBufferPointer, _ offset: Int) -> Int {
        let value = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        return value > UInt64(Int32.max) << 24 ? -1 : Int(value)
    }

    private static func word(_ bytes: UnsafeRawBufferPointer, _ offset: Int) -> UInt32 {
        UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
}

/// What a table says of its file as a whole.
struct TokenTableFacts: Equatable {
    /// A row that cannot be used.
    struct BadRow: Equatable {
        let line: Int
        let reason: String
    }

    /// At most so many bad rows are described; the others are counted.
    static let badRowLimit = 1000

    /// The rows of the file, bad ones included.
    var rows = 0
    /// The tokens of the longest row.
    var longest = 0
    /// How many rows cannot be used.
    var badCount = 0
    /// The first of them.
    var badRows: [BadRow] = []
    /// How many rows there are of each form that is read as another one.
    var lookAlikes: KeyedList<Int> = [:]
    /// SHA-256 over tokens and marks of all rows.
    var digest = ""
    /// How many sequences of tokens each row that can be used has in the table.
    var sequencesPerRow = 1
    /// The names of the labels, in the order in which they are first met: rows have their numbers.
    var labels: [String] = []

    init() {}

    init(_ json: JSON) throws {
        guard let rows = json["rows"]?.int, let longest = json["longest"]?.int, let badCount = json["bad"]?.int,
            let digest = json["digest"]?.string, let bad = json["bad_rows"]?.array,
            let forms = json["look_alikes"]?.object
        else { throw TrainingError("the token table is damaged") }
        (self.rows, self.longest, self.badCount, self.digest) = (rows, longest, badCount, digest)
        sequencesPerRow = json["sequences"]?.int ?? 1
        labels = json["labels"]?.array?.compactMap(\.string) ?? []
        badRows = bad.compactMap { row in
            row[0]?.int.flatMap { line in row[1]?.string.map { BadRow(line: line, reason: $0) } }
        }
        for (form, count) in forms { lookAlikes[form] = count.int ?? -1 }
        guard rows >= 0, longest >= 0, (0...rows).contains(badCount), badRows.count == min(badCount, Self.badRowLimit),
            (1...2).contains(sequencesPerRow), badRows.allSatisfy({ $0.line > 0 }),
            lookAlikes.allSatisfy({ (0...rows).contains($0.value) })
        else { throw TrainingError("the token table is damaged") }
    }

    var json: JSON {
        var forms = KeyedList<JSON>()
        for (form, count) in lookAlikes { forms[form] = JSON(count) }
        var object: KeyedList<JSON> = [
            "rows": JSON(rows), "longest": JSON(longest), "bad": JSON(badCount), "digest": .string(digest),
            "bad_rows": JSON(badRows.map { [JSON($0.line), .string($0.reason)] }), "look_alikes": .object(forms),
        ]
        if sequencesPerRow > 1 { object["sequences"] = JSON(sequencesPerRow) }
        if !labels.isEmpty { object["labels"] = JSON(labels.map { .string($0) }) }
        return .object(object)
    }
}
