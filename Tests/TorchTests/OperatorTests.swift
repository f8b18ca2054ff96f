import TestSupport
import Testing
import Torch

/// The door to the dispatcher: every kind of argument and result, and errors that say what was called on what.
struct OperatorTests {
    @Test func argumentsOfEveryKindArrive() throws {
        let x = try Tensor((0..<12).map(Double.init), shape: [3, 4])
        // Real numbers and lists of them, from integers too.
        #expect(try callTensor("aten::clamp", x, 2, 5.5).values() == [2, 2, 2, 3, 4, 5, 5.5, 5.5, 5.5, 5.5, 5.5, 5.5])
        #expect(try callTensor("aten::upsample_nearest1d", x.unsqueezed(0), [8], 2.0).shape == [1, 3, 8])
        #expect(try callTensor("aten::upsample_nearest1d.vec", x.unsqueezed(0), Int?.none, [2]).shape == [1, 3, 8])
        #expect(try callTensor("aten::upsample_nearest1d.vec", x.unsqueezed(0), Int?.none, [1.5]).shape == [1, 3, 6])
        // A single integer stands for a list of one.
        #expect(try callTensor("aten::sum.dim_IntList", x, 0).values() == [12.0, 15, 18, 21])
        // Defaults in the middle and at the end.
        #expect(try callTensor("aten::add.Tensor", x, x, Argument.default).isIdentical(to: x * 2))
        #expect(try callTensor("aten::argmax", x, Argument.default, true).values() == [11])
        // Strings, truth values and lists of them.
        #expect(try callTensor("aten::div.Tensor_mode", x, try Tensor(5.0), "floor").sum().item() == 9.0)
        let parts = try callTensors(
            "aten::native_layer_norm_backward", x, x, [4], x.mean([1], keepingDimensions: true),
            Tensor.ones([3, 1], dtype: .float64), Tensor.ones([4], dtype: .float64), Tensor.zeros([4], dtype: .float64),
            [true, true, true])
        #expect(parts.map(\.shape) == [[3, 4], [4], [4]])
        // Lists of tensors, of absent ones, of scalars.
        #expect(try callTensor("aten::cat", [x, x], 1).shape == [3, 8])
        #expect(try callTensor("aten::index.Tensor", x, [nil, try Tensor([3])]).values() == [3.0, 7, 11])
        let scaled = try callTensors("aten::_foreach_mul.ScalarList", [x, x], [0.5, 3])
        #expect(try scaled[0].isIdentical(to: x * 0.5) && scaled[1].isIdentical(to: x * 3))
        let counted = try callTensors("aten::_foreach_mul.ScalarList", [x, x], [2, 3])
        #expect(try counted[1].isIdentical(to: x * 3))
    }

    @Test func emptyListsHaveTheirKind() throws {
        #expect(try callTensor("aten::zeros", [Int]()).shape == [])
        #expect(try callTensors("aten::_foreach_neg", [Tensor.zeros([1])]).count == 1)
        #expect(try callTensors("aten::broadcast_tensors", [Tensor]()).isEmpty)
        let none = message { _ = try callTensor("aten::cat", [Tensor]()) }
        #expect(none.hasPrefix("aten::cat({}): "), "\(none)")
        #expect(try callTensor("aten::sum.dim_IntList", Tensor.ones([2, 2]), [Int]()).item() == Float(4))
        let x = try Tensor.ones([1, 1, 2])
        let scales = message { _ = try callTensor("aten::upsample_nearest1d.vec", x, Argument.none, [Double]()) }
        #expect(scales.hasPrefix("aten::upsample_nearest1d.vec(float32[1, 1, 2], none, []): "), "\(scales)")
    }

