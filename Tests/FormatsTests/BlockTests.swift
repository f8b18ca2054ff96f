import Formats
import Foundation
import TestSupport
import Testing

/// Random blocks as gguf-py writes them: any bytes, but scales that are finite.
private func randomBlocks(_ type: BlockType, count: Int, seed: UInt64) -> Data {
    var generator = SeededGenerator(seed: seed)
    var data = Data((0..<(count * type.bytesPerBlock)).map { _ in UInt8.random(in: 0...255, using: &generator) })
    // Offsets of the half-precision scales in a block.
    let halves: [Int]
    switch type {
    case .q4_0, .q5_0, .q8_0, .iq4_nl, .iq4_xs, .f16: halves = [0]
    case .q4_1, .q5_1, .q4_k, .q5_k: halves = [0, 2]
    case .q2_k: halves = [80, 82]
    case .q3_k: halves = [108]
    case .q6_k: halves = [208]
    case .tq1_0: halves = [52]
    case .tq2_0: halves = [64]
    default: halves = []
    }
    for block in 0..<count {
        for offset in halves {
            let place = block * type.bytesPerBlock + offset + 1
            // An exponent of all ones is an infinity or a NaN.
            if data[place] & 0x7C == 0x7C { data[place] ^= 0x40 }
        }
        if type == .mxfp4 { data[block * 17] = UInt8.random(in: 0...250, using: &generator) }
        // Ternary bytes are fractions of 3^5, rounded up; others are never written.
        if type == .tq1_0 {
            for i in 0..<52 {
                let digits = Int.random(in: 0..<243, using: &generator)
                data[block * 54 + i] = UInt8((digits * 256 + 242) / 243)
            }
        }
    }
    return data
}

private func dequantised(_ dequantiser: Dequantiser, rows: Range<Int>? = nil, threads: Int = 1) throws -> (
    [Float], [UInt16]
) {
    let size = (rows ?? 0..<dequantiser.rows).count * dequantiser.columns
    var floats = [Float](repeating: .nan, count: size)
    var halves = [UInt16](repeating: 0xFFFF, count: size)
    try floats.withUnsafeMutableBufferPointer { try dequantiser.write(float32: $0, rows: rows, threads: threads) }
    try halves.withUnsafeMutableBufferPointer { try dequantiser.write(bfloat16: $0, rows: rows, threads: threads) }
    return (floats, halves)
}

private func mapped(_ data: Data, in folder: TemporaryFolder) throws -> MappedBytes {
    let file = try MappedFile(path: try folder.write(data, to: "blocks"))
    return try file.slice(offset: 0, count: file.count)
}

/// A number as bfloat16, to the nearest and ties to even.
private func rounded(_ value: Float) -> UInt16 {
    UInt16(truncatingIfNeeded: (value.bitPattern &+ 0x7FFF &+ (value.bitPattern >> 16 & 1)) >> 16)
}

@Test func sizesAreThoseOfGGUFPy() async throws {
    let sizes = try #require(try JSON.parse(try await oracleAnswer("gguf_sizes", to: Data())).object)
    for type in BlockType.allCases {
        let expected: JSON = [JSON(type.name), JSON(type.elementsPerBlock), JSON(type.bytesPerBlock)]
        #expect(sizes["\(type.rawValue)"] == expected)
    }
}

@Test(
    arguments: BlockType.allCases.filter { type in
        // gguf-py leaves plain integers and doubles alone.
        type.isQuantised || [.f32, .f16, .bf16].contains(type)
    })
func blocksAreThoseOfGGUFPy(_ type: BlockType) async throws {
    let folder = try TemporaryFolder.lasting("formats")
    let data = randomBlocks(type, count: type.isQuantised ? 300 : 4001, seed: UInt64(type.rawValue) + 100)
    let expected = try await oracleAnswer("gguf_dequantise", to: data, ["code": JSON(Int(type.rawValue))]).values(
        as: Float.self)
    let rounded = expected.map(rounded)
    let bytes = try mapped(data, in: folder)
    for level in 0...Dequantiser.bestLevel {
        var dequantiser = try Dequantiser(type: type, rows: 1, columns: expected.count, bytes: bytes)
        dequantiser.level = level
        let (floats, halves) = try dequantised(dequantiser)
        try #require(floats.count == expected.count)
        let wrong = expected.indices.filter {
            // NaNs of plain types may differ in their payload.
            floats[$0].bitPattern != expected[$0].bitPattern && !(floats[$0].isNaN && expected[$0].isNaN)
        }
        #expect(wrong.isEmpty, "level \(level): \(wrong.prefix(3).map { ($0, floats[$0], expected[$0]) })")
        let wrongHalves = expected.indices.filter { halves[$0] != rounded[$0] && !expected[$0].isNaN }
        #expect(wrongHalves.isEmpty, "level \(level): \(wrongHalves.prefix(3).map { ($0, halves[$0], rounded[$0]) })")
    }
}

