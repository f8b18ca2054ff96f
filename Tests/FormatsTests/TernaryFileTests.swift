import Formats
import Foundation
import TestSupport
import Testing

/// Ternary vectors, their codes and their file.
@Suite struct TernaryFileTests {
    private func random(_ count: Int, density: Double, seed: UInt64) -> TernaryVector {
        var generator = SeededGenerator(seed: seed)
        var vector = TernaryVector(count: count, scale: Float(0.25 + generator.uniform()))
        for index in 0..<count where generator.uniform() < density {
            vector.keep(index, isNegative: Bool.random(using: &generator))
        }
        return vector
    }

    private func write(_ vector: TernaryVector, _ path: String) throws -> (codes: Int, file: Int) {
        try TernaryFile.write(
            to: path, tensors: ["w": TernaryFile.Entry(shape: [vector.count])], vector: vector, density: 0.5, alpha: 1)
    }

    @Test(arguments: [0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.0]) func readingGivesWhatWasWritten(
        density: Double
    ) throws {
        try withTemporaryFolder { folder in
            for count in [1, 7, 64, 65, 1001, 20_011] {
                let vector = random(count, density: density, seed: UInt64(count))
                _ = try write(vector, folder("v"))
                let file = try TernaryFile(path: folder("v"))
                #expect(file.vector == vector)
                #expect(file.density == 0.5 && file.alpha == 1)
                #expect(file.tensors.keys == ["w"])
            }
        }
    }

    @Test(arguments: [0.01, 0.05, 0.1, 0.2, 0.5]) func takesWhatGolombsFormulaSays(density: Double) async throws {
        let vector = random(200_003, density: density, seed: 3)
        let codes = try withTemporaryFolder { try write(vector, $0("v")).codes }
        let expected = try await Oracle.shared.call(
            "values.golomb_bits", ["kept": JSON(vector.keptCount), "count": JSON(vector.count)])
        let lowBits = RiceCode.lowBits(kept: vector.keptCount, of: vector.count)
        #expect(lowBits == expected["low_bits"]?.int)
        let perKept = try #require(expected["per_kept"]?.double)
        let share = Double(vector.keptCount) / Double(vector.count)
        #expect(abs(RiceCode.expectedBits(density: share, lowBits: lowBits) - perKept) < 1e-9 * perKept)
        #expect(abs(Double(codes) * 8 / (Double(vector.keptCount) * perKept) - 1) < 0.03)
        let bound = try #require(expected["entropy"]?.double)
        #expect(abs(RiceCode.entropy(density: share) - bound) < 1e-9 * bound)
        #expect(Double(codes) * 8 >= bound * Double(vector.count))
    }

    @Test func theCardsExampleOfALengthOfGaps() {
        #expect(RiceCode.lowBits(kept: 5, of: 100) == 4)
        #expect(abs(RiceCode.expectedBits(density: 0.05, lowBits: 4) - 6.786) < 1e-3)
        #expect(abs(RiceCode.entropy(density: 0.05) - 0.336) < 1e-3)
        #expect(abs(RiceCode.entropy(density: 0.5) - 1.5) < 1e-12)
    }

    @Test(arguments: [1, 63, 64, 1000, 4099]) func countingBitsIsTheDenseProduct(count: Int) throws {
        let (a, b) = (random(count, density: 0.4, seed: 5), random(count, density: 0.7, seed: 6))
        func values(_ vector: TernaryVector) -> [Double] { (0..<count).map { Double(vector.sign($0)) } }
        let product = zip(values(a), values(b)).reduce(0) { $0 + $1.0 * $1.1 }
        #expect(a.dot(b) == product * Double(a.scale) * Double(b.scale))
        #expect(a.hammingDistance(b) == zip(values(a), values(b)).count { $0 != $1 })
        #expect(a.signDistance(b) == Int(zip(values(a), values(b)).reduce(0) { $0 + abs($1.0 - $1.1) }))
        #expect(a.dot(random(count + 1, density: 0.4, seed: 5)) == nil)
        #expect(a.keptCount == values(a).count { $0 != 0 })
    }

