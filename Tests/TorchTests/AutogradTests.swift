import Foundation
import TestSupport
import Testing
import Torch

/// Gradients of LibTorch's own operators.
struct AutogradTests {
    @Test func leavesAddUpGradients() throws {
        let x = try Tensor([1.0, -2, 3]).requiringGrad()
        #expect(x.requiresGrad && x.grad == nil)
        try x.squared().sum().backward()
        #expect(try x.grad?.values() == [2.0, -4, 6])
        try (x * 3).sum().backward()
        #expect(try x.grad?.values() == [5.0, -1, 9])
        try x.setGrad(nil)
        #expect(x.grad == nil)
        try (x * 2).backward(gradient: Tensor([1.0, 10, 100]))
        #expect(try x.grad?.values() == [2.0, 20, 200])
        try x.setGrad(Tensor([0.5, 0.5, 0.5]))
        try (x * 2).sum().backward()
        #expect(try x.grad?.values() == [2.5, 2.5, 2.5])
        try x.requiringGrad(false)
        #expect(try !x.requiresGrad && !(x * 2).requiresGrad)
    }

    @Test func misuseIsAnError() throws {
        let x = try Tensor([1.0, 2]).requiringGrad()
        #expect(throws: TorchError.self) { try Tensor([1, 2]).requiringGrad() }
        #expect(throws: TorchError.self) { try (x * 2).requiringGrad(false) }
        #expect(throws: TorchError.self) { try (x * 2).backward() }
        #expect(throws: TorchError.self) { try Tensor([1.0]).backward() }
        #expect(throws: TorchError.self) { try (x * 2).backward(gradient: Tensor([1.0, 2, 3])) }
        #expect(throws: TorchError.self) { try x.fill(0) }
        let once = try (x * x).sum()
        try once.backward()
        let twice = message { try once.backward() }
        #expect(twice.contains("second time"), "\(twice)")
        let fit = "a gradient float64[3] does not fit the tensor float64[2]"
        #expect(message { try x.setGrad(Tensor([1.0, 2, 3])) } == fit)
        #expect(throws: TorchError.self) { try x.setGrad(Tensor([1.0, 2] as [Float])) }
        #expect(throws: TorchError.self) { try gradients(of: [x.sum()], with: [x], gradOutputs: []) }
        #expect(throws: TorchError.self) { try gradients(of: [Tensor([1.0])], with: [x]) }
        // What was saved for backward must not have changed in between.
        let y = try x * 1
        let square = try (y * y).sum()
        try y.detached().fill(3)
        #expect(throws: TorchError.self) { try square.backward() }
    }

    @Test func recordingStopsAndStarts() throws {
        let x = try Tensor([1.0]).requiringGrad()
        #expect(isGradEnabled)
        try withoutGrad {
            #expect(!isGradEnabled)
            #expect(try !(x * 2).requiresGrad)
            let inner = try withGradEnabled(true) { try x * 2 }
            #expect(inner.requiresGrad && !isGradEnabled)
            try x.fill(4)
        }
        #expect(isGradEnabled && x.requiresGrad)
        #expect(throws: TorchError.self) { try withoutGrad { throw TorchError("out") } }
        #expect(isGradEnabled, "an error restores the state")
        let apart = try (x * 2).detached()
        #expect(try !apart.requiresGrad && apart.values() == [8.0])
        #expect(try (x * 2).grad == nil)
    }

    @Test func recordingIsOfTheThread() async throws {
        try await withoutGradOnAnotherThread {
            #expect(isGradEnabled)
        }
    }

    @Test func gradientsAreGivenBack() throws {
        let x = try Tensor([2.0]).requiringGrad()
        let y = try Tensor([5.0]).requiringGrad()
        let unused = try Tensor([1.0]).requiringGrad()
        let z = try (x * y).sum()
        let found = try gradients(of: [z], with: [x, unused, y])
        #expect(found.count == 3 && found[1] == nil)
        #expect(try found[0]?.values() == [5.0] && found[2]?.values() == [2.0])
        #expect(x.grad == nil && y.grad == nil)
        #expect(throws: TorchError.self) { try gradients(of: [z], with: [x]) }
        let several = try gradients(
            of: [x * 3, x * y], with: [x, y], gradOutputs: [Tensor([10.0]), Tensor([1.0])])
        #expect(try several[0]?.item() == 35.0 && several[1]?.item() == 2.0)
    }

    @Test func secondDerivatives() throws {
        let x = try Tensor([0.7, -1.3]).requiringGrad()
        let middle = try x.sin()
        let cube = try (middle * middle * middle).sum()
        let first = try #require(try gradients(of: [cube], with: [x], createGraph: true)[0])
        let second = try #require(try gradients(of: [first.sum()], with: [x])[0])
        let expected = try x.values(as: Double.self).map { value in
            let (s, c) = (Foundation.sin(value), Foundation.cos(value))
            return 6 * s * c * c - 3 * s * s * s
        }
        #expect(try second.difference(from: Tensor(expected)) < 1e-14)
        // With the record kept, the same pass runs again.
        let square = try (x * x).sum()
        let kept = try gradients(of: [square], with: [x], retainGraph: true)[0]
        let again = try gradients(of: [square], with: [x])[0]
        #expect(try #require(kept).isIdentical(to: #require(again)))
    }

