import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch

/// A method that acts beside the weights, compared with its formula in fp64 (`slots.evaluate` of the oracle).
struct SlotParity {
    var model = SmallModel()
    /// Which formula of the oracle.
    let method: String
    /// What that formula needs to know.
    var settings: KeyedList<JSON> = [:]
    /// Constants of the formula, such as masks, by their names there.
    var constants: KeyedList<Tensor> = [:]

    /// The largest relative differences of logits and of any gradient; each gradient must be there and not zero.
    func gaps(
        _ adapter: Adapter, on backbone: Llama, ids: Tensor
    ) async throws -> (forward: Double, gradient: Double) {
        let folder = try TemporaryFolder.lasting("parity")
        var weights = KeyedList<Tensor>()
        for parameter in backbone.parameters {
            weights[parameter.path] = try parameter.frozen.to(dtype: .float64).contiguous()
        }
        try SafetensorsWriter.write(weights, to: folder("model"))
        var tensors = constants
        for trainable in adapter.trainables { tensors[trainable.name] = try trainable.tensor.detached() }
        try SafetensorsWriter.write(tensors, to: folder("adapter"))
        let lists = try rows(of: ids)
        _ = try await Oracle.shared.call(
            "slots.evaluate",
            [
                "model": JSON(folder("model")), "adapter": JSON(folder("adapter")), "output": JSON(folder("output")),
                "sizes": sizes, "method": JSON(method), "settings": .object(settings),
                "ids": JSON(tokens: lists),
            ])
        let expected = try SafetensorsFile(path: folder("output"))
        let forward = try withoutGrad { try relativeGap(backbone.logits(ids), expected.tensor("logits").tensor()) }
        try adapter.clearGradients()
        try nextTokenLoss(backbone, ids).backward()
        var gradient = 0.0
        for trainable in adapter.trainables {
            let found = try #require(trainable.tensor.grad, "\(trainable.name)")
            let right = try expected.tensor("grad." + trainable.name).tensor()
            #expect(try !isZero(right), "\(trainable.name)")
            gradient = max(gradient, try relativeGap(found, right))
        }
        return (forward, gradient)
    }

    /// Expects both to be within the arithmetic's error.
    func check(
        _ adapter: Adapter, on backbone: Llama, ids: Tensor? = nil, forward: Double = 1e-5, gradient: Double = 1e-4
    ) async throws {
        let found = try await gaps(adapter, on: backbone, ids: ids ?? model.tokens())
        #expect(found.forward < forward)
        #expect(found.gradient < gradient)
        // GRAFT_GAPS=1 shows what was found.
        guard ProcessInfo.processInfo.environment["GRAFT_GAPS"] != nil else { return }
        print(
            "\(type(of: adapter.configuration.method)) \(settings.keys): forward \(found.forward), gradient \(found.gradient)"
        )
    }

    private var sizes: JSON {
        [
            "heads": JSON(model.heads), "kv_heads": JSON(model.keyValueHeads), "head_dim": JSON(model.headDim),
            "layers": JSON(model.layers), "epsilon": 1e-6, "theta": 10000.0,
        ]
    }

    private func rows(of ids: Tensor) throws -> [[Int]] {
        let (values, time): ([Int], Int) = (try ids.values(), ids.size(1))
        return stride(from: 0, to: values.count, by: time).map { Array(values[$0..<($0 + time)]) }
    }
}

/// Greedy generation with a cache, without one, and of several prompts at once, which all have to agree.
func expectGenerationAgrees(_ backbone: any Backbone, vocabulary: Int, count: Int = 8) throws {
    var random = SeededGenerator(seed: 91)
    let prompts = [9, 4, 6].map { random.tokens(rows: 1, length: $0, vocabulary: vocabulary)[0] }
    let settings = GenerationSettings(maxTokens: count)
    let together = try backbone.generateBatch(prompts: prompts, settings: settings)
    for (prompt, batched) in zip(prompts, together) {
        var chunked = settings
        chunked.prefillTokens = 3
        for settings in [settings, chunked] {
            let stream = try TokenStream(backbone, prompt: prompt, settings: settings)
            var tokens: [Int] = []
            while let token = try stream.next() { tokens.append(token) }
            #expect(tokens == batched.tokens)
        }
        var tokens = prompt
        for _ in 0..<count {
            let logits = try withoutGrad { try backbone.logits(Tensor(tokens, shape: [1, tokens.count])) }
            tokens.append(try logits.selected(1, tokens.count - 1).argmax(-1).item(as: Int.self))
        }
        #expect(Array(tokens.dropFirst(prompt.count)) == batched.tokens)
    }
}

/// Packed rows have to give what each gives alone.
func expectPackingAgrees(_ backbone: any Backbone, vocabulary: Int) throws {
    var random = SeededGenerator(seed: 92)
    let rows = [5, 9, 3].map { random.tokens(rows: 1, length: $0, vocabulary: vocabulary)[0] }
    var context = Context()
    context.segments = Segments(rows.map(\.count))
    let packed = try withoutGrad {
        try backbone.logits(Tensor(rows.flatMap { $0 }, shape: [1, rows.joined().count]), context)
    }
    var start = 0
    for row in rows {
        let alone = try withoutGrad { try backbone.logits(Tensor(row, shape: [1, row.count])) }
        #expect(try relativeGap(packed.narrowed(1, start: start, length: row.count), alone) < 1e-5)
        start += row.count
    }
}
