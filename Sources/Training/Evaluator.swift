import Backbones
import Formats
import Foundation
import Torch

/// How well a model predicts the supervised tokens of a data set.
public struct Evaluation: Sendable, Equatable {
    /// The result of one row.
    public struct Row: Sendable, Equatable {
        /// Mean negative log-likelihood of its supervised tokens, in nats.
        public let loss: Double
        /// Its supervised tokens.
        public let tokens: Int
        /// Its line in the file, from 1.
        public let line: Int
    }

    /// The rows, in the file's order.
    public let rows: [Row]

    /// The supervised tokens of all rows.
    public var tokens: Int { rows.reduce(0) { $0 + $1.tokens } }
    /// Mean negative log-likelihood of a supervised token, in nats.
    public var loss: Double { rows.reduce(0) { $0 + $1.loss * Double($1.tokens) } / Double(max(tokens, 1)) }
    /// `e` to the power of the loss.
    public var perplexity: Double { exp(loss) }

    /// The result as an object: `loss`, `perplexity`, `tokens`, `examples`, and on demand `per_example`.
    ///
    /// - Parameter perExample: Whether every row's loss and tokens are listed.
    public func json(perExample: Bool = false) -> JSON {
        var object: KeyedList<JSON> = [
            "loss": JSON(loss), "perplexity": JSON(perplexity), "tokens": JSON(tokens), "examples": JSON(rows.count),
        ]
        if perExample {
            object["per_example"] = JSON(rows.map { ["loss": JSON($0.loss), "tokens": JSON($0.tokens)] })
        }
        return .object(object)
    }
}

/// Measures the loss of a model on held-out rows, batch by batch, keeping sums only.
public struct Evaluator {
    private let model: LanguageModel
    private let layout: BatchLayout
    private let objective = SupervisedObjective()

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
        self.model = model
        self.layout = layout
    }

    /// Measures a data set.
    ///
    /// - Parameter data: The rows; their order does not change the result of any of them but by rounding.
    /// - Throws: `TorchError` when memory is short.
    public func evaluate(_ data: Dataset) throws -> Evaluation { try evaluate(data, with: nil) }

    /// The same, shared with the other processes of a run.
    func evaluate(_ data: Dataset, with peers: DistributedRun?) throws -> Evaluation {
        // Rows of like length share a batch, so that little is computed for what only fills them up.
        let order = (0..<data.count).sorted { data.length(at: $0) < data.length(at: $1) }
        var rows = [Evaluation.Row?](repeating: nil, count: data.count)
        let passes = layout.passes(of: order.map { data.length(at: $0) })
        for (index, pass) in passes.enumerated() where peers?.takes(pass: index) ?? true {
            let chosen = pass.map { order[$0] }
            let examples = chosen.map { data[$0] }
            for (index, row) in zip(chosen, try evaluate(examples)) { rows[index] = row }
        }
        return Evaluation(rows: try peers?.combine(rows, of: data) ?? rows.compactMap { $0 })
    }

    private func evaluate(_ examples: [Example]) throws -> [Evaluation.Row] {
        let batch = try model.batch(examples, isPacked: layout.isPacked)
        let losses = try withoutGrad { try objective.losses(batch, model.backbone).values(as: Float.self) }
        var start = 0
        return zip(examples, batch.supervisedCounts).map { example, count in
            let sum = losses[start..<(start + count)].reduce(0.0) { $0 + Double($1) }
            start += count
            return Evaluation.Row(loss: sum / Double(max(count, 1)), tokens: count, line: example.line)
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