    @Test(arguments: ComposedFunction.all) func composedFunctions(_ function: ComposedFunction) async throws {
        var generator = SeededGenerator(seed: 21)
        let inputs = try function.shapes.map { try Tensor.random($0, &generator).requiringGrad() }
        let loss = try function.run(inputs).cos().sum()
        let own = try gradients(of: [loss], with: inputs).map { try #require($0) }
        for (index, input) in inputs.enumerated() {
            let numeric = try finiteDifferences(input) {
                try withoutGrad { try function.run(inputs).cos().sum().item() }
            }
            #expect(try own[index].difference(from: numeric) < 2e-8, "\(function) by input \(index)")
        }
        let names = ["x", "y", "z"].prefix(inputs.count)
        let tensors = Dictionary(uniqueKeysWithValues: zip(names, inputs))
        let expected = try await Reference.gradients(function.python, tensors, with: Array(names))
        for (gradient, reference) in zip(own, expected) { #expect(try gradient.difference(from: reference) < 1e-12) }
    }

    @Test func memoryIsFreedAfterBackward() async throws {
        await #expect(processExitsWith: .success) {
            let weight = try Tensor.zeros([1024, 1024]).requiringGrad()
            func step() throws {
                var value = try weight * 1
                for _ in 0..<8 { value = try value.exp() * 0.5 }
                try value.sum().backward()
                try weight.setGrad(nil)
            }
            for _ in 0..<3 { try step() }
            let before = Memory.resident()
            // A step records over 64 MiB, ten that were kept would hold 640; the C library keeps some for itself.
            for _ in 0..<10 { try step() }
            #expect(Memory.resident() - before < 160 << 20)
        }
    }

    @Test func aTensorEndsWithItsRecord() throws {
        // A record of a hundred thousand steps is freed without a deep recursion.
        var value = try Tensor([1.0]).requiringGrad()
        for _ in 0..<100_000 { value = try value + 0 }
        #expect(try value.item() == 1.0)
    }
}

/// Checks `body` on a new thread while this one does not record.
private func withoutGradOnAnotherThread(_ body: @escaping @Sendable () -> Void) async throws {
    let (stream, continuation) = AsyncStream.makeStream(of: Void.self)
    withoutGrad {
        Thread.detachNewThread {
            body()
            continuation.finish()
        }
    }
    for await _ in stream {}
}

/// A function of up to three tensors in Swift and in Python.
struct ComposedFunction: CustomTestStringConvertible, Sendable {
    let shapes: [[Int]]
    let python: String
    let run: @Sendable ([Tensor]) throws -> Tensor
    var testDescription: String { python }

    static let all: [ComposedFunction] = [
        ComposedFunction(shapes: [[3, 5], [4, 5], [4]], python: "F.silu(F.linear(x, y, z)) * x.mean()") {
            try silu(linear($0[0], $0[1], $0[2])) * $0[0].mean()
        },
        ComposedFunction(
            shapes: [[2, 3, 4], [4, 3, 2]], python: "torch.softmax(x @ y.permute(2, 0, 1)[:, :4, ::2], -1)"
        ) {
            try softmax(
                $0[0].matmul($0[1].permuted([2, 0, 1]).indexed(.all, .slice(nil, 4), .slice(nil, nil, step: 2))))
        },
        ComposedFunction(
            shapes: [[5, 3], [3]], python: "x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * y"
        ) {
            let scale = try ($0[0].squared().mean([-1], keepingDimensions: true) + 0.1).reciprocalSquareRoot()
            return try $0[0] * scale * $0[1]
        },
        ComposedFunction(
            shapes: [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]],
            python: "F.scaled_dot_product_attention(x, y, z, is_causal=True)"
        ) {
            try scaledDotProductAttention(query: $0[0], key: $0[1], value: $0[2], isCausal: true)
        },
        ComposedFunction(
            shapes: [[6, 3]], python: "torch.cat([x[[0, 2, 2]], F.gelu(x[1:4])]).transpose(0, 1).reshape(2, 9)"
        ) {
            let rows = try $0[0].indexed(.tensor(Tensor([0, 2, 2])))
            let others = try gelu($0[0].indexed(.slice(1, 4)))
            return try Tensor.concatenate([rows, others]).transposed(0, 1).reshaped([2, 9])
        },
        ComposedFunction(
            shapes: [[4, 4], [2, 4]], python: "F.log_softmax(F.embedding(torch.tensor([1, 0, 1]), y) / x.norm(), 0)"
        ) {
            try logSoftmax(embedding(Tensor([1, 0, 1]), $0[1]) / $0[0].norm(), dimension: 0)
        },
    ]
}

/// Central differences of a function of the elements of `input`.
func finiteDifferences(_ input: Tensor, _ function: () throws -> Double) throws -> Tensor {
    let step = 1e-5
    let elements = try input.detached()
    let values = try (0..<input.count).map { index in
        func at(_ offset: Double) throws -> Double {
            try elements.withUnsafeMutableBytes { $0.bindMemory(to: Double.self)[index] += offset }
            return try function()
        }
        let slope = (try at(step) - at(-2 * step)) / (2 * step)
        _ = try at(step)
        return slope
    }
    return try Tensor(values, shape: input.shape)
}
