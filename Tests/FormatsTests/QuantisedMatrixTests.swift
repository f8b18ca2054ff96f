import Formats
import TestSupport
import Testing
import Torch

/// Normal values, some rows much larger than others.
private func matrix(_ rows: Int, _ columns: Int, seed: UInt64) throws -> Tensor {
    var stream = Seed(seed).stream("matrix")
    let sizes = try Tensor.uniform([rows, 1], in: 0.01..<3, from: &stream)
    return try Tensor.normal([rows, columns], from: &stream) * sizes
}

private func difference(_ a: Tensor, _ b: Tensor) throws -> Double { try (a - b).norm().item() }

private func refusal(_ body: () throws -> Void) -> String {
    do {
        try body()
        return ""
    } catch {
        return "\(error)"
    }
}

/// What the oracle finds for a matrix.
private func reference(_ operation: String, _ matrix: Tensor, _ more: KeyedList<JSON> = [:]) async throws
    -> SafetensorsFile
{
    let folder = try TemporaryFolder.lasting("quantised")
    try SafetensorsWriter.write(["w": matrix], to: folder("w.safetensors"))
    var arguments = more
    arguments["path"] = JSON(folder("w.safetensors"))
    arguments["output"] = JSON(folder("out.safetensors"))
    _ = try await Oracle.shared.call(operation, arguments)
    return try SafetensorsFile(path: folder("out.safetensors"))
}

@Suite struct QuantisedMatrixTests {
    static let shapes = [[1, 64], [33, 192], [7, 45], [300, 65], [3, 1], [520, 96]]

    @Test func levelsAreQuantilesAndTheMapIsBitsandbytes() async throws {
        let levels = try await Oracle.shared.call("storage.nf4_levels").array ?? []
        #expect(levels.count == 16)
        for (mine, exact) in zip(NF4Matrix.levels, levels) {
            #expect(abs(Double(mine) - (exact.double ?? .nan)) < 1e-6)
        }
        let map = try await Oracle.shared.call("storage.dynamic_map").array ?? []
        #expect(NF4Matrix.scaleMap == map.map { Float($0.double ?? .nan) })
        let built = try await Oracle.shared.call("storage.dynamic_map_in_torch").array ?? []
        #expect(built.count == 256)
        for (mine, value) in zip(NF4Matrix.scaleMap, built) {
            #expect(abs(Double(mine) - (value.double ?? .nan)) <= 3e-7 * abs(Double(mine)))
        }
    }

    /// Codes, scales, quantised scales and unpacked values are the reference's bit for bit.
    @Test(arguments: shapes) func nf4IsTheReference(shape: [Int]) async throws {
        let matrix = try matrix(shape[0], shape[1], seed: UInt64(shape[0] * 1000 + shape[1]))
        let file = try await reference(
            "storage.nf4", matrix, ["levels": JSON(NF4Matrix.levels.map { JSON(Double($0)) })])
        let (plain, double) = (try NF4Matrix(matrix, quantisesScales: false), try NF4Matrix(matrix))
        func values<Value: TensorScalar>(_ name: String) throws -> [Value] { try file.tensor(name).tensor().values() }
        #expect(try plain.codes == values("codes") && double.codes == values("codes"))
        #expect(try plain.scales == values("scales") && double.scales.isEmpty)
        #expect(try double.scaleCodes == values("scale_codes"))
        #expect(try double.scaleScales == values("scale_scales"))
        #expect(try [double.offset] == values("offset"))
        for (mine, name) in [(plain, "plain"), (double, "double")] {
            let expected = try file.tensor(name).tensor()
            #expect(try mine.values(dtype: .float32).isIdentical(to: expected), "\(name)")
            #expect(try mine.values(dtype: .bfloat16).isIdentical(to: expected.to(dtype: .bfloat16)), "\(name)")
            #expect(try mine.values(dtype: .float64).isIdentical(to: expected.to(dtype: .float64)), "\(name)")
            // Rows begin anywhere in a block.
            let indices = (0..<shape[0]).reversed().filter { $0 % 3 != 1 }
            let rows = try mine.rows(Tensor(Array(indices)), dtype: .float32)
            #expect(try rows.isIdentical(to: expected.gathered(Tensor(Array(indices)))), "\(name)")
        }
    }

    @Test(arguments: shapes) func int8IsTheReference(shape: [Int]) async throws {
        let matrix = try matrix(shape[0], shape[1], seed: UInt64(shape[0] * 1000 + shape[1]))
        let file = try await reference("storage.int8", matrix)
        let mine = try Int8Matrix(matrix)
        #expect(try mine.codes == file.tensor("codes").tensor().values())
        #expect(try mine.scales == file.tensor("scales").tensor().values())
        let expected = try file.tensor("values").tensor()
        #expect(try mine.values(dtype: .float32).isIdentical(to: expected))
        #expect(try mine.values(dtype: .bfloat16).isIdentical(to: expected.to(dtype: .bfloat16)))
        let last = try mine.rows(Tensor([shape[0] - 1]), dtype: .bfloat16)
        #expect(try last.isIdentical(to: expected.narrowed(0, start: shape[0] - 1, length: 1).to(dtype: .bfloat16)))
    }

