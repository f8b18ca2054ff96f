import Formats
import PEFT
import Torch

/// What is added to an objective's loss, whatever the objective: it sees the pass, with taps and the reference.
package protocol Regularizer: Sendable {
    /// The names of what it measures in training.
    var measures: [String] { get }
    /// The names of what it measures of each held-out row.
    var rowMeasures: [String] { get }
    /// Whether ``ForwardPass/otherLogits`` is needed.
    var needsOtherLogits: Bool { get }
    /// Says what it will look at; called before the pass.
    func prepare(_ pass: ForwardPass)
    /// What it adds to the loss, and its measures as parts of the step's.
    ///
    /// - Throws: `TorchError` when memory is short; what the adapter throws.
    func results(of pass: ForwardPass) throws -> (terms: [LossTerm], measures: [Double])
    /// For each row of a pass its ``rowMeasures``.
    ///
    /// - Throws: `TorchError` when memory is short.
    func rows(of pass: ForwardPass) throws -> [[Double]]
}

extension Regularizer {
    /// Nothing.
    package var rowMeasures: [String] { [] }
    /// No.
    package var needsOtherLogits: Bool { false }
    /// Nothing is tapped.
    package func prepare(_ pass: ForwardPass) {}
    /// Nothing.
    package func rows(of pass: ForwardPass) throws -> [[Double]] { pass.examples.map { _ in [] } }
}

/// All that a run minimises: an objective with its regularisers.
package struct LossFunction: Sendable {
    /// The objective.
    package var objective: any Objective
    /// What is added to its loss.
    package var regularizers: [any Regularizer] = []

    /// Makes the loss of an objective alone.
    package init(_ objective: any Objective = SupervisedObjective()) {
        self.objective = objective
    }

    /// Makes the loss of a named objective.
    ///
    /// - Parameters:
    ///   - name: A name of ``Objectives``.
    ///   - settings: Those of the objective and of ``Regularization``.
    /// - Throws: ``TrainingError`` for an unknown name or key, with the nearest one, or a wrong value.
    package init(_ name: String, settings: KeyedList<JSON>) throws {
        var objective: any Objective = try Objectives.type(name).init()
        var regularization = Regularization()
        for (key, value) in settings {
            if let changed = try objective.setting(key, to: value) {
                objective = changed
            } else if try !regularization.set(key, to: value) {
                let keys = objective.settings.keys + Regularization.fields.map(\.name)
                throw TrainingError(
                    "the objective \(name) has no setting \"\(key)\".\(suggestion(for: key, in: keys)) Its settings are "
                        + keys.joined(separator: ", "))
            }
        }
        try objective.validate()
        try regularization.validate()
        self.objective = objective
        regularizers = try regularization.regularizers(for: objective)
    }

    /// The settings of a named objective with their values; those of regularisers where one acts.
    package static func settings(_ name: String, _ given: KeyedList<JSON>) throws -> KeyedList<JSON> {
        let loss = try LossFunction(name, settings: given)
        var settings = loss.objective.settings
        guard !loss.regularizers.isEmpty else { return settings }
        var regularization = Regularization()
        for (key, value) in given where settings[key] == nil { _ = try regularization.set(key, to: value) }
        for field in Regularization.fields { settings[field.name] = field.read(regularization) }
        return settings
    }

    /// Whether the classes' logits of the whole step are needed in each pass.
    package var needsOtherLogits: Bool { regularizers.contains { $0.needsOtherLogits } }

    /// The names of what is measured in training.
    package var measures: [String] { objective.stepMeasures + regularizers.flatMap(\.measures) }

    /// The names of what is measured of a row, in the order of `Evaluation.Row.measures`.
    package var rowMeasures: [String] { objective.rowMeasures + regularizers.flatMap(\.rowMeasures) }

    /// The loss of a pass.
    ///
    /// - Returns: The pass's part of the step's loss, to go backward from; the same as a sum in the objective's own
    ///   unit; and its parts of the step's ``measures``.
    /// - Throws: `TorchError` when memory is short; what the adapter throws.
    package func loss(of pass: ForwardPass) throws -> (loss: Tensor, sum: Double, measures: [Double]) {
        for regularizer in regularizers { regularizer.prepare(pass) }
        let results = try objective.results(of: pass)
        var (terms, measures) = (results.terms, [Double]())
        if !objective.stepMeasures.isEmpty {
            let rows = try results.rows()
            measures = objective.stepMeasures.indices.map { index in
                rows.reduce(0) { $0 + $1.measures[index] } / pass.totals[.rows]
            }
        }
        for regularizer in regularizers {
            let more = try regularizer.results(of: pass)
            terms += more.terms
            measures += more.measures
        }
        let own = pass.totals[type(of: objective).unit]
        var sum = 0.0
        var loss: Tensor?
        for term in terms {
            let value: Double = try term.sum.detached().item()
            // A sum in the objective's unit with a weight of 1 stays what it is, to the bit.
            let count = pass.totals[term.unit]
            sum += term.weight * (term.unit == type(of: objective).unit ? value : value * own / count)
            let part = try term.weight == 1 ? term.sum / count : term.sum * (term.weight / count)
            loss = try loss.map { try $0 + part } ?? part
        }
        guard let loss else { throw TrainingError("the objective has no loss") }
        return (loss, sum, measures)
    }

    /// What the rows of a pass come to, with the regularisers' measures behind the objective's own.
    ///
    /// - Throws: `TorchError` when memory is short.
    package func rows(of pass: ForwardPass) throws -> [Evaluation.Row] {
        let looking = regularizers.filter { !$0.rowMeasures.isEmpty }
        for regularizer in looking { regularizer.prepare(pass) }
        var rows = try objective.results(of: pass).rows()
        for regularizer in looking {
            for (index, values) in try regularizer.rows(of: pass).enumerated() { rows[index].measures += values }
        }
        return rows
    }

    /// What held-out rows come to, by name.
    package func measures(of rows: [Evaluation.Row]) -> KeyedList<Double> {
        var measures = objective.measures(of: rows)
        let names = regularizers.flatMap(\.rowMeasures)
        for (index, name) in names.enumerated() {
            // Behind all that the objective keeps of a row.
            let values = rows.map { $0.measures[$0.measures.count - names.count + index] }
            measures[name] = values.reduce(0, +) / Double(max(values.count, 1))
        }
        return measures
    }
}
