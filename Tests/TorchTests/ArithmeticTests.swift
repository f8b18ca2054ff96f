import TestSupport
import Testing
import Torch

/// Operators against PyTorch on random inputs of odd shapes, contiguous or not.
struct ArithmeticTests {
    private typealias Function = (Tensor, Tensor) throws -> Tensor

    @Test func elementwiseMatchesTorch() async throws {
        let functions: [(String, Function)] = [
            ("x + y", { try $0 + $1 }), ("x - y", { try $0 - $1 }), ("x * y", { try $0 * $1 }),
            ("x / y", { try $0 / $1 }), ("x + 2.5", { x, _ in try x + 2.5 }), ("x - 3", { x, _ in try x - 3 }),
            ("x * 0.1", { x, _ in try x * 0.1 }), ("7 * x", { x, _ in try 7 * x }), ("x / 3", { x, _ in try x / 3 }),
            ("-x", { x, _ in try x.negated() }), ("x.abs()", { x, _ in try x.absolute() }),
            ("x.exp()", { x, _ in try x.exp() }), ("x.abs().log()", { x, _ in try x.absolute().log() }),
            ("x.abs().sqrt()", { x, _ in try x.absolute().squareRoot() }),
            ("x.abs().rsqrt()", { x, _ in try x.absolute().reciprocalSquareRoot() }),
            ("x.square()", { x, _ in try x.squared() }), ("x.cos()", { x, _ in try x.cos() }),
            ("x.sin()", { x, _ in try x.sin() }), ("x == y", { try $0.elementsEqual($1) }),
            ("F.silu(x)", { x, _ in try silu(x) }), ("F.gelu(x)", { x, _ in try gelu(x) }),
            ("F.gelu(x, approximate='tanh')", { x, _ in try gelu(x, approximate: true) }),
            ("F.relu(x)", { x, _ in try relu(x) }), ("F.softmax(x, 1)", { x, _ in try softmax(x, dimension: 1) }),
            ("F.softmax(x, -1, dtype=torch.float32)", { x, _ in try softmax(x, dtype: .float32) }),
            ("F.log_softmax(x, 0)", { x, _ in try logSoftmax(x, dimension: 0) }),
        ]
        var generator = SeededGenerator(seed: 7)
        let x = try Tensor.random([5, 3, 7], &generator).transposed(0, 1)
        let y = try Tensor.random([5, 14], &generator).indexed(.all, .slice(1, nil, step: 2))
        for (expression, function) in functions {
            for dtype in [DType.float64, .float32] {
                let (a, b) = (try x.to(dtype: dtype), try y.to(dtype: dtype))
                let expected = try await Reference.evaluate(expression, ["x": a, "y": b])
                let own = try function(a, b)
                let bound = dtype == .float64 && own.dtype == .float64 ? 1e-14 : 4e-6
                #expect(try own.difference(from: expected[0]) < bound, "\(expression) in \(dtype)")
            }
        }
    }

    @Test func integersStayIntegers() throws {
        let positions = try Tensor.arange(4)
        #expect(try (positions + 1).values() == [1, 2, 3, 4] && (positions * 3).dtype == .int64)
        #expect(try (positions - 2).dtype == .int64 && (2 * positions).dtype == .int64)
        #expect(try (positions + 0.5).dtype == .float32 && (positions / 2).dtype == .float32)
        #expect(try (Tensor([1.5] as [Float]) * Float(0.5)).values() == [0.75] as [Float])
        let bytes = try Tensor([1, 2] as [UInt8])
        #expect(try (bytes + 1).dtype == .uint8)
    }

    @Test func reductionsMatchTorch() async throws {
        let functions: [(String, (Tensor) throws -> Tensor)] = [
            ("x.sum()", { try $0.sum() }), ("x.sum((0, -1))", { try $0.sum([0, -1]) }),
            ("x.sum(1, keepdim=True)", { try $0.sum([1], keepingDimensions: true) }),
            ("x.sum(1, dtype=torch.float32)", { try $0.sum([1], dtype: .float32) }),
            ("x.sum(dtype=torch.float32)", { try $0.sum(dtype: .float32) }),
            ("x.mean()", { try $0.mean() }), ("x.mean((1,))", { try $0.mean([1]) }),
            ("x.mean((-1, 0), keepdim=True)", { try $0.mean([-1, 0], keepingDimensions: true) }),
            ("x.max()", { try $0.maximum() }), ("x.argmax(1)", { try $0.argmax(1) }),
            ("torch.linalg.vector_norm(x)", { try $0.norm() }),
            ("torch.linalg.vector_norm(x, dim=(0,), keepdim=True)", { try $0.norm([0], keepingDimensions: true) }),
        ]
        var generator = SeededGenerator(seed: 8)
        let x = try Tensor.random([5, 3, 9], &generator).transposed(0, 2)
        for (expression, function) in functions {
            let expected = try await Reference.evaluate(expression, ["x": x])
            let own = try function(x)
            let bound = own.dtype == .float64 ? 1e-13 : 1e-5
            #expect(try own.difference(from: expected[0]) < bound, "\(expression)")
        }
        // No dimension at all means every one, as in PyTorch.
        #expect(try x.sum([]).shape == [])
        #expect(try Tensor([1, 2, 3]).sum().dtype == .int64)
        #expect(throws: TorchError.self) { try Tensor([1, 2, 3]).mean() }
        #expect(throws: TorchError.self) { try Tensor.zeros([0]).maximum() }
        #expect(throws: TorchError.self) { try x.sum([3]) }
    }