    /// Levels stay levels, zero is zero, and the largest value of a block comes back.
    @Test func nf4KeepsWhatItCanSay() throws {
        let levels = try Tensor(
            NF4Matrix.levels + NF4Matrix.levels + NF4Matrix.levels + NF4Matrix.levels, shape: [4, 16])
        #expect(try NF4Matrix(levels, quantisesScales: false).values(dtype: .float32).isIdentical(to: levels))
        let zeros = try NF4Matrix(Tensor.zeros([2, 96])).values(dtype: .float32)
        #expect(try zeros.isIdentical(to: Tensor.zeros([2, 96])))
        var values = try matrix(1, 640, seed: 3).values(as: Float.self)
        for index in 64..<128 { values[index] = 0 }
        let some = try Tensor(values, shape: [10, 64])
        for quantisesScales in [false, true] {
            let found = try NF4Matrix(some, quantisesScales: quantisesScales).values(dtype: .float32)
            #expect(try found.narrowed(0, start: 1, length: 1).isIdentical(to: Tensor.zeros([1, 64])))
        }
        let found = try NF4Matrix(some, quantisesScales: false).values(dtype: .float32)
        let largest = try callTensor("aten::amax", some.absolute(), [1], false)
        #expect(try callTensor("aten::amax", found.absolute(), [1], false).isIdentical(to: largest))
    }

    /// On normal weights NF4 is nearer than integers of four bits with the same blocks, and quantised scales cost little.
    @Test func nf4SuitsNormalWeights() throws {
        var stream = Seed(9).stream("weights")
        let weights = try Tensor.normal([256, 512], from: &stream)
        let plain = try NF4Matrix(weights, quantisesScales: false)
        let blocks = try weights.reshaped([-1, 64])
        let scale = try callTensor("aten::amax", blocks.absolute(), [1], true) / 7
        let integers = try (callTensor("aten::round", blocks / scale) * scale).reshaped([256, 512])
        let error = try difference(plain.values(dtype: .float32), weights)
        #expect(try error < 0.95 * difference(integers, weights))
        let double = try NF4Matrix(weights)
        #expect(try difference(double.values(dtype: .float32), weights) < 1.01 * error)
        let again = zip(double.scaleCodes, 0...).map { code, block in
            NF4Matrix.scaleMap[Int(code)] * double.scaleScales[block / 256] + double.offset
        }
        let moved = zip(again, plain.scales).reduce(0) { $0 + abs($1.0 - $1.1) / $1.1 } / Float(again.count)
        #expect(moved < 0.01)
    }

    @Test func takesTheBytesOfTheFormula() throws {
        let matrix = try Tensor.ones([512, 1024])
        #expect(try NF4Matrix(matrix).byteCount == 512 * 512 + 8192 + 4 * 32 + 4)
        #expect(try abs(Double(NF4Matrix(matrix).byteCount) * 8 / Double(512 * 1024) - 4.127) < 1e-3)
        #expect(try NF4Matrix(matrix, quantisesScales: false).byteCount * 8 * 2 == 512 * 1024 * 9)
        #expect(try Int8Matrix(matrix).byteCount == 512 * 1024 + 4 * 512)
        #expect(matrix.byteCount == 4 * 512 * 1024)
    }

    /// Layers over blocks of every type compute, and pass gradients, as over the unpacked matrices.
    @Test(
        arguments: [
            BlockType.q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q2_k, .q3_k, .q4_k, .q5_k, .q6_k,
        ], [DType.float32, .bfloat16])
    func layersComputeOverBlocks(type: BlockType, dtype: DType) throws {
        var stream = Seed(UInt64(type.rawValue)).stream("layers")
        func leaf(_ shape: [Int], _ dtype: DType = .float32) throws -> Tensor {
            try Tensor.normal(shape, standardDeviation: 0.3, from: &stream, dtype: dtype).requiringGrad()
        }
        let orders = [RowOrder.splittingHeads(2), .stored]
        let matrices = try orders.map { try randomMatrix(type, rows: 36, columns: 512, seed: 5, order: $0) }
        let leaves = [try leaf([7, 512], dtype), try leaf([3, 512]), try leaf([36, 3])]
        func results(_ weights: [Tensor]) throws -> [Tensor] {
            let term = LowRankTerm(down: leaves[1], up: leaves[2], scale: 0.5)
            let layers = [FrozenLinear(weight: weights[0], term: term), FrozenLinear(weight: weights[1])]
            let outputs = try frozenLinears(layers, leaves[0])
            let sum = try outputs[0].squared().sum() + outputs[1].sum()
            return outputs + (try gradients(of: [sum], with: leaves)).compactMap { $0 }
        }
        let packed = try results(matrices.map { try $0.standIn(dtype: dtype) })
        let plain = try results(matrices.map { try $0.values(dtype: dtype) })
        #expect(packed.count == 5)
        for (mine, expected) in zip(packed, plain) { #expect(try mine.isIdentical(to: expected)) }
    }

    @Test func refusesWhatCannotBeQuantised() throws {
        for value in [Double.nan, .infinity] {
            let broken = try Tensor.full([2, 64], value)
            #expect(refusal { _ = try NF4Matrix(broken) }.contains("no finite numbers"))
            #expect(refusal { _ = try Int8Matrix(broken) }.contains("no finite numbers"))
        }
        #expect(refusal { _ = try NF4Matrix(Tensor.ones([64])) }.contains("expected a matrix"))
        let matrix = try NF4Matrix(Tensor.ones([2, 64]))
        #expect(refusal { _ = try matrix.rows(Tensor([2]), dtype: .float32) }.contains("no row 2"))
        // A stand-in is no number, whoever asks, and a part of it is refused.
        let standIn = try matrix.standIn(dtype: .bfloat16)
        #expect(try callTensor("aten::isnan", standIn).all())
        #expect(
            refusal { _ = try standIn.narrowed(0, start: 0, length: 1).unpacked(dtype: .float32) }.contains("a part"))
    }
}

extension Tensor {
    fileprivate func all() throws -> Bool { try callTensor("aten::all", self).item() }
}