    @Test func resultsOfEveryKindComeBack() throws {
        let x = try Tensor([3.0, 1, 2])
        let sorted = try callTensors("aten::sort", x)
        #expect(try sorted[0].values() == [1.0, 2, 3] && sorted[1].values() == [1, 2, 0])
        #expect(try callTensors("aten::chunk", x, 2).map(\.shape) == [[2], [1]])
        guard case .bool(true)? = try call("aten::equal", x, x).first else { return #expect(Bool(false)) }
        guard case .integer(3)? = try call("aten::size.int", x, 0).first else { return #expect(Bool(false)) }
        guard case .real(1)? = try call("aten::item", x.selected(0, 1)).first else { return #expect(Bool(false)) }
        #expect(try call("aten::_assert_async", Tensor(true)).isEmpty)
        let text = message { _ = try callTensor("aten::equal", x, x) }
        #expect(text == "aten::equal: the result is not a tensor")
        #expect(throws: TorchError.self) { try callTensors("aten::equal", x, x) }
        // In place operators return their first argument.
        #expect(try callTensor("aten::add_.Scalar", x, 1).sharesStorage(with: x))
        #expect(try x.values() == [4.0, 2, 3])
    }

    @Test func errorsTellOperatorShapesAndDtypes() throws {
        let x = try Tensor.zeros([2, 3])
        let y = try Tensor.zeros([4, 5], dtype: .bfloat16)
        let cases: [(String, String)] = [
            (message { _ = try x.matmul(y) }, "aten::matmul(float32[2, 3], bfloat16[4, 5]): "),
            (message { _ = try x + Tensor.zeros([4]) }, "aten::add.Tensor(float32[2, 3], float32[4]): "),
            (message { _ = try Tensor.concatenate([x, y]) }, "aten::cat({float32[2, 3], bfloat16[4, 5]}, 0): "),
            (message { _ = try x.permuted([0, 0]) }, "aten::permute(float32[2, 3], [0, 0]): "),
            (
                message { _ = try callTensor("aten::div.Tensor_mode", x, x, "up") },
                "aten::div.Tensor_mode(float32[2, 3], float32[2, 3], \"up\"): "
            ),
            (message { _ = try linear(x, y) }, "aten::linear(float32[2, 3], bfloat16[4, 5], none): "),
            (
                message { _ = try x.reshaped(Array(repeating: 1, count: 12)) },
                "aten::reshape(float32[2, 3], [1, 1, 1, 1, 1, 1, 1, 1, ...]): "
            ),
            (
                message { _ = try Tensor.zeros([1 << 45], dtype: .bfloat16) },
                // What follows is the allocator's: LibTorch's own, or the one that training puts in its place.
                "aten::zeros([35184372088832], bfloat16, none, cpu): "
            ),
            (
                message { try call("aten::cudnn_convolution_relu", x, x, Argument.none, [1], [1], [1], 1) },
                "aten::cudnn_convolution_relu(float32[2, 3], float32[2, 3], none, [1], [1], [1], 1): Could not run "
            ),
            (
                message { _ = try callTensor("aten::bernoulli.p", x, 7.5, Generator(Seed(1).stream("a"))) },
                "aten::bernoulli.p(float32[2, 3], 7.5, generator): "
            ),
        ]
        for (text, start) in cases {
            #expect(text.hasPrefix(start) && text.count > start.count + 10, "\(text)")
            for noise in ["Exception raised", "frame #", ".cpp", "registered at", "Facebook"] {
                #expect(!text.contains(noise), "\(text)")
            }
            #expect(text.count < 400)
        }
    }

    @Test func wrongCallsAreExplained() throws {
        let x = try Tensor.zeros([2])
        for name in ["aten::no_such_operator", "aten::add.Nothing", "add", "::", ".a", ""] as [StaticString] {
            #expect(message { try call(name, x) } == "LibTorch has no operator '\(name)'")
        }
        let cases: [(String, String)] = [
            (message { try call("aten::add.Tensor", x) }, "argument 'other' has no default value"),
            (message { try call("aten::relu", x, x) }, "takes 1 arguments, not 2"),
            (message { try call("aten::relu") }, "argument 'self' has no default value"),
            (message { try call("aten::relu", 1.5) }, "argument 'self' is 1.5, but has to be Tensor"),
            (message { try call("aten::relu", Argument.none) }, "argument 'self' is none, but has to be Tensor"),
            (message { try call("aten::argmax", x, 0.5) }, "argument 'dim' is 0.5, but has to be int?"),
            (message { try call("aten::argmax", x, "zero") }, "argument 'dim' is \"zero\", but has to be int?"),
            (message { try call("aten::argmax", x, 0, 1) }, "argument 'keepdim' is 1, but has to be bool"),
            (message { try call("aten::argmax", x, x) }, "argument 'dim' is float32[2], but has to be int?"),
            (message { try call("aten::cat", x) }, "argument 'tensors' is float32[2], but has to be Tensor[]"),
            (message { try call("aten::cat", [1, 2]) }, "argument 'tensors' is [1, 2], but has to be Tensor[]"),
            (message { try call("aten::cat", [x, nil]) }, "item 1 of a tensor list is absent"),
            (message { try call("aten::permute", x, [0.5]) }, "argument 'dims' is [0.5], but has to be int[]"),
            (message { try call("aten::zeros", [x]) }, "argument 'size' is {float32[2]}, but has to be int[]"),
            (message { try call("aten::zeros", [2], Device.cpu) }, "argument 'dtype' is cpu, but has to be int?"),
        ]
        for (text, reason) in cases {
            #expect(text.hasPrefix("aten::") && text.hasSuffix(reason), "\(text)")
        }
    }

    @Test func errorsOfThreadsDoNotMix() async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for task in 0..<16 {
                group.addTask {
                    let x = try Tensor.zeros([task + 1])
                    for _ in 0..<200 {
                        let text = message { _ = try x.reshaped([100]) }
                        #expect(text.hasPrefix("aten::reshape(float32[\(task + 1)], [100]): "))
                    }
                }
            }
            try await group.waitForAll()
        }
    }

    @Test func tasksComputeSideBySide() async throws {
        var generator = SeededGenerator(seed: 3)
        let weight = try Tensor.random([33, 33], &generator)
        let expected: Double = try weight.matmul(weight).sum().item()
        let sums = try await withThrowingTaskGroup(of: Double.self) { group in
            for _ in 0..<32 {
                group.addTask { try weight.cloned().matmul(weight).sum().item() }
            }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(sums.count == 32 && sums.allSatisfy { abs($0 - expected) < 1e-9 })
    }
}
