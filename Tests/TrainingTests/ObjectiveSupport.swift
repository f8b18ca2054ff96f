import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

/// Rows of a kind whose words are a function of the seed; lengths differ.
func objectiveRows(_ kind: RowKind, _ count: Int, seed: UInt64) -> String {
    var generator = SeededGenerator(seed: seed)
    let words = ["the", "quick", "answer", "to", "lazy", "dog", "12", "question", "is", "brown", "over", "fox"]
    func text(_ lengths: ClosedRange<Int>) -> String {
        (0..<Int.random(in: lengths, using: &generator))
            .map { _ in words[Int.random(in: words.indices, using: &generator)] }.joined(separator: " ")
    }
    return (0..<count).map { index in
        switch kind {
        case .text: "{\"prompt\": \"\(text(1...5))\", \"completion\": \" \(text(2...6))\"}\n"
        case .preference:
            "{\"prompt\": \"\(text(1...5))\", \"chosen\": \" \(text(1...6))\", \"rejected\": \" \(text(1...6))\"}\n"
        case .labelled: "{\"text\": \"\(text(1...8))\", \"label\": \"\(["no", "perhaps", "yes"][index % 3])\"}\n"
        }
    }.joined()
}

/// A tiny model with a random adapter and rows of a kind: one step of them, whatever the passes.
struct ObjectiveCase {
    let model: LanguageModel
    let adapter: Adapter
    let data: Dataset
    let kind: RowKind
    let folder: String

    init(
        _ kind: RowKind, rows: Int = 8, seed: UInt64 = 5, settings: KeyedList<JSON> = [:], hasReLU: Bool = false
    ) async throws {
        let chat = try await ChatModels.shared.folder()
        folder = hasReLU ? try Self.withReLU(chat) : chat
        let base = try LanguageModel.load(folder, dtype: .float32, device: .cpu)
        let path = try TemporaryFolder.lasting("objective").path + "/rows.jsonl"
        try AtomicFile.write(objectiveRows(kind, rows, seed: seed), to: path)
        model = kind == .labelled ? try base.classifier(labels: ["no", "perhaps", "yes"], seed: Seed(3)) : base
        data = try model.dataset(path)
        var all: KeyedList<JSON> = ["r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]]
        for (key, value) in settings { all[key] = value }
        adapter = try model.attach("lora", all, seed: Seed(seed))
        self.kind = kind
    }

    /// The same model with ReLU in the place of SiLU.
    private static func withReLU(_ folder: String) throws -> String {
        let copy = try TemporaryFolder.lasting("relu").path
        for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
            try FileManager.default.copyItem(atPath: folder + "/" + name, toPath: copy + "/" + name)
        }
        var json = try JSON.read(path: copy + "/config.json")
        json["hidden_act"] = "relu"
        try AtomicFile.write(json.compact, to: copy + "/config.json")
        return copy
    }

    /// Moves every trained tensor, so that nothing begins at zero.
    func randomise(seed: UInt64 = 9) throws {
        var generator = SeededGenerator(seed: seed)
        try withoutGrad {
            for trainable in adapter.trainables {
                let noise = generator.normals(trainable.tensor.count).map { 0.1 * $0 }
                try trainable.tensor.add(Tensor(noise, shape: trainable.tensor.shape))
            }
        }
    }

    /// Loss and gradients of one step of all rows.
    func step(
        _ loss: LossFunction, _ layout: BatchLayout = BatchLayout(rows: 8), processes: Int = 1
    ) throws -> (loss: Double, gradients: [Tensor], sums: StepSums) {
        let rows = Array(0..<data.count)
        let plan = StepPlan(step: 0, rows: rows, lengths: rows.map { data.length(at: $0) }, layout: layout)
        let step = GradientStep(model, data, layout: layout, seed: Seed(1), lossFunction: loss)
        var all = StepSums()
        for rank in 0..<processes {
            let sums = try step.addGradients(of: plan, share: plan.share(rank: rank, of: processes))
            all.loss += sums.loss
            all.supervised = sums.supervised
            all.measures = all.measures.isEmpty ? sums.measures : zip(all.measures, sums.measures).map { $0 + $1 }
        }
        let gradients = try adapter.trainables.map { try #require($0.tensor.grad, "\($0.name)") }
        for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
        return (all.loss / Double(all.supervised), gradients, all)
    }

    /// The oracle's loss and the largest gap of gradients, over the largest gradient of each tensor.
    func gap(
        _ settings: KeyedList<JSON>, _ found: (loss: Double, gradients: [Tensor], sums: StepSums)
    ) async throws -> (loss: Double, gradients: Double, answer: JSON) {
        let objective = LossFunctionName.name(kind)
        let rows = data.examples.map { example -> JSON in
            [
                "sequences": JSON(rows: example.sequences),
                "label": example.label.map { JSON($0) } ?? .null,
            ]
        }
        return try await withTemporaryFolder { temporary in
            try adapter.save(to: temporary("adapter"))
            var arguments: KeyedList<JSON> = [
                "folder": JSON(folder), "adapter": JSON(temporary("adapter")), "rows": JSON(rows),
                "objective": JSON(objective), "settings": .object(settings), "output": JSON(temporary("g.safetensors")),
            ]
            if kind == .labelled {
                try SafetensorsWriter.write(
                    ["score.weight": model.backbone.head.weight.frozen], to: temporary("score.safetensors"))
                arguments["score"] = JSON(temporary("score.safetensors"))
            }
            let answer = try await Oracle.shared.call("objectives.step", arguments)
            let file = try SafetensorsFile(path: temporary("g.safetensors"))
            var worst = 0.0
            for (trainable, gradient) in zip(adapter.trainables, found.gradients) {
                let expected = try file.tensor(trainable.name).tensor().to(dtype: .float64)
                let scale = try expected.absolute().maximum().item(as: Double.self)
                let difference = try (gradient.to(dtype: .float64) - expected).absolute().maximum().item(
                    as: Double.self)
                worst = max(worst, difference / max(scale, 1e-12))
            }
            return (abs(found.loss - (answer["loss"]?.double ?? .nan)), worst, answer)
        }
    }
}

/// The objective of a kind of rows.
enum LossFunctionName {
    static func name(_ kind: RowKind) -> String {
        switch kind {
        case .text: "sft"
        case .preference: "dpo"
        case .labelled: "classification"
        }
    }
}
