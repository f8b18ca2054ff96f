import TestSupport
import Testing
import Torch

/// Views and indexing against PyTorch, on random shapes and random indices.
struct IndexTests {
    @Test func viewsMatchTorch() async throws {
        var generator = SeededGenerator(seed: 1)
        let x = try Tensor.random([3, 1, 5, 2], &generator)
        let cases: [(String, Tensor)] = [
            ("x.reshape(5, -1)", try x.reshaped([5, -1])),
            ("x.transpose(-2, -1)", try x.transposed()),
            ("x.transpose(0, 2)", try x.transposed(0, 2)),
            ("x.permute(3, 0, -2, 1)", try x.permuted([3, 0, -2, 1])),
            ("x.expand(3, 4, -1, 2)", try x.expanded([3, 4, -1, 2])),
            ("x.expand(7, 3, 1, 5, 2)", try x.expanded([7, 3, 1, 5, 2])),
            ("x.unsqueeze(-1)", try x.unsqueezed(-1)),
            ("x.squeeze(1)", try x.squeezed(1)),
            ("x.squeeze(0)", try x.squeezed(0)),
            ("x.narrow(2, 1, 3)", try x.narrowed(2, start: 1, length: 3)),
            ("x.select(2, -1)", try x.selected(2, -1)),
        ]
        for (expression, view) in cases {
            let expected = try await Reference.evaluate(expression, ["x": x])
            #expect(try view.isIdentical(to: expected[0]), "\(expression)")
            #expect(view.sharesStorage(with: x), "\(expression)")
        }
        let turned = try x.transposed(0, 2)
        let flat = try await Reference.evaluate("x.transpose(0, 2).reshape(-1)", ["x": x])
        #expect(try turned.reshaped([-1]).isIdentical(to: flat[0]))
        #expect(try !turned.reshaped([-1]).sharesStorage(with: x))
    }

    @Test func piecesMatchTorch() async throws {
        var generator = SeededGenerator(seed: 2)
        let x = try Tensor.random([4, 7], &generator)
        let y = try Tensor.random([4, 7], &generator)
        for dimension in [0, 1, -1] {
            let sizes = dimension == 0 ? [1, 0, 3] : [2, 4, 1]
            let expected = try await Reference.evaluate("x.split(\(sizes), \(dimension))", ["x": x])
            let pieces = try x.split(sizes, dimension: dimension)
            #expect(pieces.count == 3)
            for (piece, part) in zip(pieces, expected) {
                #expect(try piece.isIdentical(to: part))
                #expect(piece.sharesStorage(with: x))
            }
            #expect(try Tensor.concatenate(pieces, dimension: dimension).isIdentical(to: x))
            let joined = try await Reference.evaluate("torch.stack([x, y, x], \(dimension))", ["x": x, "y": y])
            #expect(try Tensor.stack([x, y, x], dimension: dimension).isIdentical(to: joined[0]))
        }
        let triangle = try await Reference.evaluate("x.triu(-1)", ["x": x])
        #expect(try x.upperTriangle(diagonal: -1).isIdentical(to: triangle[0]))
        let rows = try await Reference.evaluate("x.index_select(1, torch.tensor([6, 0, 0, 3]))", ["x": x])
        #expect(try x.gathered(Tensor([6, 0, 0, 3]), dimension: 1).isIdentical(to: rows[0]))
        #expect(throws: TorchError.self) { try x.gathered(Tensor([7]), dimension: 1) }
        #expect(throws: TorchError.self) { try x.split([1, 2], dimension: 1) }
        #expect(throws: TorchError.self) { try Tensor.concatenate([x, Tensor.zeros([3, 3])]) }
    }

    @Test(arguments: 0..<60) func randomIndicesMatchTorch(_ seed: UInt64) async throws {
        var generator = SeededGenerator(seed: seed)
        let rank = Int.random(in: 1...4, using: &generator)
        let shape = (0..<rank).map { _ in Int.random(in: 2...5, using: &generator) }
        let x = try Tensor.random(shape, &generator)
        let index = try RandomIndex(of: shape, &generator)
        let expression = "x[\(index.text)]"
        var tensors = index.tensors
        tensors["x"] = x
        let expected = try await Reference.evaluate(expression, tensors)
        let own = try x.indexed(by: index.steps)
        #expect(try own.isIdentical(to: expected[0]), "\(expression) of \(shape)")
        #expect(own.sharesStorage(with: x) == index.tensors.isEmpty)

        // Writing a broadcast value goes to the same places.
        tensors["v"] = try Tensor(-7.5)
        let written = try await Reference.assign("\(expression) = v", tensors, "x")
        try x.assign(Tensor(-7.5), at: index.steps)
        #expect(try x.isIdentical(to: written), "\(expression) = v, of \(shape)")
    }

