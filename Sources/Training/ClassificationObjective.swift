import Backbones
import Formats
import PEFT
import Torch

/// Tells texts apart: cross-entropy of the label under a trained head `score` on the state of the last token.
package struct ClassificationObjective: Objective {
    package static let name = "classification"
    package static let summary = "Give the label of a text, or of a pair of texts, by a head on the last token."
    package static let rows = RowKind.labelled
    package static let unit = LossUnit.rows
    package static let fields: [Field<ClassificationObjective>] = []

    package init() {}

    package let rowMeasures = ["accuracy", "answer", "label"]
    package let stepMeasures = ["accuracy"]

    package func results(of pass: ForwardPass) throws -> ObjectiveResults {
        let labels = try pass.examples.map { example in
            guard let label = example.label else {
                throw TrainingError("line \(example.line): the row has no label")
            }
            return label
        }
        let logits = try pass.classLogits()
        let targets = try Tensor(labels).to(device: logits.device)
        let losses = try SupervisedObjective.crossEntropy(logits, targets)
        return ObjectiveResults(terms: [LossTerm(try losses.sum(), per: .rows)]) {
            let (losses, found) = (
                try losses.values(as: Float.self), try logits.detached().argmax(1).values(as: Int64.self)
            )
            return pass.examples.enumerated().map { row, example in
                Evaluation.Row(
                    loss: Double(losses[row]), tokens: example.ids.count, line: example.line,
                    measures: [Int(found[row]) == labels[row] ? 1 : 0, Double(found[row]), Double(labels[row])])
            }
        }
    }

    package func measures(of rows: [Evaluation.Row]) -> KeyedList<Double> {
        let report = ClassificationReport(
            answers: rows.map { Int($0.measures[1]) }, labels: rows.map { Int($0.measures[2]) })
        var measures: KeyedList<Double> = ["accuracy": report.accuracy, "f1_macro": report.macroF1]
        if let f1 = report.binaryF1 { measures["f1_binary"] = f1 }
        measures["matthews_correlation"] = report.matthewsCorrelation
        return measures
    }
}
