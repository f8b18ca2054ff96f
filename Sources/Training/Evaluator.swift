import Backbones
import Formats
import Foundation
import Torch

/// How well a model does what its objective asks for, on the rows of a data set.
public struct Evaluation: Sendable, Equatable {
    /// The result of one row.
    public struct Row: Sendable, Equatable {
        /// The objective's loss of the row; of a text the mean negative log-likelihood of its supervised tokens, in nats.
        public let loss: Double
        /// Its supervised tokens; of a labelled row all of them.
        public let tokens: Int
        /// Its line in the file, from 1.
        public let line: Int
        /// What the objective measures of the row, in an order of its own.
        package var measures: [Double] = []
    }

    /// The rows, in the file's order.
    public let rows: [Row]
    /// What was measured.
    package let lossFunction: LossFunction

    package init(rows: [Row], lossFunction: LossFunction = LossFunction()) {
        self.rows = rows
        self.lossFunction = lossFunction
    }

    /// Two are equal when all rows have the same results.
    public static func == (a: Evaluation, b: Evaluation) -> Bool { a.rows == b.rows }

    /// The name of the objective.
    public var objective: String { type(of: lossFunction.objective).name }
    /// The supervised tokens of all rows.
    public var tokens: Int { rows.reduce(0) { $0 + $1.tokens } }
    /// The objective's loss: the mean over supervised tokens, in nats, or over rows.
    public var loss: Double {
        if type(of: lossFunction.objective).unit == .rows {
            return rows.reduce(0) { $0 + $1.loss } / Double(max(rows.count, 1))
        }
        return rows.reduce(0) { $0 + $1.loss * Double($1.tokens) } / Double(max(tokens, 1))
    }
    /// `e` to the power of the loss; it says something where the loss is a token's, see ``hasPerplexity``.
    public var perplexity: Double { exp(loss) }
    /// Whether the loss is the mean over tokens.
    public var hasPerplexity: Bool { type(of: lossFunction.objective).unit == .tokens }
    /// What else the objective measures, by name.
    public var measures: KeyedList<Double> { lossFunction.measures(of: rows) }

    /// For each row what its objective measures of it, by name.
    public var rowMeasures: [KeyedList<Double>] {
        let names = lossFunction.rowMeasures
        return rows.map { row in
            var measures = KeyedList<Double>()
            for (name, value) in zip(names, row.measures) { measures[name] = value }
            return measures
        }
    }

    /// For each of ``measures`` the interval that holds 95% of what rows drawn anew from these come to.
    public func intervals() -> KeyedList<ClosedRange<Double>> {
        Bootstrap().intervals(of: rows) { lossFunction.measures(of: $0) }
    }

    /// The result as an object: `loss`, `perplexity`, `tokens`, `examples`, the measures, and on demand `per_example`.
    ///
    /// - Parameters:
    ///   - perExample: Whether every row's loss and tokens are listed.
    ///   - intervals: Whether the measures' intervals are worked out.
    public func json(perExample: Bool = false, intervals: Bool = false) -> JSON {
        var object: KeyedList<JSON> = ["loss": JSON(loss)]
        if hasPerplexity { object["perplexity"] = JSON(perplexity) }
        object["tokens"] = JSON(tokens)
        object["examples"] = JSON(rows.count)
        for (name, value) in measures { object[name] = JSON(value) }
        if intervals {
            var ranges = KeyedList<JSON>()
            for (name, range) in self.intervals() {
                ranges[name] = [JSON(range.lowerBound), JSON(range.upperBound)]
            }
            if !ranges.isEmpty { object["intervals"] = .object(ranges) }
        }
        if perExample {
            object["per_example"] = JSON(
                zip(rows, rowMeasures).map { row, measures in
                    var entry: KeyedList<JSON> = ["loss": JSON(row.loss), "tokens": JSON(row.tokens)]
                    for (name, value) in measures { entry[name] = JSON(value) }
                    return .object(entry)
                })
        }
        return .object(object)
    }
}

/// Measures a model on held-out rows, batch by batch, keeping sums only.
public struct Evaluator {
    private let model: LanguageModel
    private let layout: BatchLayout
    private let lossFunction: LossFunction?

    /// Makes an evaluator.
    ///
    /// - Parameters:
    ///   - model: The model with what is attached to it.
    ///   - batchSize: Rows of one forward pass; the result depends on it by rounding only.
    public init(_ model: LanguageModel, batchSize: Int = 8) {
        self.init(model, layout: BatchLayout(rows: batchSize))
    }

    /// Makes an evaluator.
    ///
    /// - Parameters:
    ///   - model: The model with what is attached to it.
    ///   - layout: How rows share forward passes; the result depends on it by rounding only.
    public init(_ model: LanguageModel, layout: BatchLayout) {
        self.init(model, layout: layout, lossFunction: nil)
    }

    /// Makes an evaluator.
    ///
    /// - Parameter lossFunction: What is measured; nil: what the rows are for.
    package init(_ model: LanguageModel, layout: BatchLayout, lossFunction: LossFunction?) {
        self.model = model
        self.layout = layout
        self.lossFunction = lossFunction
    }

    /// Measures a data set.
    ///
    /// - Parameter data: The rows; their order does not change the result of any of them but by rounding.
    /// - Throws: `TorchError` when memory is short.
    public func evaluate(_ data: Dataset) throws -> Evaluation { try evaluate(data, with: nil) }

    /// The same, shared with the other processes of a run.
    func evaluate(_ data: Dataset, with peers: DistributedRun?) throws -> Evaluation {
        // Rows of like length share a batch, so that little is computed for what only fills them up.
        let loss = lossFunction ?? LossFunction(Objectives.type(for: data.kind).init())
        let order = (0..<data.count).sorted { data.length(at: $0) < data.length(at: $1) }
        var rows = [Evaluation.Row?](repeating: nil, count: data.count)
        let passes = layout.passes(of: order.map { data.length(at: $0) })
        for (index, pass) in passes.enumerated() where peers?.takes(pass: index) ?? true {
            let chosen = pass.map { order[$0] }
            let examples = chosen.map { data[$0] }
            for (index, row) in zip(chosen, try evaluate(examples, loss)) { rows[index] = row }
        }
        let all = try peers?.combine(rows, of: data) ?? rows.compactMap { $0 }
        return Evaluation(rows: all, lossFunction: loss)
    }

    private func evaluate(_ examples: [Example], _ loss: LossFunction) throws -> [Evaluation.Row] {
        try withoutGrad {
            try loss.rows(of: ForwardPass(examples, model: model, isPacked: layout.isPacked))
        }
    }
}

extension LanguageModel {
    /// Rows side by side or packed, as this model is quickest with them.
    package func batch(_ examples: [Example], isPacked: Bool = false) throws -> Batch {
        // Any token fills rows up, since it is never seen nor learnt.
        let padding = tokenizer.specialTokens.pad ?? tokenizer.specialTokens.eos ?? 0
        return try Batch(
            examples, padding: padding, isPacked: isPacked, multiple: Batch.lengthMultiple(of: backbone),
            device: backbone.device)
    }
}
