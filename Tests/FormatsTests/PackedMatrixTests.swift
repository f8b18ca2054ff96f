import Formats
import Foundation
import TestSupport
import Testing

private let types: [BlockType] = [.q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q2_k, .q3_k, .q4_k, .q5_k, .q6_k]

/// A matrix of random blocks with scales of ordinary size and any sign.
func randomMatrix(
    _ type: BlockType, rows: Int, columns: Int, seed: UInt64, order: RowOrder = .stored
) throws -> Dequantiser {
    var generator = SeededGenerator(seed: seed)
    let count = rows * columns / type.elementsPerBlock
    var bytes = (0..<count * type.bytesPerBlock).map { _ in UInt8.random(in: 0...255, using: &generator) }
    let halves: [Int]
    switch type {
    case .q4_1, .q5_1, .q4_k, .q5_k: halves = [0, 2]
    case .q2_k: halves = [80, 82]
    case .q3_k: halves = [108]
    case .q6_k: halves = [208]
    default: halves = [0]
    }
    for block in 0..<count {
        for half in halves {
            // The upper byte holds the sign, the exponent and two more bits: about 1/128 to 1/16.
            let upper = UInt8.random(in: 0x20..<0x2C, using: &generator) | (Bool.random(using: &generator) ? 0x80 : 0)
            bytes[block * type.bytesPerBlock + half + 1] = upper
        }
    }
    let path = try TemporaryFolder.lasting("packed").write(Data(bytes), to: "blocks")
    let file = try MappedFile(path: path)
    return try Dequantiser(
        type: type, rows: rows, columns: columns, bytes: file.slice(offset: 0, count: file.count), order: order)
}

private func unpacked(_ matrix: Dequantiser) throws -> [Float] {
    var values = [Float](repeating: .nan, count: matrix.rows * matrix.columns)
    try values.withUnsafeMutableBufferPointer { try matrix.write(float32: $0) }
    return values
}

private func product(_ matrix: PackedMatrix, _ x: [Float], threads: Int = 1) throws -> [Float] {
    var y = [Float](repeating: .nan, count: x.count / matrix.stored.columns * matrix.stored.rows)
    try x.withUnsafeBufferPointer { input in
        try y.withUnsafeMutableBufferPointer { try matrix.multiply(input, into: $0, threads: threads) }
    }
    return y
}

/// A vector rounded to 8 bits, 32 values with a scale of their own.
private func rounded(_ x: ArraySlice<Float>) -> [Double] {
    stride(from: x.startIndex, to: x.endIndex, by: 32).flatMap { start in
        let run = x[start..<start + 32]
        let highest = run.reduce(0) { max($0, abs($1)) }
        guard highest > 0 else { return [Double](repeating: 0, count: 32) }
        return run.map { Double(($0 * (127 / highest)).rounded(.toNearestOrEven)) * Double(highest / 127) }
    }
}

/// What a product should be, of the vector as it is and of the rounded one, and what rounding in fp32 may add to it.
private func dense(
    _ weights: [Float], _ x: [Float], rows: Int, columns: Int
) -> (exact: [Double], rounded: [Double], slack: [Double]) {
    var result: (exact: [Double], rounded: [Double], slack: [Double]) = ([], [], [])
    for start in stride(from: 0, to: x.count, by: columns) {
        let vector = x[start..<start + columns]
        let codes = rounded(vector)
        for row in 0..<rows {
            var (exact, near, slack) = (0.0, 0.0, 0.0)
            for column in stride(from: 0, to: columns, by: 32) {
                var (highest, sum) = (0.0, 0.0)
                for i in column..<column + 32 {
                    let weight = Double(weights[row * columns + i])
                    exact += weight * Double(x[start + i])
                    near += weight * codes[i]
                    highest = max(highest, abs(weight))
                    sum += abs(codes[i])
                }
                slack += highest * sum
            }
            result.exact.append(exact)
            result.rounded.append(near)
            result.slack.append(slack * 2e-6)
        }
    }
    return result
}