@Test func halvesAreExact() throws {
    // Every bit pattern: subnormals, infinities, NaNs.
    let folder = try TemporaryFolder.lasting("formats")
    let patterns = Array(UInt16.min...UInt16.max)
    let bytes = try mapped(Data(values: patterns), in: folder)
    for level in 0...Dequantiser.bestLevel {
        var dequantiser = try Dequantiser(type: .f16, rows: 1, columns: patterns.count, bytes: bytes)
        dequantiser.level = level
        let (floats, _) = try dequantised(dequantiser)
        for (pattern, value) in zip(patterns, floats) {
            let expected = referenceHalf(pattern)
            #expect(value.bitPattern == expected.bitPattern || value.isNaN && expected.isNaN)
        }
    }
}

/// A half's value from its fields.
private func referenceHalf(_ pattern: UInt16) -> Float {
    let sign: Float = pattern & 0x8000 == 0 ? 1 : -1
    let exponent = Int(pattern >> 10 & 31)
    let fraction = Float(pattern & 1023)
    switch exponent {
    case 0: return sign * fraction * Float(sign: .plus, exponent: -24, significand: 1)
    case 31: return fraction == 0 ? sign * .infinity : .nan
    default: return sign * (1 + fraction / 1024) * Float(sign: .plus, exponent: exponent - 15, significand: 1)
    }
}

@Test func bfloat16IsRoundedToTheNearest() async throws {
    let folder = try TemporaryFolder.lasting("formats")
    var generator = SeededGenerator(seed: 60)
    var values: [Float] = [
        0, -0.0, 1, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude, .leastNormalMagnitude,
    ]
    for bits: UInt32 in [
        0x3F80_8000, 0x3F81_8000, 0x3F80_7FFF, 0x3F80_8001, 0x7F7F_8000, 0x0000_8000, 0x0001_8000, 0x7F80_0001,
        0xFFFF_FFFF,
    ] {
        values.append(Float(bitPattern: bits))
    }
    for _ in 0..<20000 { values.append(Float(bitPattern: UInt32.random(in: 0...UInt32.max, using: &generator))) }
    let expected = try await oracleAnswer("bf16_round", to: Data(values: values)).values(as: UInt16.self)
    let bytes = try mapped(Data(values: values), in: folder)
    for level in 0...Dequantiser.bestLevel {
        var dequantiser = try Dequantiser(type: .f32, rows: 1, columns: values.count, bytes: bytes)
        dequantiser.level = level
        let (floats, halves) = try dequantised(dequantiser)
        #expect(floats.map(\.bitPattern) == values.map(\.bitPattern))
        for (index, value) in values.enumerated() {
            let isRight = value.isNaN ? halves[index] & 0x7FFF > 0x7F80 : halves[index] == expected[index]
            #expect(isRight, "\(value) level \(level)")
        }
    }
}

