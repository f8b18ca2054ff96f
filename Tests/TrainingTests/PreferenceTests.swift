import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct PreferenceTests {
    @Test("The loss of the first step is log 2 and margins are 0", arguments: [0.05, 0.1, 1.0, 20])
    func beginsAtLogTwo(beta: Double) async throws {
        let example = try await ObjectiveCase(.preference)
        let found = try example.step(LossFunction("dpo", settings: ["beta": JSON(beta)]))
        #expect(abs(found.loss - log(2)) < 1e-6)
        for (name, value) in zip(LossFunction(PreferenceObjective()).measures, found.sums.measures)
        where name.hasPrefix("rewards/") {
            #expect(value == 0, "\(name)")
        }
    }

    @Test("On two tokens the gradient is the closed form")
    func gradientIsTheClosedForm() throws {
        var generator = SeededGenerator(seed: 8)
        let beta = 0.7
        let objective = try PreferenceObjective().with(["beta": JSON(beta)])
        for _ in 0..<20 {
            // log pi of token 0 is log sigmoid(z0 - z1).
            let values = generator.normals(3)
            let difference = Double(values[0]) - Double(values[1])
            let logits = try Tensor([Double(values[0]), Double(values[1])]).requiringGrad()
            let logarithms = try logSoftmax(logits)
            let h = try logarithms.selected(0, 0) - logarithms.selected(0, 1) - Double(values[2])
            try objective.losses(h.unsqueezed(0)).sum().backward()
            let found: [Double] = try #require(logits.grad).values()
            // grad log pi(0) - grad log pi(1) = (1, -1)
            let factor = -beta / (1 + exp(beta * (difference - Double(values[2]))))
            #expect(abs(found[0] - factor) < 1e-12 && abs(found[1] + factor) < 1e-12)
        }
    }

    @Test(
        "Loss and gradients are those of fp64",
        arguments: [
            ["beta": 0.5], ["beta": 0.3, "label_smoothing": 0.1],
            ["loss_type": "robust", "label_smoothing": 0.2, "beta": 0.5], ["loss_type": "hinge", "beta": 0.5],
            ["loss_type": "ipo", "beta": 0.4], ["beta": 0.5, "rpo_alpha": 0.7],
            ["beta": 0.2, "density_weight": 0.5, "density_eps": 0.01],
        ] as [KeyedList<JSON>])
    func equalsDenseEvaluation(settings: KeyedList<JSON>) async throws {
        let example = try await ObjectiveCase(.preference)
        try example.randomise()
        let found = try example.step(LossFunction("dpo", settings: settings))
        let gap = try await example.gap(settings, found)
        #expect(gap.loss < 2e-6)
        #expect(gap.gradients < 5e-5)
        let rewards = (gap.answer["rewards"]?.array ?? []).map { ($0[0]?.double ?? .nan, $0[1]?.double ?? .nan) }
        let measures = KeyedList(LossFunction(PreferenceObjective()).measures, found.sums.measures)
        #expect(abs(try #require(measures["rewards/chosen"]) - rewards.map(\.0).reduce(0, +) / 8) < 1e-5)
        #expect(abs(try #require(measures["rewards/rejected"]) - rewards.map(\.1).reduce(0, +) / 8) < 1e-5)
        #expect(
            try #require(measures["rewards/accuracies"]) == Double(rewards.count { $0.0 > $0.1 }) / 8)
    }

    @Test("Packed == unpacked, 1x8 == 8x1, one process == three", arguments: [0.0, 0.5])
    func passesDoNotMatter(density: Double) async throws {
        let example = try await ObjectiveCase(.preference)
        try example.randomise()
        let loss = try LossFunction(
            "dpo",
            settings: ["beta": 0.5, "rpo_alpha": 0.3, "density_weight": JSON(density), "density_eps": 0.01])
        let whole = try example.step(loss)
        for (layout, processes) in [
            (BatchLayout(rows: 1), 1), (BatchLayout(rows: 3), 1), (BatchLayout(rows: 8, isPacked: true), 1),
            (BatchLayout(rows: 8, tokens: 60, isPacked: true), 1), (BatchLayout(rows: 4), 3),
        ] {
            let other = try example.step(loss, layout, processes: processes)
            #expect(abs(other.loss - whole.loss) < 1e-6, "\(layout)")
            for (a, b) in zip(other.gradients, whole.gradients) { #expect(try largestDifference(a, b) < 1e-5) }
            for (a, b) in zip(other.sums.measures, whole.sums.measures) { #expect(abs(a - b) < 1e-4) }
        }
    }

    @Test("A sequence's log-probability is a loop over its answer's tokens, and nothing else counts")
    func logProbabilityIsALoop() async throws {
        let example = try await ObjectiveCase(.preference)
        try example.randomise()
        let rows = [example.data[0], example.data[3]]
        let found: [Double] = try withoutGrad {
            try ForwardPass(rows, model: example.model).logProbabilities().values()
        }
        for (sequence, value) in zip(rows.flatMap(\.sequences), found) {
            let ids = try Tensor(sequence.ids, shape: [1, sequence.ids.count])
            let scores = try withoutGrad { try logSoftmax(example.model.backbone.logits(ids).selected(0, 0)) }
            var sum = 0.0
            for place in 1..<sequence.ids.count where sequence.supervised[place] {
                sum += try scores.selected(0, place - 1).selected(0, sequence.ids[place]).item(as: Double.self)
            }
            #expect(abs(sum - value) < 1e-4)
            #expect(sequence.supervised.contains(true) && !sequence.supervised[0])
        }
        // What fills the shorter sequences up does not matter: alone they have nothing that fills them up.
        let alone: [Double] = try withoutGrad {
            try rows.flatMap { try ForwardPass([$0], model: example.model).logProbabilities().values(as: Double.self) }
        }
        for (a, b) in zip(alone, found) { #expect(abs(a - b) < 1e-4) }
    }

    @Test("The reference is the pretrained model before and after training, and its weights get no gradient")
    func referenceIsUnaffected() async throws {
        let example = try await ObjectiveCase(.preference, settings: ["modules_to_save": ["norm"]])
        let rows = example.data.examples
        func reference() throws -> [Double] {
            try ForwardPass(rows, model: example.model).reference().logProbabilities().values()
        }
        let before = try reference()
        example.adapter.detach()
        let plain: [Double] = try withoutGrad {
            try ForwardPass(rows, model: example.model).logProbabilities().values()
        }
        try example.adapter.attach()
        #expect(before == plain)
        try example.randomise()
        _ = try example.step(LossFunction("dpo", settings: [:]))
        #expect(try reference() == before)
        let tuned: [Double] = try withoutGrad {
            try ForwardPass(rows, model: example.model).logProbabilities().values()
        }
        #expect(tuned != before)
        for parameter in example.model.backbone.parameters { #expect(parameter.frozen.grad == nil) }
    }

    @Test("Swapped answers flip the difference's sign; equal answers have no gradient")
    func swapsAndTies() async throws {
        let example = try await ObjectiveCase(.preference)
        try example.randomise()
        let row = example.data[1]
        let rejected = try #require(row.rejected)
        let swapped = Example(
            ids: rejected.ids, supervised: rejected.supervised, line: 1, rejected: (row.ids, row.supervised))
        let tied = Example(ids: row.ids, supervised: row.supervised, line: 1, rejected: (row.ids, row.supervised))
        let loss = LossFunction(PreferenceObjective())
        let margin = try #require(loss.rowMeasures.firstIndex(of: "rewards/margins"))
        func measured(_ row: Example) throws -> Double {
            try withoutGrad { try loss.rows(of: ForwardPass([row], model: example.model))[0].measures[margin] }
        }
        #expect(abs(try measured(row) + measured(swapped)) < 1e-6)
        #expect(abs(try measured(row)) > 1e-4)
        try loss.loss(of: ForwardPass([tied], model: example.model)).loss.backward()
        let largest = try example.adapter.trainables.map {
            try $0.tensor.grad?.absolute().maximum().item(as: Double.self) ?? 0
        }.max()
        #expect(try #require(largest) < 1e-6)
    }

    @Test("A reference that was worked out before gives the same losses")
    func precomputedReferences() async throws {
        let example = try await ObjectiveCase(.preference)
        try example.randomise()
        let fresh = try example.step(LossFunction("dpo", settings: [:]))
        let kept = try example.step(LossFunction("dpo", settings: ["precompute_ref_log_probs": true]))
        #expect(abs(fresh.loss - kept.loss) < 1e-6)
        for (a, b) in zip(fresh.gradients, kept.gradients) { #expect(try largestDifference(a, b) < 1e-6) }
    }

    @Test("Fifty steps: accuracy 1, a growing margin, and a larger beta stays closer to the pretrained model")
    func learnsPreferences() async throws {
        func train(_ beta: Double) async throws -> (accuracy: Double, margins: [Double], divergence: Double) {
            let example = try await ObjectiveCase(.preference)
            let loss = try LossFunction("dpo", settings: ["beta": JSON(beta)])
            let optimiser = try AdamW(example.adapter.trainables, settings: AdamW.Settings())
            let step = GradientStep(
                example.model, example.data, layout: BatchLayout(rows: 8), seed: Seed(1), lossFunction: loss)
            var (accuracy, margins) = (0.0, [Double]())
            let rows = Array(0..<8)
            for number in 0..<50 {
                let plan = StepPlan(
                    step: number, rows: rows, lengths: rows.map { example.data.length(at: $0) },
                    layout: BatchLayout(rows: 8))
                let sums = try step.addGradients(of: plan)
                let measures = KeyedList(loss.measures, sums.measures)
                accuracy = measures["rewards/accuracies"] ?? 0
                margins.append((measures["rewards/margins"] ?? 0) / beta)
                try optimiser.step(learningRate: 0.005)
                for trainable in example.adapter.trainables { try trainable.tensor.setGrad(nil) }
            }
            let divergence = try withoutGrad {
                let pass = try ForwardPass(example.data.examples, model: example.model)
                let reference = pass.reference()
                return try BiasRegularizer.divergence(
                    from: pass.logits(of: pass.supervisedStates()),
                    to: reference.logits(of: reference.supervisedStates())
                ).item(as: Double.self)
            }
            return (accuracy, margins, divergence)
        }
        let loose = try await train(0.1)
        #expect(loose.accuracy == 1)
        #expect(loose.margins[49] > loose.margins[25] && loose.margins[25] > loose.margins[5])
        let tight = try await train(3)
        #expect(tight.accuracy == 1)
        #expect(tight.divergence < loose.divergence)
    }

    @Test func badSettingsAreRefused() {
        func refusal(_ settings: KeyedList<JSON>) -> String {
            message { _ = try LossFunction("dpo", settings: settings) }
        }
        #expect(refusal(["beta": 0]) == "objective_settings, beta is 0.0; expected a positive number")
        #expect(refusal(["bета": 1]).contains("has no setting"))
        #expect(refusal(["label_smoothin": 0.1]).contains("Did you mean \"label_smoothing\"?"))
        #expect(refusal(["loss_type": "nca"]).contains("expected \"sigmoid\", \"robust\", \"hinge\", \"ipo\""))
        #expect(refusal(["loss_type": "hinge", "label_smoothing": 0.1]).contains("sigmoid or robust only"))
        #expect(refusal(["consistency_weight": 0.1]).contains("dpo holds the model"))
        #expect(message { _ = try LossFunction("dpp", settings: [:]) }.contains("Did you mean \"dpo\"?"))
    }
}

extension PreferenceObjective {
    /// The objective with settings.
    fileprivate func with(_ settings: KeyedList<JSON>) throws -> PreferenceObjective {
        let objective = try LossFunction("dpo", settings: settings).objective
        return try #require(objective as? PreferenceObjective)
    }
}

extension KeyedList where Value == Double {
    /// Names with their values.
    fileprivate init(_ names: [String], _ values: [Double]) {
        self = [:]
        for (name, value) in zip(names, values) { self[name] = value }
    }
}