    @Test func productsMatchTorch() async throws {
        var generator = SeededGenerator(seed: 9)
        let shapes: [([Int], [Int])] = [
            ([3, 5], [5, 7]), ([5], [5]), ([5], [5, 2]), ([2, 5], [5]), ([4, 3, 5], [5, 7]),
            ([4, 1, 3, 5], [2, 5, 7]),
            ([3, 0], [0, 2]), ([1, 1], [1, 1]),
        ]
        for (left, right) in shapes {
            let x = try Tensor.random(left.reversed(), &generator).permuted((0..<left.count).reversed())
            let y = try Tensor.random(right, &generator)
            let expected = try await Reference.evaluate("x @ y", ["x": x, "y": y])
            #expect(try x.matmul(y).difference(from: expected[0]) < 1e-13, "\(left) @ \(right)")
        }
        let x = try Tensor.random([2, 3, 5], &generator)
        let weight = try Tensor.random([7, 5], &generator)
        let bias = try Tensor.random([7], &generator)
        let tensors = ["x": x, "w": weight, "b": bias]
        let biased = try await Reference.evaluate("F.linear(x, w, b)", tensors)
        #expect(try linear(x, weight, bias).difference(from: biased[0]) < 1e-13)
        let plain = try await Reference.evaluate("F.linear(x, w)", tensors)
        #expect(try linear(x, weight).difference(from: plain[0]) < 1e-13)
        let rows = try Tensor([6, 0, 3, 3], shape: [2, 2])
        let embedded = try await Reference.evaluate("F.embedding(i, w)", ["i": rows, "w": weight])
        #expect(try embedding(rows, weight).isIdentical(to: embedded[0]))
        #expect(throws: TorchError.self) { try embedding(Tensor([7]), weight) }
        #expect(throws: TorchError.self) { try embedding(Tensor([-1]), weight) }
    }

    @Test func attentionMatchesTorch() async throws {
        var generator = SeededGenerator(seed: 10)
        let query = try Tensor.random([2, 3, 5, 4], &generator)
        let key = try Tensor.random([2, 5, 3, 4], &generator).transposed(1, 2)
        let value = try Tensor.random([2, 3, 5, 4], &generator)
        let mask = try Tensor.random([2, 1, 5, 5], &generator)
        let seen = try callTensor("aten::le.Scalar", mask, 0.6)
        let tensors = ["q": query, "k": key, "v": value, "m": mask, "s": seen]
        let cases: [(String, Tensor?, Bool, Double?)] = [
            ("", nil, false, nil), (", is_causal=True", nil, true, nil), (", attn_mask=m", mask, false, nil),
            (", attn_mask=s, scale=0.3", seen, false, 0.3),
        ]
        for (options, mask, causal, scale) in cases {
            let expression = "F.scaled_dot_product_attention(q, k, v\(options))"
            let expected = try await Reference.evaluate(expression, tensors)
            let own = try scaledDotProductAttention(
                query: query, key: key, value: value, mask: mask, isCausal: causal, scale: scale)
            #expect(try own.difference(from: expected[0]) < 1e-13, "\(expression)")
        }
    }

    @Test func inPlaceChangesTheTensor() throws {
        let tensor = try Tensor([1.0, 2, 3, 4], shape: [2, 2])
        let column = try tensor.selected(1, 0)
        try column.fill(9)
        try column.multiply(by: 0.5)
        #expect(try tensor.values() == [4.5, 2, 4.5, 4])
        try tensor.add(Tensor([1.0, 10]), times: -2)
        #expect(try tensor.values() == [2.5, -18, 2.5, -16])
        try tensor.copy(from: Tensor([7, 8]))
        #expect(try tensor.values() == [7.0, 8, 7, 8])
        #expect(tensor.dtype == .float64)
        #expect(throws: TorchError.self) { try tensor.copy(from: Tensor.zeros([3])) }
        #expect(throws: TorchError.self) { try Tensor([1, 2]).multiply(by: 0.5) }
    }

    @Test func finitenessIsOfEveryElement() throws {
        #expect(try Tensor([1.0, -2]).isAllFinite())
        #expect(try Tensor([Float]()).isAllFinite())
        for bad in [Double.nan, .infinity, -.infinity] { #expect(try !Tensor([1.0, bad, 2]).isAllFinite()) }
    }
}
