import Backbones
import TestSupport
import Testing
import Torch

@Suite struct AttentionTests {
    /// Plain products and LibTorch's attention agree in value and in every gradient.
    @Test(arguments: [(6, 2, 9, 9), (4, 4, 5, 12), (3, 1, 17, 17)])
    func productsEqualTheKernel(heads: Int, groups: Int, time: Int, keys: Int) throws {
        var random = SeededGenerator(seed: UInt64(heads))
        func leaf(_ shape: [Int]) throws -> Tensor {
            try Tensor(random.normals(shape.reduce(1, *)).map(Double.init), shape: shape).requiringGrad()
        }
        let (query, key, value) = (
            try leaf([2, heads, time, 8]), try leaf([2, groups, keys, 8]), try leaf([2, groups, keys, 8])
        )
        let mask = try Tensor.ones([time, keys], dtype: .bool)
        try call("aten::tril_", mask, keys - time)
        let bias = try Tensor.zeros([time, keys], dtype: .float64)
        try call("aten::masked_fill_.Scalar", bias, callTensor("aten::logical_not", mask), -1e30)
        let gradient = try Tensor(random.normals(2 * heads * time * 8).map(Double.init), shape: [2, heads, time, 8])

        let kernel = try scaledDotProductAttention(query: query, key: key, value: value, mask: mask)
        let products = try PlainAttention.attend(query, key, value, bias: bias)
        #expect(try difference(products, kernel) < 1e-12)
        let expected = try gradients(of: [kernel], with: [query, key, value], gradOutputs: [gradient])
        let found = try gradients(of: [products], with: [query, key, value], gradOutputs: [gradient])
        for (one, other) in zip(found, expected) {
            #expect(try difference(try #require(one), try #require(other)) < 1e-12)
        }
    }

    /// In bfloat16, where the products are used, losses have the gradients of float32 within bfloat16's error.
    @Test(arguments: ["llama", "mistral", "qwen3-sliding"])
    func gradientsInBfloat16(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 13, dtype: "bfloat16")
        var random = SeededGenerator(seed: 61)
        let ids = try tensor(random.tokens(rows: 2, length: 30, vocabulary: 97))
        func gradient(_ dtype: DType) throws -> Tensor {
            let backbone = try load(folder, dtype: dtype)
            let parameter = try #require(
                backbone.parameters.first { $0.path.hasSuffix("layers.0.self_attn.k_proj.weight") })
            let leaf = try parameter.frozen.detached().cloned().requiringGrad()
            parameter.replacement = leaf
            try backbone.logits(ids).to(dtype: .float32).squared().mean().backward()
            return try #require(leaf.grad)
        }
        let (exact, half) = (try gradient(.float32), try gradient(.bfloat16))
        #expect(try rootMeanSquare(half, exact) < 0.03 * rootMeanSquare(exact, exact.zerosLike()))
    }

    /// Only some of the three inputs need a gradient where an adapter sits on one projection alone.
    @Test func gradientOfOneInput() throws {
        var random = SeededGenerator(seed: 62)
        func value(_ shape: [Int]) throws -> Tensor { try Tensor(random.normals(shape.reduce(1, *)), shape: shape) }
        let inputs = try [value([1, 4, 6, 8]), value([1, 2, 6, 8]), value([1, 2, 6, 8])]
        let bias = try Tensor.zeros([6, 6])
        for index in inputs.indices {
            let leaves = try inputs.map { try $0.cloned() }
            try leaves[index].requiringGrad()
            let kernel = try scaledDotProductAttention(query: leaves[0], key: leaves[1], value: leaves[2])
            let products = try PlainAttention.attend(leaves[0], leaves[1], leaves[2], bias: bias)
            let grads = try [kernel, products].map {
                try #require(gradients(of: [$0.squared().sum()], with: [leaves[index]])[0])
            }
            #expect(try difference(grads[0], grads[1]) < 1e-5)
        }
    }

    /// A token of padding that may see nothing spoils neither its own row nor others.
    @Test(arguments: [DType.float32, .bfloat16])
    func tokensThatSeeNothing(dtype: DType) async throws {
        let folder = try await TinyModels.shared.folder("mistral", seed: 11)
        let backbone = try load(folder, dtype: dtype)
        let ids = try tensor([[4, 5, 6, 0, 0]])
        var context = Context()
        context.mask = try Tensor((0..<25).map { $0 % 5 <= $0 / 5 && $0 / 5 < 3 }, shape: [1, 1, 5, 5])
        let padded = try withoutGrad { try backbone.logits(ids, context) }
        #expect(try padded.isAllFinite())
        let alone = try withoutGrad { try backbone.logits(tensor([[4, 5, 6]])) }
        #expect(try difference(padded.narrowed(1, start: 0, length: 3), alone) < (dtype == .float32 ? 1e-5 : 0.05))
    }
}
