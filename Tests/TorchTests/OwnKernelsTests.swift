import TestSupport
import Testing
import Torch

/// Graft's own kernels beside plain formulas in float64: values, and gradients into every input.
@Suite struct OwnKernelsTests {
    @Test("fused == unfused: norm", arguments: [[1, 5], [3, 37, 577], [2, 5, 64], [70, 576]])
    func norm(shape: [Int]) throws {
        var random = SeededGenerator(seed: 301 + UInt64(shape.count))
        let weight = try Tensor.random([shape[shape.count - 1]], &random).to(dtype: .bfloat16)
        func formula(_ x: Tensor) throws -> Tensor {
            let scale = try (x.squared().mean([-1], keepingDimensions: true) + 1e-5).reciprocalSquareRoot()
            return try x * scale * weight.to(dtype: x.dtype)
        }
        try compare(
            [shape], &random,
            own: { [try rmsNorm($0[0], weight: weight.to(dtype: $0[0].dtype), epsilon: 1e-5)] },
            portable: { [try Portable.rmsNorm($0[0], weight: weight.to(dtype: $0[0].dtype), epsilon: 1e-5)] },
            formula: { [try formula($0[0])] })
        try compare(
            [shape, shape], &random,
            own: {
                let both = try addedRMSNorm($0[0], $0[1], weight: weight.to(dtype: $0[0].dtype), epsilon: 1e-5)
                return [both.sum, both.normed]
            },
            portable: {
                let sum = try $0[0] + $0[1]
                return [sum, try Portable.rmsNorm(sum, weight: weight.to(dtype: sum.dtype), epsilon: 1e-5)]
            },
            formula: {
                let sum = try $0[0] + $0[1]
                return [sum, try formula(sum)]
            })
    }

    /// Only the sum, or only the norm, is used further on.
    @Test func halfOfANormIsUsed() throws {
        var random = SeededGenerator(seed: 311)
        let weight = try Tensor.random([33], &random, dtype: .float32)
        for used in 0..<2 {
            let leaves = try (0..<2).map { _ in
                try Tensor.random([7, 33], &random, dtype: .float32).requiringGrad()
            }
            let both = try addedRMSNorm(leaves[0], leaves[1], weight: weight, epsilon: 1e-6)
            let sum = try leaves[0] + leaves[1]
            let plain = try used == 0 ? sum : Portable.rmsNorm(sum, weight: weight, epsilon: 1e-6)
            let found = try gradients(of: [(used == 0 ? both.sum : both.normed).squared().sum()], with: leaves)
            let expected = try gradients(of: [plain.squared().sum()], with: leaves)
            for (one, other) in zip(found, expected) {
                #expect(try relativeError(#require(one), #require(other)) < 1e-5)
            }
        }
    }

    @Test("fused == unfused: gated activation", arguments: [[1], [3, 19, 131], [9000]])
    func gate(shape: [Int]) throws {
        var random = SeededGenerator(seed: 320 + UInt64(shape.count))
        try compare(
            [shape, shape], &random, spread: 4, own: { [try swiglu(gate: $0[0], up: $0[1])] },
            portable: { [try Portable.swiglu(gate: $0[0], up: $0[1])] },
            formula: { [try $0[0] / (($0[0] * -1).exp() + 1) * $0[1]] })
    }

    /// Where the exponential leaves fp32's range, sigmoid is zero or one, and NaN stays NaN.
    @Test func gateOfExtremes() throws {
        let values: [Float] = [-1e30, -200, -88.5, -87.1, 0, 87.2, 88.9, 200, 1e30, .nan]
        let gate = try Tensor(values).requiringGrad()
        let result = try swiglu(gate: gate, up: Tensor([Float](repeating: 2, count: values.count)))
        let found = try result.values(as: Float.self)
        for (value, x) in zip(found, values).dropLast() {
            #expect(abs(value - (x > 0 ? 2 * x : 0)) <= 1e-30 + abs(x) * 2.4e-7)
        }
        #expect(found[9].isNaN)
        let slopes = try #require(gradients(of: [result], with: [gate], gradOutputs: [Tensor.ones(gate.shape)])[0])
        #expect(try slopes.narrowed(0, start: 0, length: 9).isAllFinite())
    }

