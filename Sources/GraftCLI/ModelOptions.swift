import ArgumentParser
import Graft

/// Which model, where and how it is held: the options of every verb that runs one.
struct ModelOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String

    @OptionGroup var machine: MachineOptions
}

/// The machine's part: the same for every verb that computes.
struct MachineOptions: ParsableArguments {
    @Option(help: "The type of weights and activations; auto is bfloat16 where the machine multiplies it faster.")
    var dtype = Precision.auto

    @Option(help: "Where to compute; auto is CUDA where there is a device.")
    var device = DeviceChoice.auto

    @Option(help: ArgumentHelp("Threads of one operator (default: all cores).", valueName: "count"))
    var threads: Int?

    func validate() throws {
        guard let threads else { return }
        guard (1...4096).contains(threads) else { throw ValidationError("--threads must be from 1 to 4096.") }
    }
}

extension Precision: ExpressibleByArgument {}
extension DeviceChoice: ExpressibleByArgument {}

/// Which words come next: the same for `generate` and `chat`.
struct SamplingOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The most tokens to write.", valueName: "count"))
    var maxTokens = 256

    @Option(help: ArgumentHelp("Above 0 draws tokens, the more freely the higher; 0 takes the likeliest.", valueName: "x"))
    var temperature = 0.0

    @Option(name: .customLong("top-k"), help: ArgumentHelp("Draw among the k likeliest tokens only.", valueName: "k"))
    var topK: Int?

    @Option(
        name: .customLong("top-p"),
        help: ArgumentHelp("Draw among the likeliest tokens that together have this probability.", valueName: "p"))
    var topP: Double?

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
        if let topP, !(topP > 0 && topP <= 1) { throw ValidationError("--top-p must be above 0 and at most 1.") }
        guard repetitionPenalty > 0, repetitionPenalty.isFinite else {
            throw ValidationError("--repetition-penalty must be a positive number.")
        }
    }
}
