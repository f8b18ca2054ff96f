import Synchronization
import TestSupport
import Testing
import Torch

/// Functions whose backward is written in Swift.
struct CustomGradientTests {
    @Test func matchesFiniteDifferences() throws {
        var generator = SeededGenerator(seed: 31)
        let x = try Tensor.random([3, 4], &generator).requiringGrad()
        let weight = try Tensor.random([4, 2], &generator).requiringGrad()
        func run() throws -> Tensor {
            let y = try product(x, weight).cos()
            return try (product(y, y.transposed()) * 0.3).sin().sum()
        }
        let found = try gradients(of: [run()], with: [x, weight])
        for (input, gradient) in zip([x, weight], found) {
            let numeric = try finiteDifferences(input) { try run().item() }
            #expect(try #require(gradient).difference(from: numeric) < 2e-8)
        }
    }

    @Test func forwardRunsWithoutRecord() throws {
        let x = try Tensor([1.0, 2]).requiringGrad()
        let y = try withCustomGradient("test", inputs: [x]) {
            #expect(!isGradEnabled)
            let inner = try x * 10
            #expect(!inner.requiresGrad)
            return (output: inner, backward: { [try $0 * 10] })
        }
        #expect(y.requiresGrad && isGradEnabled)
        #expect(try y.values() == [10.0, 20])
        try y.sum().backward()
        #expect(try x.grad?.values() == [10.0, 10])
    }

    @Test func nothingIsKeptWhereNothingRecords() throws {
        let tracker = Tracker()
        func run(_ input: Tensor) throws -> Tensor {
            let token = Token(tracker)
            return try withCustomGradient("test", inputs: [input]) {
                (
                    output: try input * 2,
                    backward: {
                        withExtendedLifetime(token) {}; return [$0]
                    }
                )
            }
        }
        let plain = try run(Tensor([1.0]))
        #expect(!plain.requiresGrad && tracker.living == 0)
        let leaf = try Tensor([1.0]).requiringGrad()
        let quiet = try withoutGrad { try run(leaf) }
        #expect(!quiet.requiresGrad && tracker.living == 0)
        let recorded = try run(leaf)
        #expect(recorded.requiresGrad && tracker.living == 1)
    }