    @Test("fused == unfused: rotation", arguments: [(2, 9, 3, 11, 64), (1, 1, 1, 1, 2), (3, 4, 4, 17, 22)])
    func rotation(batch: Int, heads: Int, groups: Int, time: Int, dimension: Int) throws {
        var random = SeededGenerator(seed: 330 + UInt64(heads))
        for rows in [1, batch] {
            let cos = try Tensor.random([rows, 1, time, dimension], &random).to(dtype: .bfloat16)
            let sin = try Tensor.random([rows, 1, time, dimension], &random).to(dtype: .bfloat16)
            func table(_ like: Tensor) throws -> (Tensor, Tensor) {
                (try cos.to(dtype: like.dtype), try sin.to(dtype: like.dtype))
            }
            // As projections give them: [batch, time, heads, dim], seen as [batch, heads, time, dim].
            try compare(
                [[batch, time, heads, dimension], [batch, time, groups, dimension]], &random,
                own: {
                    let (cos, sin) = try table($0[0])
                    let both = try rotated(
                        queries: $0[0].transposed(1, 2), keys: $0[1].transposed(1, 2), cos: cos, sin: sin)
                    return [both.queries, both.keys]
                },
                portable: { inputs in
                    let (cos, sin) = try table(inputs[0])
                    return try inputs.map { try Portable.rotated($0.transposed(1, 2), cos: cos, sin: sin) }
                },
                formula: { inputs in
                    let (cos, sin) = try table(inputs[0])
                    return try inputs.map { input in
                        let halves = try input.transposed(1, 2).split([dimension / 2, dimension / 2])
                        return try input.transposed(1, 2) * cos
                            + Tensor.concatenate([halves[1], halves[0]], dimension: -1) * sin
                    }
                })
        }
    }

    @Test(
        "fused == unfused: causal attention",
        arguments: [
            Heads(batch: 2, heads: 6, groups: 2, time: 37, dimension: 16),
            Heads(batch: 4, heads: 3, groups: 3, time: 64, dimension: 32),
            Heads(batch: 1, heads: 9, groups: 3, time: 601, dimension: 16),
            Heads(batch: 1, heads: 4, groups: 2, time: 300, dimension: 80, lengths: [100, 1, 65, 134]),
            Heads(batch: 2, heads: 2, groups: 1, time: 333, dimension: 16, window: 50),
            Heads(batch: 1, heads: 2, groups: 2, time: 140, dimension: 16, lengths: [70, 70], window: 3),
        ])
    func attention(shape: Heads) throws {
        var random = SeededGenerator(seed: 370 + UInt64(shape.time))
        let like = try Tensor.zeros([1, 1, 1, shape.dimension])
        guard try hasCausalAttention(like) else { return }
        let visible = try shape.visible()
        func plain(_ given: [Tensor]) throws -> [Tensor] {
            let heads = try given.map { try $0.transposed(1, 2) }
            // Every head of a group with a copy of its keys and values.
            let shared = shape.heads / shape.groups
            let (keys, values) = (
                try callTensor("aten::repeat_interleave.self_int", heads[1], shared, 1),
                try callTensor("aten::repeat_interleave.self_int", heads[2], shared, 1)
            )
            let scores = try heads[0].matmul(keys.transposed()) * (1 / Double(shape.dimension).squareRoot())
            let hidden = try callTensor("aten::logical_not", visible)
            let masked = try callTensor("aten::masked_fill.Scalar", scores, hidden, -Double.infinity)
            return [try softmax(masked).matmul(values)]
        }
        try compare(
            [shape.heads, shape.groups, shape.groups].map { [shape.batch, shape.time, $0, shape.dimension] }, &random,
            own: {
                [
                    try causalAttention(
                        query: $0[0].transposed(1, 2), key: $0[1].transposed(1, 2), value: $0[2].transposed(1, 2),
                        window: shape.window, lengths: shape.lengths)
                ]
            }, portable: plain, formula: plain)
    }

    struct Heads: Sendable {
        var batch: Int
        var heads: Int
        var groups: Int
        var time: Int
        var dimension: Int
        var lengths: [Int] = []
        var window = Int.max

