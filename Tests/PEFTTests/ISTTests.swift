import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of IST must show, but for what needs a trainer.
@Suite struct ISTTests {
    private let model = SmallModel(layers: 6)

    /// A probe whose loss the test decides.
    private func probe(_ loss: @escaping (Int) throws -> Double) -> LossProbe {
        LossProbe { _, round in try loss(round) }
    }

    private func layer(_ trainable: Trainable) throws -> Int {
        try #require(trainable.name.split(separator: ".").dropFirst(4).first.flatMap { Int($0) })
    }

    @Test(arguments: ["lora", "dora"]) func aStepTrainsTheDrawnLayersAlone(kind: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(
            "ist", ["update_layers": 2, "use_dora": JSON(kind == "dora"), "target_modules": "all-linear"], on: backbone)
        try adapter.randomise(seed: 3, by: 0.1)
        try adapter.trainingBegins(totalSteps: 8, probe: probe { _ in 1 })
        var seen: Set<Set<Int>> = []
        for step in 0..<8 {
            let before = try adapter.trainables.map { try $0.tensor.detached().cloned() }
            try adapter.stepBegins(step)
            try nextTokenLoss(backbone, ids).backward()
            try nextTokenLoss(backbone, ids).backward()
            let trained = try Set(adapter.trainables.filter { $0.tensor.grad != nil }.map(layer))
            #expect(trained.count == 2)
            seen.insert(trained)
            for trainable in adapter.trainables {
                #expect(try (trainable.tensor.grad != nil) == trained.contains(layer(trainable)), "\(trainable.name)")
            }
            try adapter.descend(0.1)
            try adapter.stepEnded(step)
            for (trainable, old) in zip(adapter.trainables, before) {
                let same = try trainable.tensor.detached().isIdentical(to: old)
                #expect(try same != trained.contains(layer(trainable)), "\(trainable.name)")
            }
            #expect(adapter.trainables.allSatisfy { $0.tensor.requiresGrad })
        }
        #expect(seen.count > 3)
    }

    @Test func scoresChangeAsByHand() async throws {
        var generator = SeededGenerator(seed: 4)
        for _ in 0..<5 {
            let start = (0..<7).map { _ in Double.random(in: -2...2, using: &generator) }
            let probes = (0..<3).map { _ in
                (
                    damped: Array((0..<7).shuffled(using: &generator).prefix(3)),
                    loss: Double.random(in: 0.1...3, using: &generator)
                )
            }
            var method = IST()
            method.scoreRate = Double.random(in: 1...10, using: &generator)
            let expected = try await Oracle.shared.call(
                "execution.scores",
                [
                    "start": JSON(start.map { JSON($0) }), "rate": JSON(method.scoreRate),
                    "sets": JSON(tokens: probes.map(\.damped)), "losses": JSON(probes.map { JSON($0.loss) }),
                ])
            for (index, score) in method.changed(start, by: probes).enumerated() {
                #expect(abs(score - (try #require(expected[index]?.double))) < 1e-12)
            }
        }
    }

    @Test(arguments: ["lora", "dora"]) func probesDampLayersAndLeaveNothingBehind(kind: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(
            "ist", ["score_interval": 1, "use_dora": JSON(kind == "dora"), "score_damping": 0.5], on: backbone)
        try adapter.randomise(seed: 3)
        let before = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        let logits = try backbone.logits(ids)
        var probed: [Tensor] = []
        try adapter.trainingBegins(
            totalSteps: 4,
            probe: LossProbe { rows, round in
                #expect(rows == 16 && round == 1)
                let damped = try withoutGrad { try backbone.logits(ids) }
                #expect(try relativeGap(damped, logits) > 1e-3)
                #expect(try probed.allSatisfy { try !$0.isIdentical(to: damped) })
                probed.append(damped)
                return Double(probed.count)
            })
        try adapter.stepBegins(0)
        try adapter.stepEnded(0)
        #expect(probed.isEmpty)
        try adapter.stepBegins(1)
        #expect(probed.count == 3)
        #expect(try backbone.logits(ids).isIdentical(to: logits))
        try adapter.stepEnded(1)
        for (trainable, old) in zip(adapter.trainables, before) {
            #expect(try trainable.tensor.detached().isIdentical(to: old))
            #expect(trainable.tensor.requiresGrad && trainable.tensor.grad == nil)
        }
        #expect(try !isZero(#require(adapter.buffers["ist.scores"])))
    }