    @Test func masksMatchTorch() async throws {
        var generator = SeededGenerator(seed: 5)
        let x = try Tensor.random([3, 4, 5], &generator)
        let whole = try callTensor("aten::gt.Scalar", x, 0)
        let front = try callTensor("aten::gt.Scalar", x.selected(2, 0), 0.2)
        let row = try Tensor([true, false, true])
        let cases: [(String, [TensorIndex])] = [
            ("m", [.tensor(whole)]), ("f", [.tensor(front)]), ("f, 1:4:2", [.tensor(front), .slice(1, 4, step: 2)]),
            ("f, -1", [.tensor(front), .at(-1)]), ("r, :, 2", [.tensor(row), .all, .at(2)]),
            ("r, ..., None", [.tensor(row), .ellipsis, .newAxis]),
            ("None, f", [.newAxis, .tensor(front)]),
            ("torch.tensor(True)", [.tensor(try Tensor(true))]),
            ("torch.tensor(False), 1", [.tensor(try Tensor(false)), .at(1)]),
        ]
        for (text, index) in cases {
            let expected = try await Reference.evaluate("x[\(text)]", ["x": x, "m": whole, "f": front, "r": row])
            #expect(try x.indexed(by: index).isIdentical(to: expected[0]), "x[\(text)]")
        }
        let target = try x.cloned()
        try target.assign(Tensor(0.0), at: .tensor(whole))
        let expected = try await Reference.evaluate("x.masked_fill(m, 0)", ["x": x, "m": whole])
        #expect(try target.isIdentical(to: expected[0]))
    }

    @Test func wrongIndicesAreRefused() throws {
        let x = try Tensor.zeros([2, 3])
        #expect(
            message { _ = try x.indexed(.at(0), .at(0), .at(0)) }
                == "3 indices for float32[2, 3], which has 2 dimensions")
        let twice = message { _ = try x.indexed(.ellipsis, .ellipsis) }
        #expect(twice == "an index of float32[2, 3] has 2 ellipses, at most one is allowed")
        let cases: [[TensorIndex]] = [
            [.at(2)], [.at(-3)], [.slice(nil, nil, step: -1)], [.slice(0, 2, step: 0)],
            [.tensor(try Tensor([0, 5]))], [.tensor(try Tensor([0.5]))], [.tensor(try Tensor([true, false, true]))],
            [.tensor(try Tensor([0, 1, 0])), .tensor(try Tensor([0, 1]))],
        ]
        for index in cases {
            let text = message { _ = try x.indexed(by: index) }
            #expect(text.hasPrefix("aten::") && text.contains("float32[2, 3]"), "\(text)")
        }
        #expect(throws: TorchError.self) { try x.assign(Tensor.zeros([5]), at: .at(0)) }
        // Slices that reach too far are cut as in Python.
        #expect(try x.indexed(.slice(1, 99), .slice(-99, 2)).shape == [1, 2])
        #expect(try x.indexed(.slice(2, 1)).shape == [0, 3])
        #expect(try x.indexed(.range(1..<3)).shape == [1, 3])
        #expect(try x.indexed().shape == [2, 3])
    }
}

/// A random index in Swift and in Python.
private struct RandomIndex {
    var steps: [TensorIndex] = []
    var tensors: [String: Tensor] = [:]
    var text: String { pieces.joined(separator: ", ") }
    private var pieces: [String] = []

    init(of shape: [Int], _ generator: inout SeededGenerator) throws {
        let explicit = Int.random(in: 1...shape.count, using: &generator)
        let ellipsisAt = Bool.random(using: &generator) ? Int.random(in: 0...explicit, using: &generator) : nil
        // Tensors that index together broadcast to one length.
        let length = Int.random(in: 1...4, using: &generator)
        for position in 0..<explicit {
            if position == ellipsisAt { add(.ellipsis, "...") }
            if Int.random(in: 0..<5, using: &generator) == 0 { add(.newAxis, "None") }
            let behind = ellipsisAt.map { position >= $0 } ?? false
            try addStep(shape[behind ? shape.count - explicit + position : position], length, &generator)
        }
        if ellipsisAt == explicit { add(.ellipsis, "...") }
    }

    private mutating func addStep(_ size: Int, _ length: Int, _ generator: inout SeededGenerator) throws {
        func end() -> Int? {
            Bool.random(using: &generator) ? Int.random(in: -size - 1...size + 1, using: &generator) : nil
        }
        switch Int.random(in: 0..<6, using: &generator) {
        case 0: add(.all, ":")
        case 1:
            let place = Int.random(in: -size..<size, using: &generator)
            add(.at(place), "\(place)")
        case 2:
            let name = "i\(tensors.count)"
            let places = try Tensor((0..<length).map { _ in Int.random(in: -size..<size, using: &generator) })
            tensors[name] = places
            add(.tensor(places), name)
        default:
            let (start, stop) = (end(), end())
            let step = Int.random(in: 1...3, using: &generator)
            let text = "\(start.map { "\($0)" } ?? ""):\(stop.map { "\($0)" } ?? ""):\(step)"
            add(.slice(start, stop, step: step), text)
        }
    }

    private mutating func add(_ step: TensorIndex, _ piece: String) {
        steps.append(step)
        pieces.append(piece)
    }
}