        /// Which keys each query sees, bool `[time, time]`.
        func visible() throws -> Tensor {
            let rows = lengths.enumerated().flatMap { Array(repeating: $0.offset, count: $0.element) }
            return try Tensor(
                (0..<time * time).map { place in
                    let (query, key) = (place / time, place % time)
                    return key <= query && query - key < window && (rows.isEmpty || rows[query] == rows[key])
                }, shape: [time, time])
        }
    }

    @Test("fused == unfused: cross-entropy", arguments: [(1, 1), (50, 4999), (7, 64), (3, 130)])
    func crossEntropy(rows: Int, vocabulary: Int) throws {
        var random = SeededGenerator(seed: 340 + UInt64(rows))
        let targets = try Tensor((0..<rows).map { _ in Int.random(in: 0..<vocabulary, using: &random) })
        for (dtype, bound) in [(DType.float32, 1e-5), (.bfloat16, 4e-3)] {
            let logits = try (Tensor.random([rows, vocabulary], &random) * 5).to(dtype: dtype)
            let leaf = try logits.to(dtype: .float64).requiringGrad()
            let expected = try callTensor("aten::cross_entropy_loss", leaf, targets, Argument.none, 0)
            let slope = try #require(gradients(of: [expected.sum()], with: [leaf])[0])
            let kept = try logits.cloned()
            let alone = try callTensor("graft::cross_entropy_", kept, targets, false)
            #expect(try relativeError(kept, logits) == 0)
            let losses = try callTensor("graft::cross_entropy_", kept, targets, true)
            #expect(try relativeError(losses, alone) == 0)
            #expect(try relativeError(losses, expected.detached()) < 1e-5)
            #expect(try relativeError(kept, slope) < bound)
        }
    }

