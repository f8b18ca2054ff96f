import Formats

/// One finished training of a comparison: a line of `trials.jsonl`.
public struct ComparisonTrial: Sendable {
    /// Why it was trained.
    public enum Phase: String, Sendable {
        /// To choose the learning rate, on a part of the training rows.
        case search
        /// For the result.
        case final
    }

    /// The method's name with its settings, as given.
    public let arm: String
    /// Why it was trained.
    public let phase: Phase
    /// The peak learning rate.
    public let learningRate: Double
    /// The seed of the run.
    public let seed: Int
    /// The digest of all that the result depends on.
    public let digest: String
    /// What went wrong, or nil.
    public var failure: String?
    /// The metric on held-out rows.
    public var value: Double?
    /// The trained values.
    public var parameters = 0
    /// The adapter's file in bytes.
    public var adapterBytes = 0
    /// The most memory that the process had, in bytes.
    public var peakBytes = 0
    /// The seconds of a step.
    public var secondsPerStep = 0.0
    /// The training loss by step.
    public var curve: [LossPlot.Point] = []

    init(arm: String, phase: Phase, learningRate: Double, seed: Int, digest: String) {
        self.arm = arm
        self.phase = phase
        self.learningRate = learningRate
        self.seed = seed
        self.digest = digest
    }

    /// The trial as an object.
    var json: JSON {
        var object: KeyedList<JSON> = [
            "arm": .string(arm), "phase": .string(phase.rawValue), "learning_rate": JSON(learningRate),
            "seed": JSON(seed), "digest": .string(digest), "parameters": JSON(parameters),
            "adapter_bytes": JSON(adapterBytes), "peak_bytes": JSON(peakBytes),
            "seconds_per_step": JSON(secondsPerStep),
            "curve": JSON(curve.map { JSON([JSON($0.step), JSON($0.loss)]) }),
        ]
        if let value { object["value"] = JSON(value) }
        if let failure { object["failure"] = .string(failure) }
        return .object(object)
    }

    init?(json: JSON) {
        guard let arm = json["arm"]?.string, let phase = json["phase"]?.string.flatMap(Phase.init),
            let rate = json["learning_rate"]?.double, let seed = json["seed"]?.int,
            let digest = json["digest"]?.string
        else { return nil }
        self.init(arm: arm, phase: phase, learningRate: rate, seed: seed, digest: digest)
        value = json["value"]?.double
        failure = json["failure"]?.string
        parameters = json["parameters"]?.int ?? 0
        adapterBytes = json["adapter_bytes"]?.int ?? 0
        peakBytes = json["peak_bytes"]?.int ?? 0
        secondsPerStep = json["seconds_per_step"]?.double ?? 0
        curve = (json["curve"]?.array ?? []).compactMap { point in
            guard let pair = point.array, pair.count == 2, let step = pair[0].int, let loss = pair[1].double
            else { return nil }
            return LossPlot.Point(step: step, loss: loss)
        }
    }
}