    @Test func tensorsArePartsOfTheVector() throws {
        try withTemporaryFolder { folder in
            let vector = random(30, density: 0.5, seed: 9)
            let tensors: KeyedList<TernaryFile.Entry> = [
                "a.b": TernaryFile.Entry(shape: [2, 3]),
                "a.c": TernaryFile.Entry(shape: [4, 5], start: .own, startNorm: 2.5),
                "é": TernaryFile.Entry(shape: [4]),
            ]
            try TernaryFile.write(to: folder("v"), tensors: tensors, vector: vector, density: 0.25, alpha: 3)
            let file = try TernaryFile(path: folder("v"))
            #expect(file.tensors.keys == tensors.keys && file.tensors.values == tensors.values)
            var part = [Float](repeating: 9, count: 20)
            try part.withUnsafeMutableBufferPointer { try file.write("a.c", to: $0) }
            #expect(part == (6..<26).map { vector.scale * Float(vector.sign($0)) })
            #expect(throws: FormatError.self) {
                try part.withUnsafeMutableBufferPointer { try file.write("a.b", to: $0) }
            }
            // What a seed draws is a start of its own kind, and there is none without the seed.
            var drawn = tensors
            drawn["é"] = TernaryFile.Entry(shape: [4], start: .drawn, startNorm: 0.5)
            try TernaryFile.write(
                to: folder("s"), tensors: drawn, vector: vector, density: 0.25, alpha: 3, seed: .max)
            let seeded = try TernaryFile(path: folder("s"))
            #expect(seeded.seed == .max && seeded.tensors.values == drawn.values && seeded.vector == vector)
            #expect(file.seed == nil)
            #expect(throws: FormatError.self) {
                try TernaryFile.write(to: folder("x"), tensors: drawn, vector: vector, density: 0.25, alpha: 3)
            }
            let unsorted: KeyedList<TernaryFile.Entry> = [
                "b": TernaryFile.Entry(shape: [10]), "a": TernaryFile.Entry(shape: [20]),
            ]
            #expect(throws: FormatError.self) {
                try TernaryFile.write(to: folder("x"), tensors: unsorted, vector: vector, density: 0.25, alpha: 3)
            }
            #expect(!FileManager.default.fileExists(atPath: folder("x")))
        }
    }

    /// What each byte that is missing or other means, whatever it is.
    @Test func damageIsNoticed() throws {
        try withTemporaryFolder { folder in
            _ = try write(random(100, density: 0.2, seed: 2), folder("v"))
            let good = try Data(contentsOf: URL(fileURLWithPath: folder("v")))
            for index in good.indices {
                var bad = good
                bad[index] ^= 0x41
                #expect(throws: FormatError.self, "byte \(index)") {
                    try TernaryFile(path: folder.write(bad, to: "bad"))
                }
                #expect(throws: FormatError.self, "up to \(index)") {
                    try TernaryFile(path: folder.write(Data(good[..<index]), to: "bad"))
                }
            }
        }
    }

    /// Files whose checksum is right and whose fields are not.
    @Test(arguments: [
        ("[[\"w\",[8]]]", 8, 1, 0, "03", ""),
        ("[[\"w\",[9]]]", 8, 1, 0, "03", "values"),
        ("[[\"w\",[8]]]", 8, 4, 0, "03", "entry 3"),
        ("[[\"w\",[8]]]", 8, 200, 0, "03", "kept entries"),
        ("[[\"w\",[8]]]", 8, 1, 0, "0300", "more bits follow"),
        ("[[\"w\",[8]]]", 8, 1, 0, "ff03", "entry 0"),
        ("[[\"w\",[8]]]", 8, 1, 41, "03", "low bits"),
        ("[[\"w\",[8]],[\"w\",[8]]]", 16, 1, 0, "03", "follows the one before"),
        ("[[\"w\",[4294967295,4294967295,4294967295]]]", 8, 1, 0, "03", "no size"),
        ("[[\"w\",[100000,100000]]]", 10_000_000_000, 1, 0, "03", "at most"),
    ]) func believesNoField(
        tensors: String, count: Int, kept: Int, lowBits: Int, codes: String, complaint: String
    ) async throws {
        let hex = try await Oracle.shared.call(
            "values.forged",
            [
                "fields": [
                    "tensors": JSON.parse(tensors), "count": JSON(count), "kept": JSON(kept),
                    "low_bits": JSON(lowBits), "codes": .string(codes),
                ]
            ])
        let digits = Array(try #require(hex.string))
        let bytes = stride(from: 0, to: digits.count, by: 2).compactMap {
            UInt8(String(digits[$0...($0 + 1)]), radix: 16)
        }
        try withTemporaryFolder { folder in
            let path = try folder.write(Data(bytes), to: "v")
            do {
                let file = try TernaryFile(path: path)
                #expect(complaint.isEmpty, "accepted")
                #expect(file.vector.sign(1) == 0 && file.vector.keptCount == 1)
            } catch let error as FormatError {
                #expect(!complaint.isEmpty && "\(error)".contains(complaint), "\(error)")
            }
        }
    }
}