@Test func plainIntegersAndDoubles() throws {
    let folder = try TemporaryFolder.lasting("formats")
    func check<Value: BitwiseCopyable>(_ type: BlockType, _ values: [Value], _ expected: [Float]) throws {
        let bytes = try mapped(Data(values: values), in: folder)
        for level in 0...Dequantiser.bestLevel {
            var dequantiser = try Dequantiser(type: type, rows: values.count, columns: 1, bytes: bytes)
            dequantiser.level = level
            let (floats, halves) = try dequantised(dequantiser)
            #expect(floats == expected)
            #expect(halves == expected.map(rounded))
        }
    }
    var generator = SeededGenerator(seed: 61)
    let words = (0..<517).map { _ in Int64(bitPattern: generator.next()) }
    try check(.i8, words.map { Int8(truncatingIfNeeded: $0) }, words.map { Float(Int8(truncatingIfNeeded: $0)) })
    try check(.i16, words.map { Int16(truncatingIfNeeded: $0) }, words.map { Float(Int16(truncatingIfNeeded: $0)) })
    try check(.i32, words.map { Int32(truncatingIfNeeded: $0) }, words.map { Float(Int32(truncatingIfNeeded: $0)) })
    try check(.i64, words, words.map { Float($0) })
    let doubles = words.map { Double($0) / 3e11 }
    try check(.f64, doubles, doubles.map { Float($0) })
}

@Test(arguments: [1, 2, 3, 8]) func headsAreSplitAsHuggingFaceHasThem(heads: Int) async throws {
    let folder = try TemporaryFolder.lasting("formats")
    let rows = heads * 12
    let columns = 64
    var generator = SeededGenerator(seed: 62)
    let stored = (0..<(rows * columns)).map { _ in Float.random(in: -1...1, using: &generator) }
    let source = try folder.write(Data(values: stored), to: "stored")
    try await runOracle(
        "unpermuted", source: source, target: folder("out"),
        ["rows": JSON(rows), "columns": JSON(columns), "heads": JSON(heads)])
    let expected = try Data(contentsOf: URL(filePath: folder("out"))).values(as: Float.self)
    let file = try MappedFile(path: source)
    let bytes = try file.slice(offset: 0, count: file.count)
    let dequantiser = try Dequantiser(
        type: .f32, rows: rows, columns: columns, bytes: bytes, order: .splittingHeads(heads))
    #expect(try dequantised(dequantiser).0 == expected)
    // A part of the rows, and more threads than one.
    let part = 5..<(rows - 2)
    #expect(
        try dequantised(dequantiser, rows: part, threads: 4).0
            == Array(expected[(part.lowerBound * columns)..<(part.upperBound * columns)]))
    #expect(RowOrder.stored.sourceRow(of: 7, rows: rows) == 7)
    #expect(
        !RowOrder.splittingHeads(5).fits(rows: 12) && !RowOrder.splittingHeads(0).fits(rows: 12)
            && !RowOrder.splittingHeads(4).fits(rows: 12))
}

@Test(arguments: [RowOrder.stored, .splittingHeads(4)]) func threadsShareTheRows(order: RowOrder) throws {
    let folder = try TemporaryFolder.lasting("formats")
    let data = randomBlocks(.q4_k, count: 1200 * 3, seed: 63)
    let dequantiser = try Dequantiser(
        type: .q4_k, rows: 1200, columns: 768, bytes: try mapped(data, in: folder), order: order)
    let (floats, halves) = try dequantised(dequantiser)
    for threads in [2, 3, 7] {
        let (a, b) = try dequantised(dequantiser, threads: threads)
        #expect(a == floats && b == halves)
        let rows = 100..<1111
        let (c, d) = try dequantised(dequantiser, rows: rows, threads: threads)
        #expect(c == Array(floats[(100 * 768)..<(1111 * 768)]) && d == Array(halves[(100 * 768)..<(1111 * 768)]))
    }
}

@Test func wrongRoomIsRefused() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let bytes = try mapped(randomBlocks(.q4_0, count: 6, seed: 64), in: folder)
    let dequantiser = try Dequantiser(type: .q4_0, rows: 3, columns: 64, bytes: bytes)
    var room = [Float](repeating: 0, count: 64)
    try room.withUnsafeMutableBufferPointer { out in
        try dequantiser.write(float32: out, rows: 2..<3)
        for rows in [0..<2, 3..<4, 0..<3] { _ = try formatError { try dequantiser.write(float32: out, rows: rows) } }
    }
    _ = try formatError { _ = try Dequantiser(type: .q4_0, rows: 3, columns: 63, bytes: bytes) }
    _ = try formatError { _ = try Dequantiser(type: .q4_0, rows: 4, columns: 64, bytes: bytes) }
    _ = try formatError {
        _ = try Dequantiser(type: .q4_0, rows: 3, columns: 64, bytes: bytes, order: .splittingHeads(3))
    }
}