    /// A damped layer counts by the factor: LoRA's output with the factor is that of B times the factor.
    @Test func dampingMultipliesTheUpdate() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(
            "ist", ["score_interval": 1, "score_layers": 6, "score_damping": 0.25, "score_probes": 2], on: backbone)
        try adapter.randomise(seed: 3)
        var damped: Tensor?
        try adapter.trainingBegins(
            totalSteps: 3,
            probe: LossProbe { _, _ in
                damped = try withoutGrad { try backbone.logits(ids) }
                return 1
            })
        try adapter.stepBegins(1)
        // There is one set of all six layers, and no endless search for a second.
        try withoutGrad {
            for trainable in adapter.trainables where trainable.name.hasSuffix("lora_B.weight") {
                try trainable.tensor.multiply(by: 0.25)
            }
        }
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, #require(damped)) < 1e-6)
    }

    /// Only layers 1 and 2 of 6 help: damping them costs, so their scores fall and they are drawn most often.
    @Test func layersThatHelpAreDrawnMoreOften() throws {
        func draws(_ settings: KeyedList<JSON>) throws -> (counts: [Int], scores: [Double]) {
            let backbone = try model.backbone()
            var all: KeyedList<JSON> = [
                "update_layers": 2, "score_interval": 1, "score_layers": 3, "target_modules": ["q_proj"],
            ]
            for (key, value) in settings { all[key] = value }
            let adapter = try adapter("ist", all, on: backbone)
            try adapter.randomise(seed: 3)
            let ids = try model.tokens()
            // How much of layers 1 and 2 is left is read off the model, not off the sampler.
            let plain = try backbone.linears.filter { $0.role == .query }.map { linear in
                try linear.adapter.map { try $0.output(for: self.input(linear), of: linear, in: Context()) }
            }
            func share(_ layer: Int) throws -> Double {
                let linear = try #require(backbone.linears.first { $0.role == .query && $0.layer == layer })
                let now = try #require(linear.adapter).output(for: input(linear), of: linear, in: Context())
                return try now.isIdentical(to: #require(plain[layer])) ? 1 : 0
            }
            _ = ids
            try adapter.trainingBegins(totalSteps: 150, probe: probe { _ in try 2 - 0.7 * (share(1) + share(2)) })
            var counts = [Int](repeating: 0, count: 6)
            for step in 0..<150 {
                try adapter.stepBegins(step)
                let flags: [Int] = try #require(adapter.buffers["ist.active"]).values()
                for (layer, flag) in flags.enumerated() { counts[layer] += flag }
                try adapter.stepEnded(step)
            }
            return (counts, try #require(adapter.buffers["ist.scores"]).values())
        }
        let learnt = try draws([:])
        let others = [0, 3, 4, 5]
        #expect(others.allSatisfy { learnt.scores[$0] > max(learnt.scores[1], learnt.scores[2]) }, "\(learnt)")
        #expect(others.allSatisfy { learnt.counts[$0] < min(learnt.counts[1], learnt.counts[2]) }, "\(learnt)")
        let even = try draws(["use_importance": false])
        #expect(even.scores.allSatisfy { $0 == 0 })
        #expect(even.counts.allSatisfy { (25...75).contains($0) }, "\(even.counts)")
    }

    private func input(_ linear: Linear) throws -> Tensor {
        var stream = Seed(1).stream(linear.path)
        return try Tensor.normal([2, 3, linear.inFeatures], from: &stream)
    }

    @Test func allLayersWithoutScoresAreLoRA() throws {
        let ids = try model.tokens()
        func trained(_ name: String, _ settings: KeyedList<JSON>) throws -> [Tensor] {
            let backbone = try model.backbone()
            let adapter = try adapter(name, settings, on: backbone)
            try adapter.trainingBegins(totalSteps: 4)
            for step in 0..<4 {
                try adapter.stepBegins(step)
                try nextTokenLoss(backbone, ids).backward()
                try adapter.descend(0.3)
                try adapter.stepEnded(step)
            }
            return adapter.trainables.map(\.tensor)
        }
        let plain = try trained("lora", [:])
        let ist = try trained("ist", ["update_layers": 6, "use_importance": false])
        for (a, b) in zip(plain, ist) { #expect(try a.detached().isIdentical(to: b.detached())) }
    }

    @Test func whatIsSavedIsLoRA() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter("ist", ["r": 4, "lora_alpha": 6], on: backbone)
        try adapter.randomise(seed: 3)
        let logits = try backbone.logits(ids)
        let folder = try TemporaryFolder.lasting("ist")
        try adapter.save(to: folder("adapter"), baseModel: "small")
        adapter.detach()
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        #expect(loaded.configuration.method is LoRA)
        #expect(try backbone.logits(ids).isIdentical(to: logits))
    }

    @Test func drawsFollowTheWeights() {
        var stream = Seed(3).stream("choice")
        var counts = [Int](repeating: 0, count: 4)
        for _ in 0..<4000 {
            let pair = stream.choice(2, weights: [1, 2, 3, 0])
            #expect(pair.count == 2 && pair[0] != pair[1] && !pair.contains(3))
            counts[pair[0]] += 1
        }
        #expect(abs(counts[0] - 667) < 120 && abs(counts[1] - 1333) < 150 && abs(counts[2] - 2000) < 160, "\(counts)")
        #expect(stream.choice(9, weights: [1, 1, 1]).sorted() == [0, 1, 2])
        #expect(stream.choice(2, weights: [0, 0, 0]).count == 2)
    }

    /// Only what is trained now is kept: layers below the lowest need no backward pass, others not their inputs.
    @Test func lessIsKeptThanByLoRA() throws {
        func kept(_ name: String, _ settings: KeyedList<JSON>) throws -> Int {
            let backbone = try model.backbone()
            var all = settings
            all["target_modules"] = "all-linear"
            let adapter = try adapter(name, all, on: backbone)
            try adapter.trainingBegins(totalSteps: 10, probe: probe { _ in 1 })
            let ids = try model.tokens(rows: 4, length: 48)
            var most = 0
            for step in 0..<6 {
                try adapter.stepBegins(step)
                let bytes = try Memory.watching { held in
                    _ = try backbone.hiddenStates(ids, Context()).sum()
                    return try held().peak
                }
                most = max(most, bytes)
                try adapter.stepEnded(step)
            }
            return most
        }
        let (ist, lora) = (try kept("ist", ["update_layers": 1]), try kept("lora", [:]))
        print("IST keeps \(Double(ist) / Double(lora)) of LoRA's activations at most")
        #expect(ist < lora)
    }

    @Test func settingsThatCannotWorkAreRefused() throws {
        func sentence(_ settings: KeyedList<JSON>) -> String {
            refusal { _ = try AdapterConfiguration(method: "ist", settings: settings) }
        }
        #expect(sentence(["update_layers": 0]).hasPrefix("update_layers: "))
        #expect(sentence(["score_probes": 1]).contains("at least 2"))
        #expect(sentence(["score_damping": 1]).contains("0..<1"))
        #expect(sentence(["r": 0]).hasPrefix("r: "))
        let backbone = try model.backbone()
        #expect(refusal { _ = try adapter("ist", ["update_layers": 7], on: backbone) }.contains("at most the 6"))
        let sampled = try adapter("ist", on: backbone)
        #expect(refusal { try sampled.stepBegins(0) }.contains("trainingBegins"))
        #expect(refusal { try sampled.trainingBegins(totalSteps: 100) }.contains("use_importance"))
    }
}
