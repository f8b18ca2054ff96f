import Crypto
import Formats

/// Writes a token table row by row, to a file or into memory, holding no more than a block's entries.
struct TokenTableWriter {
    private let write: (UnsafeRawBufferPointer) throws -> Void
    private var buffer: [UInt8] = []
    /// The bytes so far, those in the buffer included.
    private var count = 0
    private var hash = SHA256()
    private var contentHash = SHA256()
    private var entries: [UInt8] = []
    private var entryCount = 0
    private var blocks: [(start: Int, rows: Int)] = []
    private var labelNumbers: [String: Int] = [:]
    var facts = TokenTableFacts()

    /// Begins a table.
    ///
    /// - Parameters:
    ///   - key: What it is the table of, 32 bytes.
    ///   - write: Takes the bytes in order.
    init(key: [UInt8], write: @escaping (UnsafeRawBufferPointer) throws -> Void) throws {
        self.write = write
        put(TokenTable.magic)
        put(TokenTable.version)
        put(UInt32(0))
        put(key)
        put([UInt8](repeating: 0, count: TokenTable.headerSize - 16 - key.count))
    }

    /// Adds a row: its sequences of tokens one behind the other, a label as a sequence of its own.
    ///
    /// - Parameters:
    ///   - label: The name of the row's label.
    ///   - stops: The tokens that end a turn or a text.
    mutating func append(_ example: Example, label: String? = nil, stops: Set<Int>) throws {
        for sequence in example.sequences { try append(sequence: sequence, stops: stops) }
        if let label {
            let number = labelNumbers[label] ?? facts.labels.count
            if number == facts.labels.count {
                facts.labels.append(label)
                labelNumbers[label] = number
            }
            try append(sequence: Example(ids: [0, number], supervised: [], line: example.line), stops: [])
        }
        facts.rows += 1
        if buffer.count >= 1 << 20 { try flush() }
    }

    private mutating func append(sequence example: Example, stops: Set<Int>) throws {
        let start = count
        var firstStop = TokenTable.none
        var firstSupervised = TokenTable.none
        var supervised: UInt32 = 0
        var content = [Int64(example.ids.count).littleEndian]
        for (index, (id, isSupervised)) in zip(example.ids, example.supervised).enumerated() {
            guard let word = UInt32(exactly: id), word < 1 << 31 else {
                throw TrainingError("the token \(id) does not fit the token table")
            }
            put(isSupervised ? word | 1 << 31 : word)
            // The sign tells supervised tokens from others; the count keeps neighbouring rows apart.
            content.append((isSupervised ? ~Int64(id) : Int64(id)).littleEndian)
            guard isSupervised else { continue }
            supervised += 1
            if firstSupervised == TokenTable.none { firstSupervised = UInt32(index) }
            if firstStop == TokenTable.none, stops.contains(id) { firstStop = UInt32(index) }
        }
        content.withUnsafeBytes { contentHash.update(bufferPointer: $0) }
        Self.append(UInt64(start), to: &entries)
        Self.append(UInt64(example.line), to: &entries)
        for word in [UInt32(example.ids.count), supervised, firstSupervised, firstStop] {
            Self.append(word, to: &entries)
        }
        entryCount += 1
        facts.longest = max(facts.longest, example.ids.count)
        if entryCount == TokenTable.rowsPerBlock { endBlock() }
    }

    /// Notes a row that cannot be used.
    mutating func appendBad(line: Int, reason: String) {
        facts.rows += 1
        facts.badCount += 1
        if facts.badRows.count < TokenTableFacts.badRowLimit {
            facts.badRows.append(TokenTableFacts.BadRow(line: line, reason: reason))
        }
    }

    /// Completes the table.
    mutating func finish() throws {
        if entryCount > 0 { endBlock() }
        facts.digest = hexadecimal(contentHash.finalize())
        let table = count
        for block in blocks {
            put(UInt64(block.start))
            put(UInt64(block.rows))
        }
        let factsStart = count
        put(Array(facts.json.compact.utf8))
        for word in [table, blocks.count, factsStart] { put(UInt64(word)) }
        try flush()
        put(Array(hash.finalize()))
        put(TokenTable.magic)
        try flush()
    }

    private mutating func endBlock() {
        put([UInt8](repeating: 0, count: (8 - count % 8) % 8))
        blocks.append((count, entryCount))
        put(entries)
        entries.removeAll(keepingCapacity: true)
        entryCount = 0
    }

    private mutating func flush() throws {
        try buffer.withUnsafeBytes { bytes in
            hash.update(bufferPointer: bytes)
            try write(bytes)
        }
        buffer.removeAll(keepingCapacity: true)
    }

    private mutating func put(_ bytes: [UInt8]) {
        buffer += bytes
        count += bytes.count
    }

    private mutating func put<Value: FixedWidthInteger>(_ value: Value) {
        Self.append(value, to: &buffer)
        count += MemoryLayout<Value>.size
    }

    private static func append<Value: FixedWidthInteger>(_ value: Value, to bytes: inout [UInt8]) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
}