    @Test func severalResultsAndAbsentGradients() throws {
        let x = try Tensor([1.0, 2]).requiringGrad()
        let y = try Tensor([3.0]).requiringGrad()
        let frozen = try Tensor([4.0])
        let seen = Mutex<[[Bool]]>([])
        func run() throws -> [Tensor] {
            try withCustomGradient("test", inputs: [x, frozen, y]) {
                let results = [try x * 2, try Tensor([0, 1]), try y * 3, try x * y]
                return (
                    outputs: results,
                    backward: { incoming in
                        seen.withLock { $0.append(incoming.map { $0 != nil }) }
                        var forX = try incoming[0].map { try $0 * 2 }
                        var forY = try incoming[2].map { try $0 * 3 }
                        if let product = incoming[3] {
                            let part = try product * y
                            forX = try forX.map { try $0 + part } ?? part
                            let other = try (product * x).sum([0], keepingDimensions: true)
                            forY = try forY.map { try $0 + other } ?? other
                        }
                        return [forX, nil, forY]
                    }
                )
            }
        }
        let all = try run()
        #expect(all.map(\.requiresGrad) == [true, false, true, true] && all[1].dtype == .int64)
        try (all[0].sum() + all[2].sum() + all[3].sum()).backward()
        #expect(try x.grad?.values() == [5.0, 5] && y.grad?.values() == [6.0] && frozen.grad == nil)
        try x.setGrad(nil)
        try y.setGrad(nil)
        try run()[0].sum().backward()
        #expect(try x.grad?.values() == [2.0, 2] && y.grad == nil)
        try run()[2].backward()
        #expect(try y.grad?.values() == [3.0])
        #expect(
            seen.withLock { $0 } == [
                [true, false, true, true], [true, false, false, false], [false, false, true, false],
            ])
    }

    @Test func aResultMayBeAnInputOrAView() throws {
        let x = try Tensor([1.0, 2, 3]).requiringGrad()
        let same = try withCustomGradient("identity", inputs: [x]) {
            (output: x, backward: { [try $0 * 7] })
        }
        #expect(same !== x && same.sharesStorage(with: x))
        try same.sum().backward()
        #expect(try x.grad?.values() == [7.0, 7, 7])
        #expect(x.requiresGrad, "the input is as before")
        try x.setGrad(nil)
        let part = try withCustomGradient("part", inputs: [x]) {
            (
                output: try x.narrowed(0, start: 1, length: 1),
                backward: { try [Tensor.concatenate([Tensor([0.0]), $0, Tensor([0.0])])] }
            )
        }
        try (part * x.detached().narrowed(0, start: 1, length: 1)).backward()
        #expect(try x.grad?.values() == [0.0, 2, 0])
    }

    @Test func strangeMemoryOrderArrives() throws {
        var generator = SeededGenerator(seed: 33)
        let base = try Tensor.random([4, 3], &generator).requiringGrad()
        let other = try Tensor.random([3, 8], &generator)
        func run() throws -> Tensor {
            // [3, 4] x [4, 3], both with gaps; the gradient that comes back has strides 0.
            let columns = try other.indexed(.all, .slice(nil, nil, step: 2)).transposed()
            return try product(base.transposed(), columns * base).expanded([2, 3, 3]).sum()
        }
        let found = try #require(try gradients(of: [run()], with: [base])[0])
        let numeric = try finiteDifferences(base) { try run().item() }
        #expect(try found.difference(from: numeric) < 1e-7)
    }

    @Test func nestedFunctionsAndPasses() throws {
        let x = try Tensor([0.3, -0.4]).requiringGrad()
        // Backward computes its gradient by a backward pass of its own, as checkpoints do.
        func checkpointed(_ input: Tensor, _ body: @escaping (Tensor) throws -> Tensor) throws -> Tensor {
            try withCustomGradient("checkpoint", inputs: [input]) {
                (
                    output: try body(input),
                    backward: { gradient in
                        let leaf = try input.detached().requiringGrad()
                        let again = try withGradEnabled(true) { try body(leaf) }
                        return try gradients(of: [again], with: [leaf], gradOutputs: [gradient])
                    }
                )
            }
        }
        let y = try checkpointed(x) { try checkpointed($0) { try $0.exp() }.sin() }
        let found = try #require(try gradients(of: [y.sum()], with: [x])[0])
        let plain = try #require(try gradients(of: [x.exp().sin().sum()], with: [x])[0])
        #expect(try found.difference(from: plain) < 1e-15)
    }

    @Test func backwardTwiceNeedsTheRecord() throws {
        let tracker = Tracker()
        let x = try Tensor([3.0]).requiringGrad()
        func run() throws -> Tensor {
            let token = Token(tracker)
            return try withCustomGradient("square", inputs: [x]) {
                let kept = x
                return (
                    output: try x * x,
                    backward: { gradient in
                        withExtendedLifetime(token) {}
                        return [try gradient * kept * 2]
                    }
                )
            }
        }
        let y = try run()
        try y.backward(retainGraph: true)
        #expect(tracker.living == 1)
        try y.backward()
        #expect(tracker.living == 0, "what backward captured is freed by the last pass, though its result lives")
        #expect(try x.grad?.values() == [12.0])
        let text = message { try y.backward() }
        #expect(text.contains("square") && text.contains("second time") && text.contains("retain"), "\(text)")
        #expect(try x.grad?.values() == [12.0])
        #expect(try y.values() == [9.0])
    }

    @Test func secondDerivativesThroughSwift() throws {
        let x = try Tensor([3.0, 0.5]).requiringGrad()
        let cube = try withCustomGradient("cube", inputs: [x]) {
            (output: try x * x * x, backward: { [try $0 * x * x * 3] })
        }
        let first = try #require(try gradients(of: [cube.sum()], with: [x], createGraph: true)[0])
        #expect(try first.values() == [27, 0.75])
        let second = try #require(try gradients(of: [first.sum()], with: [x])[0])
        #expect(try second.values() == [18.0, 3])
    }

    @Test func errorsOfSwiftComeThrough() throws {
        let tracker = Tracker()
        let x = try Tensor([1.0, 2]).requiringGrad()
        func run(_ backward: @escaping (Tensor) throws -> [Tensor?]) throws -> Tensor {
            let token = Token(tracker)
            return try withCustomGradient("broken", inputs: [x]) {
                (
                    output: try x * 1,
                    backward: { gradient in try withExtendedLifetime(token) { try backward(gradient) } }
                )
            }
        }
        let thrown = message { try run { _ in throw Failure() }.sum().backward() }
        #expect(thrown == "broken (backward): the moon is full")
        let engine = message { try run { [try $0 + Tensor([1.0, 2, 3])] }.sum().backward() }
        #expect(engine.hasPrefix("broken (backward): aten::add.Tensor(float64[2], float64[3]): "), "\(engine)")
        let many = message { try run { [$0, $0] }.sum().backward() }
        #expect(many == "broken (backward): returned 2 gradients for 1 inputs")
        let shape = message { try run { _ in [try Tensor([1.0])] }.sum().backward() }
        #expect(shape == "broken (backward): gradient 0 is [1], but the input was [2]")
        #expect(x.grad == nil && tracker.living == 0)
        #expect(throws: Failure.self) {
            try withCustomGradient("forward", inputs: [x]) {
                () -> (output: Tensor, backward: (Tensor) throws -> [Tensor?]) in
                throw Failure()
            }
        }
        #expect(isGradEnabled)
        // All is well afterwards.
        try run { [$0] }.sum().backward()
        #expect(try x.grad?.values() == [1.0, 1])
    }

    @Test func nothingLivesOn() throws {
        let tracker = Tracker()
        let x = try Tensor([0.5]).requiringGrad()
        func run() throws -> Tensor {
            let token = Token(tracker)
            return try withCustomGradient("tanh", inputs: [x]) {
                let output = try callTensor("aten::tanh", x)
                // The backward keeps its own result, which must not keep the function alive in turn.
                return (
                    output: output,
                    backward: { gradient in
                        withExtendedLifetime(token) {}
                        return [try gradient * (output * output - 1) * -1]
                    }
                )
            }
        }
        do {
            let unused = try run()
            #expect(unused.requiresGrad && tracker.living == 1)
        }
        #expect(tracker.living == 0, "dropped without a backward pass")
        try run().backward()
        #expect(tracker.living == 0 && tracker.made == 2)
        let expected = try gradients(of: [callTensor("aten::tanh", x)], with: [x])[0]
        #expect(try #require(x.grad).difference(from: #require(expected)) < 1e-15)
    }

    @Test func tasksDifferentiateSideBySide() async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for task in 0..<16 {
                group.addTask {
                    let x = try Tensor([Double(task)]).requiringGrad()
                    for _ in 0..<50 {
                        try x.setGrad(nil)
                        let y = try withCustomGradient("task\(task)", inputs: [x]) {
                            (output: try x * x, backward: { [try $0 * x * 2] })
                        }
                        try y.backward()
                        #expect(try x.grad?.item() == 2 * Double(task))
                    }
                }
            }
            try await group.waitForAll()
        }
    }
}

/// `x w` with its backward in Swift.
private func product(_ x: Tensor, _ weight: Tensor) throws -> Tensor {
    try withCustomGradient("product", inputs: [x, weight]) {
        (
            output: try x.matmul(weight),
            backward: { [try $0.matmul(weight.transposed()), try x.transposed().matmul($0)] }
        )
    }
}

private struct Failure: Error, CustomStringConvertible {
    let description = "the moon is full"
}

/// Counts tokens that were made and that live.
private final class Tracker: Sendable {
    private let counts = Mutex((made: 0, living: 0))
    var made: Int { counts.withLock { $0.made } }
    var living: Int { counts.withLock { $0.living } }

    func begin() { counts.withLock { $0 = ($0.made + 1, $0.living + 1) } }
    func end() { counts.withLock { $0.living -= 1 } }
}

/// Lives as long as what captured it.
private final class Token: Sendable {
    private let tracker: Tracker

    init(_ tracker: Tracker) {
        self.tracker = tracker
        tracker.begin()
    }

    deinit { tracker.end() }
}
