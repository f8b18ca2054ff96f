import Synchronization
import TestSupport
import Testing
import Torch

/// Tensors made from numbers and memory, and what they tell about themselves.
struct TensorTests {
    @Test func numbersOfEveryKindComeBack() throws {
        func roundTrip<Scalar: TensorScalar & Equatable>(_ values: [Scalar], _ dtype: DType) throws {
            let tensor = try Tensor(values, shape: [1, values.count])
            #expect(tensor.dtype == dtype && tensor.shape == [1, values.count])
            #expect(try tensor.values() == values)
            #expect(try Tensor(values[0]).item() == values[0])
            #expect(try Tensor(values[0]).rank == 0)
        }
        try roundTrip([UInt8.min, 7, .max], .uint8)
        try roundTrip([Int8.min, -1, .max], .int8)
        try roundTrip([Int16.min, -1, .max], .int16)
        try roundTrip([Int32.min, -1, .max], .int32)
        try roundTrip([Int64.min, -1, .max], .int64)
        try roundTrip([Int.min, -1, .max], .int64)
        try roundTrip([-Float.greatestFiniteMagnitude, .leastNonzeroMagnitude, -0.0, .infinity], .float32)
        try roundTrip([-Double.greatestFiniteMagnitude, .leastNonzeroMagnitude, .pi, .infinity], .float64)
        try roundTrip([true, false, true], .bool)
    }

    @Test func factsAboutATensor() throws {
        let tensor = try Tensor(Array(0..<24), shape: [2, 3, 4])
        #expect(tensor.rank == 3 && tensor.count == 24 && tensor.strides == [12, 4, 1] && tensor.isContiguous)
        #expect(tensor.size(0) == 2 && tensor.size(-1) == 4 && tensor.size(-3) == 2)
        #expect(tensor.size(3) == 1 && tensor.size(-4) == 1)
        #expect(tensor.description == "int64[2, 3, 4]")
        let turned = try tensor.transposed(0, 2)
        #expect(turned.shape == [4, 3, 2] && turned.strides == [1, 4, 12] && !turned.isContiguous)
        #expect(turned.sharesStorage(with: tensor))
        #expect(try !turned.contiguous().sharesStorage(with: tensor))
        #expect(try tensor.contiguous() === tensor)
        #expect(try !tensor.cloned().sharesStorage(with: tensor))
        let scalar = try Tensor(2.5)
        #expect(scalar.shape == [] && scalar.count == 1 && scalar.description == "float64[]")
        let empty = try Tensor([Float](), shape: [3, 0, 2])
        #expect(empty.count == 0 && empty.shape == [3, 0, 2])
        #expect(try empty.values(as: Float.self) == [])
    }

    @Test func shapesThatDoNotFitAreRefused() throws {
        for shape in [[5], [2, 2, 2], [-2, -2], [-4], [], [Int.max, 4], [1 << 62, 4, 1]] {
            let text = message { _ = try Tensor([1, 2, 3, 4], shape: shape) }
            #expect(text == "4 values do not fill a tensor of shape \(shape)")
        }
        let pair = try Tensor([1.0, 2.0])
        #expect(message { _ = try pair.item(as: Double.self) } == "float64[2] has 2 elements; item() needs exactly one")
        let none = try Tensor.zeros([0])
        #expect(message { _ = try none.item(as: Double.self) } == "float32[0] has 0 elements; item() needs exactly one")
    }

    @Test func makersMatchTorch() async throws {
        let made: [(String, Tensor)] = [
            ("torch.zeros(2, 3)", try .zeros([2, 3])),
            ("torch.ones(3, 1, dtype=torch.int16)", try .ones([3, 1], dtype: .int16)),
            ("torch.full((2, 0, 4), 3.0)", try .full([2, 0, 4], 3)),
            ("torch.full((2, 2), -1.75, dtype=torch.bfloat16)", try .full([2, 2], -1.75, dtype: .bfloat16)),
            ("torch.full((), 7, dtype=torch.uint8)", try .full([], 7, dtype: .uint8)),
            ("torch.arange(0, 7)", try .arange(7)),
            ("torch.arange(5, -6, -3)", try .arange(5, -6, step: -3)),
            ("torch.arange(2, 6, dtype=torch.float32)", try .arange(2, 6, dtype: .float32)),
            ("torch.eye(4, dtype=torch.float64)", try .eye(4, dtype: .float64)),
        ]
        for (expression, tensor) in made {
            let expected = try await Reference.evaluate(expression, [:])
            #expect(try tensor.isIdentical(to: expected[0]), "\(expression)")
        }
        let zeros = try Tensor.ones([2, 5], dtype: .float16).zerosLike()
        #expect(zeros.dtype == .float16 && zeros.shape == [2, 5])
        #expect(try zeros.values(as: Float.self).allSatisfy { $0 == 0 })
        #expect(try Tensor.empty([4, 2], dtype: .int8).description == "int8[4, 2]")
        #expect(throws: TorchError.self) { try Tensor.arange(0, 4, step: -1) }
        #expect(throws: TorchError.self) { try Tensor.zeros([-1]) }
        #expect(throws: TorchError.self) { try Tensor.zeros([Int.max, Int.max]) }
    }

