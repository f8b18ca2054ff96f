import Formats
import PEFT
import Torch

/// What a run learns: the rows that it wants, the loss of a forward pass, and what it measures.
///
/// An objective states sums over a pass and what they are divided by; ``GradientStep`` normalises them over the whole
/// optimiser step, so what is learnt does not depend on how rows are divided among passes or processes.
package protocol Objective: Sendable {
    /// The name after `--objective`.
    static var name: String { get }
    /// What it does, in one sentence.
    static var summary: String { get }
    /// The rows that it learns from.
    static var rows: RowKind { get }
    /// What its reported loss is a mean over.
    static var unit: LossUnit { get }
    /// Its settings, in the order of importance.
    static var fields: [Field<Self>] { get }
    /// Makes the objective with its defaults.
    init()
    /// Refuses settings that make no sense.
    ///
    /// - Throws: ``TrainingError`` naming the setting.
    func validate() throws
    /// The names of what is measured of each row beside its loss.
    var rowMeasures: [String] { get }
    /// The first of them, whose means are reported of every step.
    var stepMeasures: [String] { get }
    /// The loss of a pass, and what its rows come to.
    ///
    /// - Throws: `TorchError` when memory is short; what the adapter throws.
    func results(of pass: ForwardPass) throws -> ObjectiveResults
    /// What held-out rows come to, by name.
    func measures(of rows: [Evaluation.Row]) -> KeyedList<Double>
}

extension Objective {
    /// Nothing but the types is checked.
    package func validate() throws {}
    /// Nothing but the loss.
    package var rowMeasures: [String] { [] }
    /// All of them.
    package var stepMeasures: [String] { rowMeasures }
    /// The means of what is measured of each row.
    package func measures(of rows: [Evaluation.Row]) -> KeyedList<Double> {
        var means = KeyedList<Double>()
        for (index, name) in rowMeasures.enumerated() {
            means[name] = rows.reduce(0) { $0 + $1.measures[index] } / Double(max(rows.count, 1))
        }
        return means
    }

    /// The settings with their values.
    package var settings: KeyedList<JSON> {
        var list = KeyedList<JSON>()
        for field in Self.fields { list.appendIfNew(key: field.name, value: field.read(self)) }
        return list
    }

    /// The objective with another value of a setting, or nil when it has none of that name.
    ///
    /// - Throws: ``TrainingError`` when the value has another form.
    func setting(_ name: String, to value: JSON) throws -> Self? {
        guard let field = Self.fields.first(where: { $0.name == name }) else { return nil }
        var changed = self
        guard field.write(&changed, value) else {
            throw TrainingError("objective_settings, \(name): expected \(field.form), found \(value.compact)")
        }
        return changed
    }
}

/// The objectives by name.
package enum Objectives {
    /// All of them, in the order of the documentation.
    package static let all: [any Objective.Type] = [
        SupervisedObjective.self, PreferenceObjective.self, ClassificationObjective.self,
    ]

    /// The objective of a name.
    ///
    /// - Throws: ``TrainingError`` with the nearest name and all there are.
    package static func type(_ name: String) throws -> any Objective.Type {
        guard let type = all.first(where: { $0.name == name }) else {
            let names = all.map { $0.name }
            throw TrainingError(
                "there is no objective \"\(name)\".\(suggestion(for: name, in: names)) The objectives are "
                    + names.joined(separator: ", "))
        }
        return type
    }

    /// The objective that learns from rows of a kind.
    package static func type(for kind: RowKind) -> any Objective.Type {
        all.first { $0.rows == kind } ?? SupervisedObjective.self
    }
}

/// What a sum of losses is divided by.
package enum LossUnit: Sendable {
    /// The supervised tokens of the step.
    case tokens
    /// Its rows.
    case rows
    /// The sequences of tokens of its rows: two for a preference.
    case sequences
    /// The supervised tokens of the first sequence of each row: the chosen answers'.
    case chosenTokens
    /// Nothing more: the sum is a part of the step's loss as it is.
    case step
}

/// What the sums of an optimiser step are divided by, whoever computes them.
package struct StepTotals: Sendable, Equatable {
    /// The rows.
    package var rows = 0
    /// The sequences of tokens of the rows.
    package var sequences = 0
    /// The supervised tokens.
    package var tokens = 0
    /// Those of the first sequence of each row.
    package var chosenTokens = 0

    /// The totals of some rows of a data set.
    package init(_ rows: [Int], of data: Dataset) {
        self.rows = rows.count
        for row in rows {
            let counts = data.supervisedCounts(at: row)
            sequences += counts.count
            tokens += counts.reduce(0, +)
            chosenTokens += counts.first ?? 0
        }
    }

    /// The totals of some rows.
    package init(_ examples: [Example]) {
        rows = examples.count
        sequences = examples.reduce(0) { $0 + $1.sequences.count }
        tokens = examples.reduce(0) { $0 + $1.supervisedCount }
        chosenTokens = examples.reduce(0) { $0 + ($1.sequences.first?.supervisedCount ?? 0) }
    }

    /// What a sum is divided by.
    package subscript(unit: LossUnit) -> Double {
        switch unit {
        case .tokens: Double(tokens)
        case .rows: Double(rows)
        case .sequences: Double(sequences)
        case .chosenTokens: Double(chosenTokens)
        case .step: 1
        }
    }
}

/// A part of the loss: the sum over a pass, what the step's sum is divided by, and how much it counts.
package struct LossTerm {
    /// The sum over the pass, a scalar.
    package let sum: Tensor
    /// What the step's sum is divided by.
    package let unit: LossUnit
    /// How much it counts.
    package let weight: Double

    /// Makes a term.
    package init(_ sum: Tensor, per unit: LossUnit, weight: Double = 1) {
        self.sum = sum
        self.unit = unit
        self.weight = weight
    }
}

/// What an objective makes of a pass.
package struct ObjectiveResults {
    /// The loss.
    package let terms: [LossTerm]
    /// What each row comes to, worked out when it is asked for.
    package let rows: () throws -> [Evaluation.Row]

    /// Puts results together.
    package init(terms: [LossTerm], rows: @escaping () throws -> [Evaluation.Row]) {
        self.terms = terms
        self.rows = rows
    }
}
