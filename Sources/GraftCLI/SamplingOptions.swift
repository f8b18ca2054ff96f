import ArgumentParser
import Graft

/// Which words come next: the same for `generate` and `chat`.
struct SamplingOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The most tokens to write.", valueName: "count"))
    var maxTokens = 256

    @Option(
        help: ArgumentHelp("Above 0 draws tokens, the more freely the higher; 0 takes the likeliest.", valueName: "x"))
    var temperature = 0.0

    @Option(name: .customLong("top-k"), help: ArgumentHelp("Draw among the k likeliest tokens only.", valueName: "k"))
    var topK: Int?

    @Option(
        name: .customLong("top-p"),
        help: ArgumentHelp("Draw among the likeliest tokens that together have this probability.", valueName: "p"))
    var topP = 1.0

    @Option(help: ArgumentHelp("Above 1 makes tokens that are already there less likely.", valueName: "x"))
    var repetitionPenalty = 1.0

    @Option(help: ArgumentHelp("The seed of the draws.", valueName: "number"))
    var seed: UInt64 = 0

    func validate() throws {
        guard maxTokens > 0 else { throw ValidationError("--max-tokens must be at least 1.") }
        guard temperature >= 0, temperature.isFinite else {
            throw ValidationError("--temperature must be 0 or a positive number.")
        }
        if let topK, topK < 1 { throw ValidationError("--top-k must be at least 1.") }
        if temperature == 0, topK != nil || topP < 1 {
            throw ValidationError("--top-k and --top-p choose what is drawn from: give a --temperature above 0, too.")
        }
        guard topP > 0, topP <= 1 else { throw ValidationError("--top-p must be above 0 and at most 1.") }
        guard repetitionPenalty > 0, repetitionPenalty.isFinite else {
            throw ValidationError("--repetition-penalty must be a positive number.")
        }
    }

    /// The settings for the library.
    func settings(stops: [String] = []) -> GenerationSettings {
        GenerationSettings(
            maxTokens: maxTokens, temperature: temperature, topK: topK, topP: topP,
            repetitionPenalty: repetitionPenalty,
            stopStrings: stops, seed: Seed(seed))
    }
}