    // MARK: - Memory of others

    @Test func viewsMemoryThatItsOwnerKeeps() throws {
        let counter = Counter()
        var memory: Memory32? = Memory32([1, 2, 3, 4, 5, 6], counter)
        var whole: Tensor? = try memory.map {
            try Tensor(viewing: $0.bytes, shape: [2, 3], dtype: .float32, owner: $0)
        }
        let address = memory?.bytes.baseAddress
        var row: Tensor? = try whole?.selected(0, 1)
        memory = nil
        #expect(counter.value == 0)
        #expect(try whole?.values(as: Float.self) == [1, 2, 3, 4, 5, 6])
        #expect(try whole?.withUnsafeMutableBytes { $0.baseAddress } == address)
        try row?.fill(9)
        #expect(try whole?.values(as: Float.self) == [1, 2, 3, 9, 9, 9])
        whole = nil
        #expect(counter.value == 0, "a view still needs the memory")
        #expect(try row?.values(as: Float.self) == [9, 9, 9])
        row = nil
        #expect(counter.value == 1, "the last view gives the memory back")
    }

    @Test func ownerIsFreedWhereTheViewIsRefused() throws {
        let counter = Counter()
        do {
            let memory = Memory32([1, 2, 3], counter)
            for (shape, dtype) in [
                ([4], DType.float32), ([2], .float64), ([-1], .float32), ([1 << 62, 8], .float32), ([13], .uint8),
                ([Int.max, Int.max, 0], .uint8),
            ] {
                let text = message { _ = try Tensor(viewing: memory.bytes, shape: shape, dtype: dtype, owner: memory) }
                #expect(text == "12 bytes do not hold a \(dtype) tensor of shape \(shape)")
            }
            let odd = UnsafeMutableRawBufferPointer(rebasing: memory.bytes[1..<9])
            let text = message { _ = try Tensor(viewing: odd, shape: [2], dtype: .float32, owner: memory) }
            #expect(text == "the memory of a float32 tensor of shape [2] is misaligned")
            // No element, no owner.
            let empty = try Tensor(viewing: memory.bytes, shape: [0, 5], dtype: .float32, owner: memory)
            #expect(empty.shape == [0, 5])
        }
        #expect(counter.value == 1)
    }

    @Test func memoryIsSeenOnlyWhereItIsPlain() throws {
        let tensor = try Tensor(Array(0..<6), shape: [2, 3])
        let text = message { _ = try tensor.transposed().withUnsafeMutableBytes { $0.count } }
        #expect(text == "the memory of int64[3, 2] has gaps: make it contiguous first")
        #expect(try tensor.withUnsafeMutableBytes { $0.count } == 48)
        #expect(try Tensor.zeros([0]).withUnsafeMutableBytes { $0.count } == 0)
        #expect(throws: Stop.self) { try tensor.withUnsafeMutableBytes { _ in throw Stop() } }
        try tensor.narrowed(0, start: 1, length: 1).withUnsafeMutableBytes { $0.storeBytes(of: -5, as: Int.self) }
        #expect(try tensor.values() == [0, 1, 2, -5, 4, 5])
    }

    @Test func referencesEndOnAnyThread() async throws {
        let counter = Counter()
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<64 {
                group.addTask {
                    let memory = Memory32([1, 2], counter)
                    guard
                        let tensor = try? Tensor(viewing: memory.bytes, shape: [2], dtype: .float32, owner: memory),
                        let view = try? tensor.reshaped([2, 1])
                    else { return }
                    await Task.detached { _ = view.shape }.value
                    await Task.yield()
                    _ = tensor.shape
                }
            }
        }
        for _ in 0..<6000 where counter.value < 64 { try await Task.sleep(for: .milliseconds(10)) }
        #expect(counter.value == 64)
    }
}

private struct Stop: Error {}

/// Counts what was freed.
private final class Counter: Sendable {
    private let lock = Mutex(0)
    var value: Int { lock.withLock { $0 } }
    func add() { lock.withLock { $0 += 1 } }
}

/// Memory outside LibTorch.
private final class Memory32 {
    let bytes: UnsafeMutableRawBufferPointer
    private let counter: Counter

    init(_ values: [Float], _ counter: Counter) {
        self.counter = counter
        bytes = .allocate(byteCount: values.count * 4, alignment: 64)
        values.withUnsafeBytes { bytes.copyMemory(from: $0) }
    }

    deinit {
        bytes.deallocate()
        counter.add()
    }
}
