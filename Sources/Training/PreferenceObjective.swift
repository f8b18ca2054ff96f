import Formats
import PEFT
import Torch

/// Direct preference optimisation (arXiv 2305.18290): the chosen answer of a row becomes likelier than the rejected
/// one, as the pretrained model sees them.
///
/// With `h = [log pi(yw|x) - log pi0(yw|x)] - [log pi(yl|x) - log pi0(yl|x)]`, sums over the answers' tokens, the loss
/// of a row is `-log sigmoid(beta h)`. The reference pi0 is the same weights with the adapter off.
package struct PreferenceObjective: Objective {
    /// The losses of trl.
    enum LossType: String, FieldValue, CaseIterable {
        case sigmoid, robust, hinge, ipo

        static var form: String { allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ") }
        init?(json: JSON) { self.init(rawValue: json.string ?? "") }
        var json: JSON { .string(rawValue) }
    }

    package static let name = "dpo"
    package static let summary = "Prefer the chosen answer to the rejected one (DPO)."
    package static let rows = RowKind.preference
    package static let unit = LossUnit.rows

    var beta = 0.1
    var lossType = LossType.sigmoid
    var labelSmoothing = 0.0
    var sftWeight = 0.0
    /// Whether what the pretrained model says of a row is worked out once a run and not once a step.
    package var keepsReferences = false

    package static let fields: [Field<PreferenceObjective>] = [
        Field("beta", \.beta, "how strongly the model is held to the pretrained one"),
        Field("loss_type", \.lossType, "the loss of a row: sigmoid, robust, hinge or ipo"),
        Field("label_smoothing", \.labelSmoothing, "how likely a row's answers are taken to be the wrong way round"),
        Field("rpo_alpha", \.sftWeight, "the weight of the chosen answers' cross-entropy beside the preference"),
        Field(
            "precompute_ref_log_probs", \.keepsReferences,
            "work the reference out once a row and not in every step: saves time from the second pass over the data on"),
    ]

    package init() {}

    package func validate() throws {
        func require(_ holds: Bool, _ key: String, _ found: Double, _ expected: String) throws {
            guard holds else { throw TrainingError("objective_settings, \(key) is \(found); expected \(expected)") }
        }
        try require(beta > 0 && beta < 1e6, "beta", beta, "a positive number")
        try require((0..<0.5).contains(labelSmoothing), "label_smoothing", labelSmoothing, "a number in 0..<0.5")
        try require((0..<1e6).contains(sftWeight), "rpo_alpha", sftWeight, "a number of at least 0")
        guard labelSmoothing == 0 || lossType == .sigmoid || lossType == .robust else {
            throw TrainingError("objective_settings, label_smoothing goes with loss_type sigmoid or robust only")
        }
    }

    package let rowMeasures = [
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
        "length/chosen", "length/rejected",
    ]

    package func results(of pass: ForwardPass) throws -> ObjectiveResults {
        let counts = pass.batch.supervisedCounts
        let lengths = try Tensor(counts.map(Double.init), shape: [counts.count / 2, 2]).to(
            device: pass.batch.ids.device)
        // [rows, 2]: chosen, rejected
        let own = try pass.logProbabilities().reshaped([-1, 2])
        let reference = try pass.referenceLogProbabilities().reshaped([-1, 2])
        let ratios = try own - reference
        let compared = try lossType == .ipo ? ratios / lengths : ratios
        let losses = try losses(compared.selected(1, 0) - compared.selected(1, 1))
        var terms = try [LossTerm(losses.sum(), per: .rows)]
        if sftWeight > 0 {
            terms.append(LossTerm(try own.selected(1, 0).sum().negated(), per: .chosenTokens, weight: sftWeight))
        }
        return ObjectiveResults(terms: terms) {
            let (losses, own, ratios) = (
                try losses.values(as: Double.self), try own.values(as: Double.self), try ratios.values(as: Double.self)
            )
            return pass.examples.enumerated().map { row, example in
                let (chosen, rejected) = (beta * ratios[2 * row], beta * ratios[2 * row + 1])
                return Evaluation.Row(
                    loss: losses[row], tokens: counts[2 * row] + counts[2 * row + 1], line: example.line,
                    measures: [
                        chosen, rejected, chosen > rejected ? 1 : 0, chosen - rejected, own[2 * row], own[2 * row + 1],
                        Double(counts[2 * row]), Double(counts[2 * row + 1]),
                    ])
            }
        }
    }

    /// The loss of each row for `h [rows]`.
    package func losses(_ difference: Tensor) throws -> Tensor {
        func logSigmoid(_ sign: Double) throws -> Tensor {
            try callTensor("aten::log_sigmoid", difference * (sign * beta))
        }
        switch lossType {
        case .sigmoid where labelSmoothing == 0: return try logSigmoid(1).negated()
        case .sigmoid: return try logSigmoid(1) * (labelSmoothing - 1) - logSigmoid(-1) * labelSmoothing
        case .robust:
            let sum = try logSigmoid(1) * (labelSmoothing - 1) + logSigmoid(-1) * labelSmoothing
            return try sum / (1 - 2 * labelSmoothing)
        case .hinge: return try relu(difference * -beta + 1)
        case .ipo: return try (difference - 1 / (2 * beta)).squared()
        }
    }
}
