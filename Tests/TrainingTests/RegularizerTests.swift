import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct RegularizerTests {
    private func matrix(_ rows: Int, _ columns: Int, seed: UInt64) throws -> Tensor {
        var generator = SeededGenerator(seed: seed)
        return try Tensor(generator.normals(rows * columns), shape: [rows, columns])
    }

    // MARK: DEFT

    @Test("The density is a loop, 0 for zeros and 1 for large activations, and has the closed derivative")
    func densityIsALoop() throws {
        let density = DensityRegularizer(weight: 1, epsilon: 0.01)
        let values = try matrix(4, 6, seed: 3).to(dtype: .float64)
        let found: [Double] = try density.smoothCount(values).reshaped([-1]).values()
        for (a, phi) in zip(try values.reshaped([-1]).values(as: Double.self), found) {
            #expect(abs(phi - a * a / (a * a + 0.01)) < 1e-15)
        }
        #expect(try density.smoothCount(Tensor.zeros([3])).maximum().item(as: Double.self) == 0)
        #expect(abs(try density.smoothCount(Tensor.full([3], 1e4)).maximum().item(as: Double.self) - 1) < 1e-6)
        let leaf = try values.cloned().requiringGrad()
        try density.smoothCount(leaf).sum().backward()
        let gradient: [Double] = try #require(leaf.grad).reshaped([-1]).values()
        for (a, slope) in zip(try values.reshaped([-1]).values(as: Double.self), gradient) {
            let expected = 2 * a * 0.01 / ((a * a + 0.01) * (a * a + 0.01))
            #expect(abs(slope - expected) < 1e-12 * max(1, abs(expected)))
        }
    }

    @Test(
        "Loss and gradients are those of fp64: density beside cross-entropy, BA-LoRA's terms on next tokens",
        arguments: [
            ["density_weight": 0.5, "density_eps": 0.01],
            ["consistency_weight": 0.7], ["diversity_weight": 0.4], ["svd_weight": 0.6, "svd_k": 2],
            [
                "consistency_weight": 0.7, "diversity_weight": 0.4, "svd_weight": 0.6, "density_weight": 0.1,
                "density_eps": 0.1,
            ],
        ] as [KeyedList<JSON>])
    func equalsDenseEvaluation(settings: KeyedList<JSON>) async throws {
        let example = try await ObjectiveCase(.text)
        try example.randomise()
        let found = try example.step(LossFunction("sft", settings: settings))
        let gap = try await example.gap(settings, found)
        #expect(gap.loss < 3e-6)
        #expect(gap.gradients < 1e-4)
        let packed = try example.step(LossFunction("sft", settings: settings), BatchLayout(rows: 3, isPacked: true))
        #expect(abs(packed.loss - found.loss) < 2e-6)
        for (a, b) in zip(packed.gradients, found.gradients) { #expect(try largestDifference(a, b) < 1e-5) }
    }

    @Test("With weights of 0 a step is the plain one, bit for bit")
    func zeroWeightsChangeNothing() async throws {
        for kind in RowKind.allCases {
            let example = try await ObjectiveCase(kind)
            try example.randomise()
            let name = LossFunctionName.name(kind)
            let plain = try example.step(LossFunction(name, settings: [:]))
            let zero = try example.step(
                LossFunction(
                    name,
                    settings: ["density_weight": 0, "consistency_weight": 0, "diversity_weight": 0, "svd_weight": 0]))
            #expect(plain.loss == zero.loss)
            for (a, b) in zip(plain.gradients, zero.gradients) { #expect(try a.isIdentical(to: b)) }
        }
    }

    @Test("What is looked at is the activation's output, once a pass, and is gone with it")
    func tapsActivations() async throws {
        let example = try await ObjectiveCase(.text)
        let density = DensityRegularizer(weight: 1, epsilon: 1e-7)
        weak var held: ForwardPass?
        weak var output: Tensor?
        do {
            let pass = try ForwardPass(example.data.examples, model: example.model)
            held = pass
            density.prepare(pass)
            let value = try density.results(of: pass).measures[0]
            let found = try pass.output(of: "model.layers.0.mlp.gate_proj")
            let gate = try #require(found)
            output = gate
            // SiLU is 0 at 0 only: the input's density would be the same for inputs of -30, the output's is not.
            let deep = try Tensor.full([1, 4], -30)
            #expect(try density.smoothCount(silu(deep)).maximum().item(as: Double.self) < 1e-6)
            #expect(try density.smoothCount(deep).maximum().item(as: Double.self) > 0.99)
            #expect(value > 0 && value <= 1)
        }
        #expect(held == nil && output == nil)
    }

    @Test("The same code serves every place that a method changes", arguments: ["lora", "dora", "lorta"])
    func densityWithMethods(method: String) async throws {
        let folder = try await ChatModels.shared.folder()
        let model = try LanguageModel.load(folder, dtype: .float32, device: .cpu)
        let rows = Example(ids: [3, 4, 5, 6, 7], supervised: [false, true, true, true, true], line: 1)
        let adapter = try model.attach(method)
        let loss = try LossFunction("sft", settings: ["density_weight": 1, "density_eps": 0.01])
        let (value, _, measures) = try loss.loss(of: ForwardPass([rows], model: model))
        try value.backward()
        #expect(measures[0] > 0)
        #expect(adapter.trainables.contains { $0.tensor.grad != nil })
    }

    @Test("With ReLU the density and its gradient are those of fp64, and what is counted is what is not zero")
    func densityOfReLUEqualsDenseEvaluation() async throws {
        for (seed, epsilon) in [(1, 1), (2, 0.1), (3, 0.01), (4, 0.001)] as [(UInt64, Double)] {
            let example = try await ObjectiveCase(
                .text, rows: 5, seed: seed, settings: ["target_modules": "all-linear"], hasReLU: true)
            try example.randomise(seed: seed)
            // So heavy that the cross-entropy hides no error of the term.
            let settings: KeyedList<JSON> = ["density_weight": 50, "density_eps": JSON(epsilon)]
            let found = try example.step(LossFunction("sft", settings: settings))
            let gap = try await example.gap(settings, found)
            #expect(gap.loss < 50 * 1e-6, "\(epsilon)")
            #expect(gap.gradients < 1e-4, "\(epsilon)")
            let density = try #require(gap.answer["density"]?.double)
            #expect(abs(found.sums.measures[0] - density) < 1e-6, "\(epsilon)")

            let counts = try LossFunction("sft", settings: ["density_weight": 1])
            let evaluation = try Evaluator(example.model, layout: BatchLayout(rows: 3), lossFunction: counts)
                .evaluate(example.data)
            let share = try #require(gap.answer["nonzero"]?.double)
            #expect(share > 0.2 && share < 0.8)
            #expect(try abs(#require(evaluation.measures["density"]) - 100 * share) < 1e-5, "\(epsilon)")
        }
    }

    // MARK: BA-LoRA

    @Test("With PiSSA the first step is consistent with the pretrained model")
    func beginsConsistent() async throws {
        let folder = try await ChatModels.shared.folder()
        let model = try LanguageModel.load(folder, dtype: .float32, device: .cpu)
        let rows = [Example(ids: [3, 4, 5, 6, 7], supervised: [false, true, true, true, true], line: 1)]
        let adapter = try model.attach("pissa")
        let loss = try LossFunction("sft", settings: ["consistency_weight": 1])
        let place = try #require(loss.measures.firstIndex(of: "consistency"))
        func consistency() throws -> Double {
            try withoutGrad { try loss.loss(of: ForwardPass(rows, model: model)).measures[place] }
        }
        #expect(abs(try consistency()) < 1e-6)
        // A residual base whose adapter begins at zero is another model.
        for trainable in adapter.trainables where trainable.name.contains("lora_B") {
            try withoutGrad { try trainable.tensor.fill(0) }
        }
        #expect(try consistency() > 1e-4)
    }

    @Test("Consistency of classes does not see the rows' lengths; that of tokens is KL from the pretrained model")
    func consistency() throws {
        let (a, b) = (try matrix(5, 4, seed: 1), try matrix(5, 4, seed: 2))
        let scales = try Tensor([0.1, 2, 30, 0.5, 7] as [Float]).unsqueezed(1)
        let distance: Double = try BiasRegularizer.distance(a, b).item()
        #expect(abs(try BiasRegularizer.distance(a, b * scales).item(as: Double.self) - distance) < 1e-5)
        #expect(try BiasRegularizer.distance(a, a * scales).item(as: Double.self) < 1e-10)
        let forward: Double = try BiasRegularizer.divergence(from: a, to: b).item()
        let backward: Double = try BiasRegularizer.divergence(from: b, to: a).item()
        #expect(forward > 0 && backward > 0 && abs(forward - backward) > 1e-3)
        #expect(abs(try BiasRegularizer.divergence(from: a, to: a).item(as: Double.self)) < 1e-6)
        // sum p (log p - log q), element by element.
        let (p, q) = (try softmax(a).reshaped([-1]), try softmax(b).reshaped([-1]))
        let pairs = zip(try p.values(as: Float.self), try q.values(as: Float.self))
        #expect(abs(pairs.reduce(0) { $0 + Double($1.0 * (log($1.0) - log($1.1))) } - forward) < 1e-5)
    }

    @Test("Diversity of classes is a double loop, 0 for decorrelated columns, larger for equal ones")
    func diversityOfClasses() throws {
        let z = try matrix(7, 3, seed: 4).to(dtype: .float64)
        let rows = try (0..<7).map { try z.selected(0, $0).values(as: Double.self) }
        var sum = 0.0
        for i in 0..<3 {
            for j in 0..<3 where i != j {
                let (a, b) = (rows.map { $0[i] }, rows.map { $0[j] })
                let (meanA, meanB) = (a.reduce(0, +) / 7, b.reduce(0, +) / 7)
                let covariance = zip(a, b).reduce(0) { $0 + ($1.0 - meanA) * ($1.1 - meanB) } / 6
                sum += covariance * covariance
            }
        }
        let found: Double = try BiasRegularizer.covariance(z.to(dtype: .float32)).item()
        #expect(abs(found - sum / 3) < 1e-5)
        let crossed = try Tensor([1, 1, 1, -1, -1, 1, -1, -1] as [Float], shape: [4, 2])
        #expect(abs(try BiasRegularizer.covariance(crossed).item(as: Double.self)) < 1e-12)
        let equal = try Tensor([1, 1, 1, 1, -1, -1, -1, -1] as [Float], shape: [4, 2])
        #expect(try BiasRegularizer.covariance(equal).item(as: Double.self) > 1)
        #expect(
            message { _ = try BiasRegularizer.covariance(crossed.narrowed(0, start: 0, length: 1)) }
                .contains("at least 2 rows"))
    }

    @Test("Diversity of tokens is -log V for uniform logits and 0 for one-hot ones")
    func diversityOfTokens() throws {
        let uniform: Double = try BiasRegularizer.negativeEntropy(Tensor.full([2, 50], 0.3)).item()
        #expect(abs(uniform / 2 + log(50)) < 1e-5)
        let certain = try Tensor.eye(4) * 1e4
        #expect(abs(try BiasRegularizer.negativeEntropy(certain).item(as: Double.self)) < 1e-6)
    }

    @Test("The leading share lies in [-1, 0], is -1 up to rank k, and has the gradient of finite differences")
    func leadingShare() throws {
        let terms = BiasRegularizer(consistency: 0, diversity: 0, svd: 1, rank: 2, form: .tokens)
        let low = try matrix(6, 2, seed: 5).matmul(matrix(2, 9, seed: 6))
        #expect(abs(try terms.leadingShare(low).item(as: Double.self) + 1) < 1e-5)
        for (rows, columns) in [(5, 8), (8, 5), (6, 6)] {
            let z = try matrix(rows, columns, seed: UInt64(rows)).to(dtype: .float64)
            let leaf = try z.cloned().requiringGrad()
            let value = try terms.leadingShare(leaf)
            let number: Double = try value.item()
            let sigma: [Double] = try callTensor("aten::linalg_svdvals", z).values()
            #expect(abs(number + (sigma[0] + sigma[1]) / sigma.reduce(0, +)) < 1e-6)
            #expect(number > -1 && number < 0)
            try value.backward()
            let gradient: [Double] = try #require(leaf.grad).reshaped([-1]).values()
            var values: [Double] = try z.reshaped([-1]).values()
            for index in stride(from: 0, to: values.count, by: 7) {
                func share(_ shift: Double) throws -> Double {
                    values[index] += shift
                    defer { values[index] -= shift }
                    let sigma: [Double] = try callTensor(
                        "aten::linalg_svdvals", Tensor(values, shape: [rows, columns])
                    ).values()
                    return -(sigma[0] + sigma[1]) / sigma.reduce(0, +)
                }
                let slope = try (share(1e-5) - share(-1e-5)) / 2e-5
                #expect(abs(slope - gradient[index]) < 1e-6)
            }
        }
    }

    @Test(
        "Each term alone and its gradient are those of fp64, and the pretrained weights get none",
        arguments: [RowKind.text, .labelled], ["consistency", "diversity", "svd"])
    func eachTermEqualsDenseEvaluation(kind: RowKind, term: String) async throws {
        for seed: UInt64 in 1...2 {
            let example = try await ObjectiveCase(kind, rows: 6, seed: seed)
            try example.randomise(seed: seed)
            let name = LossFunctionName.name(kind)
            // So heavy that the objective's own loss hides no error of the term.
            let settings: KeyedList<JSON> = [term + "_weight": 30, "svd_k": 1]
            let loss = try LossFunction(name, settings: settings)
            let found = try example.step(loss)
            let gap = try await example.gap(settings, found)
            #expect(gap.loss < 30 * 2e-6, "\(seed)")
            #expect(gap.gradients < 1e-4, "\(seed)")
            for parameter in example.model.backbone.parameters { #expect(parameter.frozen.grad == nil) }

            let plain = try example.step(LossFunction(name, settings: [:]))
            let place = try #require(loss.measures.firstIndex { $0.hasPrefix(term) })
            let value = found.sums.measures[place]
            #expect(abs(found.loss - plain.loss - 30 * value) < 30 * 2e-6, "\(seed)")
            #expect(abs(value) > 1e-4, "\(seed)")
        }
    }

    @Test("With ReLU the density's weight leaves fewer activations that are not zero; frozen weights stay")
    func densityFalls() async throws {
        func train(_ weight: Double, steps: Int = 25) async throws -> (density: Double, loss: Double) {
            let example = try await ObjectiveCase(
                .text, rows: 4, settings: ["target_modules": "all-linear", "r": 8], hasReLU: true)
            let before = try example.model.backbone.parameters.map { try $0.frozen.cloned() }
            let loss = try LossFunction("sft", settings: ["density_weight": JSON(weight), "density_eps": 0.02])
            let optimiser = try AdamW(example.adapter.trainables, settings: AdamW.Settings())
            for _ in 0..<steps {
                try loss.loss(of: ForwardPass(example.data.examples, model: example.model)).loss.backward()
                try optimiser.step(learningRate: 0.02)
                for trainable in example.adapter.trainables { try trainable.tensor.setGrad(nil) }
            }
            for (parameter, values) in zip(example.model.backbone.parameters, before) {
                #expect(try parameter.frozen.isIdentical(to: values))
            }
            let measure = try LossFunction("sft", settings: ["density_weight": 1])
            let evaluator = Evaluator(example.model, layout: BatchLayout(rows: 8), lossFunction: measure)
            let evaluation = try evaluator.evaluate(example.data)
            return (try #require(evaluation.measures["density"]), evaluation.loss)
        }
        let first = try await train(0, steps: 0)
        #expect(first.density > 35 && first.density < 65, "\(first): about half of what ReLU makes of noise is zero")
        let plain = try await train(0)
        let sparse = try await train(1)
        #expect(sparse.density < 0.8 * plain.density, "\(plain) \(sparse)")
        #expect(sparse.loss < plain.loss + 0.7 && sparse.loss < first.loss - 1, "\(first) \(plain) \(sparse)")
    }

    @Test("On noisy labels the terms move as they are meant to, and the reference gets no gradient")
    func termsMove() async throws {
        func train(_ settings: KeyedList<JSON>) async throws -> (consistency: Double, svd: Double, accuracy: Double) {
            let example = try await ObjectiveCase(.labelled, rows: 12)
            let loss = try LossFunction("classification", settings: settings)
            let optimiser = try AdamW(example.adapter.trainables, settings: AdamW.Settings())
            for _ in 0..<40 {
                try loss.loss(of: ForwardPass(example.data.examples, model: example.model)).loss.backward()
                try optimiser.step(learningRate: 0.005)
                for trainable in example.adapter.trainables { try trainable.tensor.setGrad(nil) }
            }
            for parameter in example.model.backbone.parameters { #expect(parameter.frozen.grad == nil) }
            let all = try LossFunction(
                "classification", settings: ["consistency_weight": 1, "svd_weight": 1, "svd_k": 1])
            return try withoutGrad {
                let pass = try ForwardPass(example.data.examples, model: example.model)
                let measures = try all.loss(of: pass).measures
                return (measures[1], measures[3], measures[0])
            }
        }
        let plain = try await train([:])
        let consistent = try await train(["consistency_weight": 3])
        let concentrated = try await train(["svd_weight": 3, "svd_k": 1])
        #expect(consistent.consistency < plain.consistency)
        #expect(concentrated.svd < plain.svd)
    }
}
