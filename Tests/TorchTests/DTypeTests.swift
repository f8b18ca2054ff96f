import Formats
import TestSupport
import Testing
import Torch

/// Every dtype: its facts, creation, and conversion to the bytes that PyTorch makes.
struct DTypeTests {
    @Test func namesAndSizesAreTorchs() async throws {
        let names = DType.allCases.map(\.description)
        let facts = try await Oracle.shared.call("torch.dtypes", ["names": .array(names.map { JSON($0) })])
        for dtype in DType.allCases {
            #expect(facts[dtype.description]?["bytes"]?.int == dtype.byteCount, "\(dtype)")
            #expect(facts[dtype.description]?["real"]?.bool == dtype.isFloatingPoint, "\(dtype)")
            #expect(DType(name: dtype.description) == dtype)
        }
        #expect(Set(names).count == 21)
        #expect(DType(name: "float") == nil && DType(name: "") == nil)
    }

    @Test(arguments: DType.allCases) func isMadeAndCopied(_ dtype: DType) throws {
        let tensor = try Tensor.zeros([2, 3], dtype: dtype)
        #expect(tensor.dtype == dtype && tensor.description == "\(dtype)[2, 3]")
        #expect(try tensor.withUnsafeMutableBytes { $0.count } == 6 * dtype.byteCount)
        try tensor.withUnsafeMutableBytes { bytes in
            #expect(bytes.allSatisfy { $0 == 0 })
            for index in bytes.indices {
                bytes[index] = dtype == .bool ? UInt8(index % 2) : UInt8(truncatingIfNeeded: index * 3)
            }
        }
        let copy = try tensor.transposed().contiguous().transposed().contiguous()
        #expect(!copy.sharesStorage(with: tensor))
        let same = try copy.withUnsafeMutableBytes { copied in
            try tensor.withUnsafeMutableBytes { copied.elementsEqual($0) }
        }
        #expect(same)
        #expect(try tensor.to(dtype: dtype) === tensor)
    }

    /// The error names the dtype as Swift does, so that raw values and names are the same on both sides.
    @Test(arguments: DType.allCases) func errorsNameIt(_ dtype: DType) throws {
        let tensor = try Tensor.zeros([2, 3], dtype: dtype)
        let text = message { _ = try tensor.reshaped([4]) }
        #expect(text.hasPrefix("aten::reshape(\(dtype)[2, 3], [4]): "), "\(text)")
    }

    @Test(arguments: DType.allCases.filter(\.isFloatingPoint)) func encodesAsTorch(_ dtype: DType) async throws {
        var generator = SeededGenerator(seed: 3)
        var values = (0..<500).map { _ in generator.normal() * Double.random(in: 0.001...400, using: &generator) }
        values += [0, -0.0, 1, -1, 0.5, 448, 449, 1e-9, 6e-8, 65504, 65520, 1e6, 3e38, 1e-40]
        // Versions of LibTorch differ in what too large a number becomes in this dtype.
        if dtype == .float8E4M3FN { values.removeAll { abs($0) > 448 } }
        values = values.map { Double(Float($0)) }
        let arguments: KeyedList<JSON> = ["values": .array(values.map { JSON($0) }), "dtype": JSON(dtype.description)]
        let expected = try #require(try await Oracle.shared.call("torch.encode", arguments).array).map(\.int)
        let encoded = try Tensor(values.map { Float($0) }).to(dtype: dtype)
        #expect(try encoded.withUnsafeMutableBytes { $0.map { Int($0) } } == expected)
        // Back to wider numbers: as exact as the dtype is.
        let decoded = try await Reference.evaluate("x.to(torch.\(dtype)).double()", ["x": Tensor([1.1, 3.3, 200])])
        let own = try Tensor([1.1, 3.3, 200]).to(dtype: dtype).to(dtype: .float64)
        #expect(try own.isIdentical(to: decoded[0]))
    }

    @Test func convertsBetweenAllNumbers() async throws {
        let numbers = DType.allCases.filter { ![.complex32, .complex64, .complex128, .float8E8M0FNU].contains($0) }
        let values = try Tensor([0.0, 1, 2, 3, 8, 96])
        for from in numbers {
            for to in numbers {
                let expression = "x.to(torch.\(from)).to(torch.\(to)).double()"
                let expected = try await Reference.evaluate(expression, ["x": values])
                let own = try values.to(dtype: from).to(dtype: to)
                #expect(own.dtype == to)
                #expect(try own.to(dtype: .float64).isIdentical(to: expected[0]), "\(from) to \(to)")
            }
        }
    }

    @Test func identityNeedsEqualDtypes() throws {
        for dtype in [DType.float8E4M3FN, .float8E5M2, .bfloat16, .float16, .float64, .uint8, .int64, .bool, .uint16] {
            let one = try Tensor([1.0, 0, 1]).to(dtype: dtype)
            #expect(try one.isIdentical(to: one.cloned()), "\(dtype)")
            #expect(try !one.isIdentical(to: Tensor([1.0, 1, 1]).to(dtype: dtype)), "\(dtype)")
            #expect(try !one.isIdentical(to: one.reshaped([3, 1])))
            #expect(try !one.isIdentical(to: one.to(dtype: .int32)))
        }
        let nan = try Tensor([Double.nan])
        #expect(try !nan.isIdentical(to: nan.cloned()))
    }
}
