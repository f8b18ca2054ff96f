import Formats

/// What was measured at a step of a run: one line of `metrics.jsonl`.
///
/// A training step has ``loss``, an evaluation has ``evalLoss``. What is `nil` is left out of the line.
public struct Metrics: Sendable, Equatable {
    /// The optimiser steps taken so far.
    public var step: Int
    /// The passes over the training data so far, in parts of one.
    public var epoch: Double?
    /// The training loss: mean negative log-likelihood a supervised token, in nats.
    public var loss: Double?
    /// The loss on the held-out rows, in the same unit.
    public var evalLoss: Double?
    /// The learning rate of the step.
    public var learningRate: Double?
    /// The Euclidean norm of the gradient of all trainable parameters, before clipping.
    public var gradNorm: Double?
    /// The tokens seen so far.
    public var tokens: Int?
    /// The tokens seen a second of late.
    public var tokensPerSecond: Double?
    /// The most memory that the process has had, in bytes.
    public var peakMemoryBytes: Int?
    /// The wall clock, in seconds since 1970.
    public var time: Double?
    /// Further measures by name, such as `eval_accuracy`.
    public var others: [String: Double] = [:]

    /// A line with nothing but a step.
    public init(step: Int) { self.step = step }
}

extension Metrics {
    /// The measures with a fraction and their names in a line, in its order.
    private static var fractions: KeyValuePairs<String, WritableKeyPath<Metrics, Double?>> {
        [
            "epoch": \.epoch, "loss": \.loss, "eval_loss": \.evalLoss, "learning_rate": \.learningRate,
            "grad_norm": \.gradNorm, "tokens_per_second": \.tokensPerSecond, "time": \.time,
        ]
    }

    /// The whole measures and their names in a line, in its order.
    private static var counts: KeyValuePairs<String, WritableKeyPath<Metrics, Int?>> {
        ["tokens": \.tokens, "peak_memory_bytes": \.peakMemoryBytes]
    }

    /// The object of the line.
    ///
    /// JSON has no sign for numbers that are not finite. They are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`,
    /// as in protobuf's JSON: every reader accepts them, none takes them for a loss that was not measured, and
    /// `float()` in Python and `Number()` in JavaScript turn them back.
    package var json: JSON {
        var line: KeyedList<JSON> = ["step": JSON(step)]
        for (name, path) in Self.fractions {
            if let value = self[keyPath: path] { line[name] = Self.json(value) }
        }
        for (name, path) in Self.counts {
            if let value = self[keyPath: path] { line[name] = JSON(value) }
        }
        for (name, value) in others.sorted(by: { $0.key < $1.key }) where line[name] == nil {
            line[name] = Self.json(value)
        }
        return .object(line)
    }

    /// Reads the object of a line; `nil` when it has no whole step.
    ///
    /// What is no number is passed over.
    package init?(json: JSON) {
        guard let line = json.object, let step = line["step"]?.int else { return nil }
        self.init(step: step)
        for (name, value) in line where name != "step" {
            if let path = Self.fractions.first(where: { $0.key == name })?.value {
                self[keyPath: path] = Self.number(value)
            } else if let path = Self.counts.first(where: { $0.key == name })?.value {
                self[keyPath: path] = value.int
            } else if let value = Self.number(value) {
                others[name] = value
            }
        }
    }

    private static func json(_ value: Double) -> JSON {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Infinity" : "Infinity" }
        return JSON(value)
    }

    private static func number(_ value: JSON) -> Double? {
        switch value.string {
        case "NaN": .nan
        case "Infinity": .infinity
        case "-Infinity": -.infinity
        default: value.double
        }
    }
}
