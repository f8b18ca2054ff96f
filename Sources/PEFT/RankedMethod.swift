import Formats

/// A method whose layers have a rank and a scale of their own, set as LoRA's are.
protocol RankedMethod: Method {
    var r: Int { get set }
    var loraAlpha: Double { get set }
    var loraDropout: Double { get set }
    var useRSLoRA: Bool { get set }
    var rankPattern: Pattern<Int> { get set }
    var alphaPattern: Pattern<Double> { get set }
}

extension RankedMethod {
    /// The settings of every layer.
    static var rankFields: [Field<Self>] {
        [
            Field("r", \.r, "rank of the update"),
            Field("lora_alpha", \.loraAlpha, "the update is scaled by lora_alpha / r"),
            Field("lora_dropout", \.loraDropout, "probability of zeroing an element of the adapter's input"),
            Field("use_rslora", \.useRSLoRA, "scale by lora_alpha / sqrt(r) instead"),
        ]
    }

    /// The settings of single layers.
    static var patternFields: [Field<Self>] {
        [
            Field("rank_pattern", \.rankPattern, "r for layers whose path matches"),
            Field("alpha_pattern", \.alphaPattern, "lora_alpha for layers whose path matches"),
        ]
    }

    /// Refuses ranks below one and a dropout that is no probability.
    func validateRanks() throws {
        try requirePositive(r, "r")
        for (key, rank) in rankPattern.entries { try requirePositive(rank, "rank_pattern, \"\(key)\"") }
        try requireProbability(loraDropout, "lora_dropout")
    }

    /// The values of two factors for every layer.
    func factorCount(in points: AttachPoints) throws -> Double {
        try points.linears.reduce(0) { sum, layer in
            sum + Double(try rankAndScale(of: layer.path).rank) * Double(layer.inFeatures + layer.outFeatures)
        }
    }

    /// A layer's rank, and the factor of its update: `alpha / r`, for rsLoRA `alpha / sqrt(r)`.
    func rankAndScale(of path: String) throws -> (rank: Int, scale: Double) {
        let rank = try rankPattern.value(for: path) ?? r
        let alpha = try alphaPattern.value(for: path) ?? loraAlpha
        return (rank, alpha / (useRSLoRA ? Double(rank).squareRoot() : Double(rank)))
    }
}