@Suite struct PackedMatrixTests {
    /// Every type with every set of instructions, for odd numbers of rows and of vectors: the product of the
    /// dequantised weights with the rounded vector to the rounding of fp32, and near that of the vector itself.
    @Test(arguments: types, PackedMatrix.levels)
    func equalsDenseProducts(type: BlockType, level: Int) throws {
        let columns = 768
        for (index, (rows, count)) in [(1, 1), (37, 13), (48, 8), (15, 130)].enumerated() {
            let seed = UInt64(type.rawValue) * 100 + UInt64(level * 10 + index)
            let matrix = try PackedMatrix(randomMatrix(type, rows: rows, columns: columns, seed: seed))
            matrix.level = level
            var generator = SeededGenerator(seed: seed + 7000)
            var x = generator.normals(count * columns)
            for i in 0..<32 { x[i + 32] = 0 }
            let y = try product(matrix, x)
            let expected = dense(try unpacked(matrix.stored), x, rows: rows, columns: columns)
            var (error, size) = (0.0, 0.0)
            for i in y.indices {
                let gap = abs(Double(y[i]) - expected.rounded[i])
                #expect(gap <= expected.slack[i], "row \(i % rows) of vector \(i / rows): off by \(gap)")
                error += (Double(y[i]) - expected.exact[i]) * (Double(y[i]) - expected.exact[i])
                size += expected.exact[i] * expected.exact[i]
            }
            if rows * count > 100 { #expect((error / size).squareRoot() < 0.01) }
        }
    }

    /// The same bits on any number of threads, and however many vectors are multiplied together.
    @Test(arguments: [BlockType.q4_1, .q8_0, .q6_k])
    func doesNotDependOnThreads(type: BlockType) throws {
        let (rows, columns, count) = (203, 512, 21)
        let matrix = try PackedMatrix(randomMatrix(type, rows: rows, columns: columns, seed: 5), threads: 3)
        var generator = SeededGenerator(seed: 6)
        let x = generator.normals(count * columns)
        let alone = try product(matrix, x)
        for threads in [2, 3, 5, 2] { #expect(try product(matrix, x, threads: threads) == alone) }
        for vector in [0, 9, 20] {
            let one = try product(matrix, Array(x[vector * columns..<(vector + 1) * columns]), threads: 2)
            #expect(one == Array(alone[vector * rows..<(vector + 1) * rows]))
        }
    }

    /// Rows come in the order that is asked for.
    @Test func ordersRows() throws {
        let matrix = try PackedMatrix(
            randomMatrix(.q4_1, rows: 48, columns: 64, seed: 8, order: .splittingHeads(3)))
        var generator = SeededGenerator(seed: 9)
        let x = generator.normals(64)
        let expected = dense(try unpacked(matrix.stored), x, rows: 48, columns: 64)
        for (value, (near, slack)) in zip(try product(matrix, x), zip(expected.rounded, expected.slack)) {
            #expect(abs(Double(value) - near) <= slack)
        }
    }

    /// What is no number makes its own vector none, and no other.
    @Test(arguments: PackedMatrix.levels, [Float.nan, .infinity, -.infinity])
    func passesOnWhatIsNoNumber(level: Int, value: Float) throws {
        let matrix = try PackedMatrix(randomMatrix(.q4_1, rows: 20, columns: 64, seed: 10))
        matrix.level = level
        var generator = SeededGenerator(seed: 11)
        var x = generator.normals(3 * 64)
        x[64 + 40] = value
        let y = try product(matrix, x)
        for i in y.indices { #expect(y[i].isNaN == (20..<40).contains(i)) }
    }

    /// Vectors of numbers that all but vanish, and of the largest ones.
    @Test(arguments: PackedMatrix.levels, [Float(1e-44), 1e-38, 1e30])
    func takesAnySize(level: Int, size: Float) throws {
        let matrix = try PackedMatrix(randomMatrix(.q8_0, rows: 20, columns: 64, seed: 12))
        matrix.level = level
        var generator = SeededGenerator(seed: 13)
        let x = generator.normals(64).map { $0 * size }
        let expected = dense(try unpacked(matrix.stored), x, rows: 20, columns: 64)
        for (value, exact) in zip(try product(matrix, x), expected.exact) {
            #expect(abs(Double(value) - exact) <= 1.5 * Double(size) + 1e-36)
        }
    }

    @Test func refusesWhatDoesNotFit() throws {
        #expect(!PackedMatrix.canPack(.q4_1, columns: 48))
        #expect(!PackedMatrix.canPack(.f16, columns: 64))
        #expect(!PackedMatrix.canPack(.mxfp4, columns: 64))
        #expect(!PackedMatrix.canPack(.q4_k, columns: 128))
        #expect(
            try formatError { _ = try PackedMatrix(randomMatrix(.iq4_nl, rows: 2, columns: 64, seed: 1)) }
                .description.contains("cannot be multiplied packed"))
        let matrix = try PackedMatrix(randomMatrix(.q4_1, rows: 4, columns: 64, seed: 14))
        #expect(
            try formatError { _ = try product(matrix, [Float](repeating: 0, count: 65)) }
                .description.contains("65 values"))
    }
}