    @Test func targetsOutsideTheVocabularyAreAnError() throws {
        for target in [-1, 5] {
            #expect(throws: TorchError.self) {
                try callTensor("graft::cross_entropy_", Tensor.zeros([1, 5]), Tensor([target]), true)
            }
        }
    }

    @Test("fused == unfused: frozen linears with low-rank updates", arguments: [1, 3, 12, 76, 131], [false, true])
    func linears(rows: Int, drops: Bool) throws {
        var random = SeededGenerator(seed: 350 + UInt64(rows))
        let sizes = [65, 33, 12]
        let (inputs, ranks, scales) = (77, [rows == 131 ? 1 : 5, 3], [2.0, 0.5])
        let weights = try sizes.map { try (Tensor.random([$0, inputs], &random) / 8).to(dtype: .bfloat16) }
        let bias = try Tensor.random([sizes[1]], &random).to(dtype: .bfloat16)
        let dropped = try Tensor((0..<2 * rows * inputs).map { $0 % 3 == 0 ? 0 : 1.5 }, shape: [2, rows, inputs])
        func layers(_ given: [Tensor]) throws -> [FrozenLinear] {
            let dtype = given[0].dtype
            return try sizes.indices.map { index in
                var layer = FrozenLinear(weight: try weights[index].to(dtype: dtype))
                if index == 1 { layer.bias = try bias.to(dtype: dtype) }
                if index < 2 {
                    let mask = drops && index == 0 ? try dropped.to(dtype: dtype) : nil
                    layer.term = LowRankTerm(
                        down: given[1 + 2 * index], up: given[2 + 2 * index], scale: scales[index], mask: mask)
                }
                return layer
            }
        }
        func plain(_ given: [Tensor]) throws -> [Tensor] {
            try layers(given).map { layer in
                let output = try linear(given[0], layer.weight, layer.bias)
                guard let term = layer.term else { return output }
                let kept = try term.mask.map { try given[0] * $0 } ?? given[0]
                return try output + linear(linear(kept, term.down) * term.scale, term.up)
            }
        }
        let shapes =
            [[2, rows, inputs]] + sizes.indices.dropLast().flatMap { [[ranks[$0], inputs], [sizes[$0], ranks[$0]]] }
        try compare(shapes, &random, own: { try frozenLinears(layers($0), $0[0]) }, portable: plain, formula: plain)
    }

    @Test func linearsWithoutATerm() throws {
        var random = SeededGenerator(seed: 360)
        let weight = try Tensor.random([31, 18], &random).to(dtype: .bfloat16)
        try compare(
            [[40, 18]], &random,
            own: { try frozenLinears([FrozenLinear(weight: weight.to(dtype: $0[0].dtype))], $0[0]) },
            portable: { [try linear($0[0], weight.to(dtype: $0[0].dtype))] },
            formula: { [try linear($0[0], weight.to(dtype: $0[0].dtype))] })
    }

    @Test func misfitsAreErrors() throws {
        let (x, weight) = (try Tensor.zeros([3, 4]), try Tensor.zeros([2, 4]))
        #expect(throws: TorchError.self) { try frozenLinears([], x) }
        #expect(throws: TorchError.self) { try frozenLinears([FrozenLinear(weight: weight)], Tensor.zeros([3, 5])) }
        #expect(throws: TorchError.self) {
            try frozenLinears([FrozenLinear(weight: weight.requiringGrad())], x)
        }
        let odd = LowRankTerm(down: try Tensor.zeros([1, 4]), up: try Tensor.zeros([2, 3]), scale: 1)
        #expect(throws: TorchError.self) {
            try frozenLinears([FrozenLinear(weight: Tensor.zeros([2, 4]), term: odd)], x)
        }
        for rows in [3, 200] {
            let input = try Tensor.zeros([rows, 4])
            let biased = FrozenLinear(weight: weight, bias: try Tensor.zeros([1]))
            #expect(throws: TorchError.self) { try frozenLinears([biased], input) }
            #expect(throws: TorchError.self) { try unrecordedProduct(input, weight, Tensor.zeros([3])) }
        }
        #expect(throws: TorchError.self) { try rmsNorm(x, weight: Tensor.zeros([3]), epsilon: 1) }
        #expect(throws: TorchError.self) { try swiglu(gate: x, up: Tensor.zeros([4, 3])) }
        let cos = try Tensor.zeros([1, 1, 5, 4])
        #expect(throws: TorchError.self) {
            try rotated(queries: Tensor.zeros([1, 1, 6, 4]), keys: Tensor.zeros([1, 1, 6, 4]), cos: cos, sin: cos)
        }
    }

    /// In float32 kernels agree with the formula in float64; in bfloat16 they are as near as the portable form is.
    private func compare(
        _ shapes: [[Int]], _ random: inout SeededGenerator, spread: Double = 1,
        own: ([Tensor]) throws -> [Tensor], portable: ([Tensor]) throws -> [Tensor],
        formula: ([Tensor]) throws -> [Tensor]
    ) throws {
        for dtype in [DType.float32, .bfloat16] {
            // Inputs are inner parts of wider tensors, so that they are not contiguous.
            let wide = try shapes.map { shape in
                let last = shape.count - 1
                let padded = shape.enumerated().map { $0.offset == last ? $0.element + 3 : $0.element }
                return try (Tensor.random(padded, &random) * spread).to(dtype: dtype)
            }
            func results(_ dtype: DType, _ body: ([Tensor]) throws -> [Tensor], _ outer: [Tensor]) throws -> [Tensor] {
                let leaves = try wide.map { try $0.to(dtype: dtype).cloned().requiringGrad() }
                let outputs = try body(narrow(leaves, shapes))
                let slopes = try gradients(
                    of: outputs, with: leaves, gradOutputs: zip(outer, outputs).map { try $0.to(dtype: $1.dtype) })
                return try outputs.map { try $0.detached() } + slopes.map { try #require($0) }
            }
            let outputs = try withoutGrad { try portable(narrow(wide, shapes)) }
            let outer = try outputs.map { try Tensor.random($0.shape, &random).to(dtype: dtype) }
            let found = try results(dtype, own, outer)
            let exact = try results(.float64, formula, outer)
            let usual = try results(dtype, portable, outer)
            for index in exact.indices {
                let mine = try relativeError(found[index], exact[index])
                let bound = dtype == .float32 ? 1e-5 : max(1.5 * (try relativeError(usual[index], exact[index])), 1e-3)
                #expect(mine <= bound, "\(dtype), result \(index): \(mine) above \(bound)")
            }
        }
    }

    private func narrow(_ wide: [Tensor], _ shapes: [[Int]]) throws -> [Tensor] {
        try zip(wide, shapes).map { try $0.narrowed(-1, start: 2, length: $1[$1.count - 1]) }
    }
}
