import TestSupport
import Testing
import Torch

/// Products with frozen weights, by whichever way the machine and the sizes call for, beside float64.
@Suite struct ProductTests {
    private struct Size: CustomTestStringConvertible {
        var rows: Int
        var inputs: Int
        var outputs: Int
        var testDescription: String { "\(rows) x \(inputs) x \(outputs)" }
    }

    /// The layout changes where values lie, not what a product with them is; also of a weight that is a view.
    @Test(
        "packed == plain",
        arguments: [
            Size(rows: 9, inputs: 37, outputs: 53), Size(rows: 200, inputs: 576, outputs: 192),
            Size(rows: 1, inputs: 3, outputs: 2),
        ], [DType.float32, .bfloat16])
    private func packed(size: Size, dtype: DType) throws {
        var random = SeededGenerator(seed: 391 + UInt64(size.rows))
        let input = try Tensor.random([size.rows, size.inputs], &random, dtype: dtype)
        for weight in try layouts(of: size, dtype, &random) {
            try check(input, weight, try unrecordedProduct(input, packedWeight(weight, rows: size.rows)))
        }
    }

    /// Few rows and many, one input and more than a panel holds, ends that fill no tile, rows that fall into the same
    /// places of a cache.
    @Test(
        "product == float64",
        arguments: [
            Size(rows: 1, inputs: 5, outputs: 3), Size(rows: 8, inputs: 300, outputs: 70),
            Size(rows: 31, inputs: 513, outputs: 64), Size(rows: 191, inputs: 64, outputs: 65),
            Size(rows: 192, inputs: 1, outputs: 1), Size(rows: 257, inputs: 77, outputs: 131),
            Size(rows: 300, inputs: 2048, outputs: 1024), Size(rows: 449, inputs: 1601, outputs: 70),
            Size(rows: 255, inputs: 6403, outputs: 129),
        ], [DType.float32, .bfloat16])
    private func plain(size: Size, dtype: DType) throws {
        var random = SeededGenerator(seed: 500 + UInt64(size.rows))
        let bias = try Tensor.random([size.outputs], &random, dtype: dtype)
        for input in try inputs(of: size, dtype, &random) {
            for weight in try layouts(of: size, dtype, &random) {
                try check(input, weight, try unrecordedProduct(input, weight))
                try check(input, weight, bias: bias, try unrecordedProduct(input, weight, bias))
            }
        }
    }

    @Test("product == float64: sizes by chance", arguments: [DType.float32, .bfloat16])
    func byChance(dtype: DType) throws {
        var random = SeededGenerator(seed: UInt64.random(in: 0...UInt64.max))
        let seed = random
        for _ in 0..<12 {
            let size = Size(
                rows: Int.random(in: 1...400, using: &random), inputs: Int.random(in: 1...300, using: &random),
                outputs: Int.random(in: 1...300, using: &random))
            for input in try inputs(of: size, dtype, &random) {
                for weight in try layouts(of: size, dtype, &random) {
                    try check(input, weight, try unrecordedProduct(input, weight), "seed \(seed), \(size)")
                }
            }
        }
    }

    /// More tiles than are added up at a time, each of several panels.
    @Test func tallAndLong() throws {
        var random = SeededGenerator(seed: 540)
        let (rows, inputs, times) = (173, 3300, 99)
        let weight = try Tensor.random([70, inputs], &random, dtype: .bfloat16)
        let input = try Tensor.random([rows, inputs], &random, dtype: .bfloat16)
        let tall = try input.unsqueezed(0).expanded([times, rows, inputs]).reshaped([times * rows, inputs])
        let found = try unrecordedProduct(tall, weight).reshaped([times, rows, 70])
        for index in 0..<times { try check(input, weight, try found.selected(0, index)) }
    }

    /// What is no number stays none, and reaches only its own row.
    @Test(arguments: [DType.float32, .bfloat16])
    func notANumber(dtype: DType) throws {
        var random = SeededGenerator(seed: 541)
        let input = try Tensor.random([200, 33], &random, dtype: dtype)
        try input.selected(0, 7).selected(0, 5).fill(.nan)
        let result = try unrecordedProduct(input, Tensor.random([40, 33], &random, dtype: dtype))
        let values = try result.to(dtype: .float32).values(as: Float.self)
        #expect(values.indices.allSatisfy { values[$0].isNaN == ($0 / 40 == 7) })
    }

    /// A weight `[outputs, inputs]` in rows, turned, and as parts of wider ones.
    private func layouts(of size: Size, _ dtype: DType, _ random: inout SeededGenerator) throws -> [Tensor] {
        let wide = try Tensor.random([size.outputs, size.inputs + 3], &random, dtype: dtype)
        let turned = try Tensor.random([size.inputs, size.outputs + 1], &random, dtype: dtype)
        let sparse = try Tensor.random([size.outputs, 2 * size.inputs], &random, dtype: dtype)
        return [
            try Tensor.random([size.outputs, size.inputs], &random, dtype: dtype),
            try Tensor.random([size.inputs, size.outputs], &random, dtype: dtype).transposed(),
            try wide.narrowed(1, start: 1, length: size.inputs),
            try turned.narrowed(1, start: 1, length: size.outputs).transposed(),
            try sparse.reshaped([size.outputs, size.inputs, 2]).selected(2, 1),
        ]
    }

    /// Vectors `[rows, inputs]` in rows, turned, as parts of wider ones, and one vector in every row.
    private func inputs(of size: Size, _ dtype: DType, _ random: inout SeededGenerator) throws -> [Tensor] {
        let wide = try Tensor.random([size.rows, size.inputs + 1], &random, dtype: dtype)
        return [
            try Tensor.random([size.rows, size.inputs], &random, dtype: dtype),
            try Tensor.random([size.inputs, size.rows], &random, dtype: dtype).transposed(),
            try wide.narrowed(1, start: 1, length: size.inputs),
            try Tensor.random([1, size.inputs], &random, dtype: dtype).expanded([size.rows, size.inputs]),
        ]
    }

    /// Every element differs from the exact one by no more than the roundings of the sums, which are relative to what is
    /// added up (terms may cancel out), and the rounding of the result.
    private func check(
        _ input: Tensor, _ weight: Tensor, bias: Tensor? = nil, _ found: Tensor, _ comment: Comment? = nil
    ) throws {
        let (x, turned) = (try input.to(dtype: .float64), try weight.to(dtype: .float64).transposed())
        var exact = try x.matmul(turned)
        var added = try x.absolute().matmul(turned.absolute())
        if let bias = try bias?.to(dtype: .float64) {
            exact = try exact + bias
            added = try added + bias.absolute()
        }
        let rounding = input.dtype == .float32 ? 0x1p-24 : 0x1p-8
        // Sums of random terms were seen to be up to 7 * 2^-24 off.
        let allowed = try exact.absolute() * rounding + added * 0x1p-20
        let excess = try (found.to(dtype: .float64) - exact).absolute() - allowed
        #expect(found.shape == [input.size(0), weight.size(0)], comment)
        #expect(found.dtype == input.dtype, comment)
        #expect(try excess.maximum().item(as: Double.self) <= 0, comment)
        // Of many outputs, not all cancel out: the whole is nearer still.
        guard weight.size(0) >= 32 else { return }
        #expect(try relativeError(found, exact) < (input.dtype == .float32 ? 1e-6 : 0x1.01p-8), comment)
    }
}
