import ArgumentParser
import Graft

/// What a run is: each option is a key of the recipe, and wins over the recipe's own value.
struct TrainOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String?

    @Option(
        help: ArgumentHelp(
            "A file to learn from, perhaps with a weight as in more.csv=0.5; may be repeated.", valueName: "file"))
    var data: [String] = []

    @Option(help: ArgumentHelp("A file of held-out rows.", valueName: "file"))
    var evalData: String?

    @OptionGroup(title: "Rows") var rows: RowOptions

    @Option(
        help: ArgumentHelp(
            "What to learn: sft (write), dpo (prefer) or classification (tell apart). (default: sft)",
            valueName: "name"))
    var objective: String?

    @Option(
        help: ArgumentHelp(
            "A setting of the objective, or of what is added to its loss, such as beta=0.2; may be repeated.",
            valueName: "key=value"))
    var objectiveSet: [String] = []

    @Option(help: ArgumentHelp("How to adapt; 'graft methods' lists the names. (default: lora)", valueName: "name"))
    var method: String?

    @Option(help: ArgumentHelp("A setting of the method, such as r=16; may be repeated.", valueName: "key=value"))
    var set: [String] = []

    @Option(help: ArgumentHelp("Optimiser steps.", valueName: "count"))
    var steps: Int?

    @Option(help: ArgumentHelp("Passes over the data, instead of --steps. (default: 1)", valueName: "number"))
    var epochs: Double?

    @Option(help: ArgumentHelp("Rows of one forward pass. (default: 8)", valueName: "count"))
    var batchSize: Int?

    @Option(help: ArgumentHelp("Forward passes of one optimiser step. (default: 1)", valueName: "count"))
    var accumulate: Int?

    @Flag(
        inversion: .prefixedNo,
        help: "Whether the rows of a forward pass lie in one sequence, each for itself. (default: --no-packing)")
    var packing: Bool?

    @Option(
        help: ArgumentHelp(
            "The most tokens of one forward pass, which then holds as many rows as fit. (default: --batch-size rows)",
            valueName: "count"))
    var batchTokens: Int?

    @Option(help: ArgumentHelp("Tokens beyond this many are cut off each row. (default: 1024)", valueName: "count"))
    var maxLength: Int?

    @Option(help: ArgumentHelp("The peak learning rate. (default: 2e-4)", valueName: "number"))
    var lr: Double?

    @Option(help: "The course of the learning rate after the warm-up. (default: linear)")
    var schedule: Schedule.Shape?

    @Option(help: ArgumentHelp("Optimiser steps of the warm-up.", valueName: "count"))
    var warmupSteps: Int?

    @Option(help: ArgumentHelp("The share of the run that is warm-up. (default: 0)", valueName: "share"))
    var warmupRatio: Double?

    @Option(help: ArgumentHelp("Decoupled weight decay. (default: 0)", valueName: "number"))
    var weightDecay: Double?

    @Option(
        help: ArgumentHelp("The norm above which gradients are scaled down; 0: never. (default: 1)", valueName: "norm"))
    var maxGradNorm: Double?

    @Option(help: ArgumentHelp("The seed of every random number. (default: 42)", valueName: "number"))
    var seed: Int?

    @Option(
        help: ArgumentHelp("Steps between evaluations. (default: before and after the run only)", valueName: "steps"))
    var evalEvery: Int?

    @Option(help: ArgumentHelp("Rows of one forward pass in evaluations. (default: --batch-size)", valueName: "count"))
    var evalBatchSize: Int?

    @Option(
        help: ArgumentHelp("Steps between checkpoints. (default: one every ten minutes)", valueName: "steps"))
    var saveEvery: Int?

    @Option(
        help: ArgumentHelp("Checkpoints that are kept, beside the best; 0 keeps all. (default: 2)", valueName: "count"))
    var keep: Int?

    @Flag(help: "End with the adapter of the lowest held-out loss, not with the last.")
    var loadBestModelAtEnd = false

    @Option(help: ArgumentHelp("Steps between reports. (default: 1)", valueName: "steps"))
    var logEvery: Int?

    @Option(help: "The type of frozen weights and activations. (default: auto)")
    var dtype: Precision?

    @Option(help: "How frozen weights are held; keep: the blocks of a GGUF file. (default: none)")
    var quantization: Quantization?

    @Flag(inversion: .prefixedNo, help: "Whether the scales of nf4 are quantised, too. (default: --double-quant)")
    var doubleQuant: Bool?

    @Option(help: "Where to compute. (default: auto)")
    var device: DeviceChoice?

    @Option(
        help: "low: blocks are computed again in the backward pass; fast: they are kept; auto: as fits. (default: auto)"
    )
    var memory: MemoryUse?

    @Option(help: ArgumentHelp("Threads of one operator. (default: all cores)", valueName: "count"))
    var threads: Int?

    func validate() throws {
        for text in set where text.split(separator: "=", maxSplits: 1).count < 2 || text.hasPrefix("=") {
            throw ValidationError("--set takes key=value, such as --set r=16; found \"\(text)\".")
        }
        for text in objectiveSet where text.split(separator: "=", maxSplits: 1).count < 2 || text.hasPrefix("=") {
            throw ValidationError(
                "--objective-set takes key=value, such as --objective-set beta=0.2; found \"\(text)\".")
        }
        if steps != nil && epochs != nil { throw ValidationError("Give either --steps or --epochs.") }
        if warmupSteps != nil && warmupRatio != nil {
            throw ValidationError("Give either --warmup-steps or --warmup-ratio.")
        }
        if let keep, keep < 0 { throw ValidationError("--keep must be 0 or more.") }
    }

    /// Puts what was given into a recipe.
    ///
    /// - Throws: `PEFTError` for an unknown method.
    func apply(to recipe: inout Recipe) throws {
        func take<Value>(_ value: Value?, _ place: WritableKeyPath<Recipe, Value>) {
            if let value { recipe[keyPath: place] = value }
        }
        func take<Value>(_ value: Value?, _ place: WritableKeyPath<Recipe, Value?>) {
            if let value { recipe[keyPath: place] = value }
        }
        take(model, \.model)
        if !data.isEmpty { recipe.dataSources = data.map { DataSource(argument: $0) } }
        rows.apply(to: &recipe)
        take(evalData, \.evalData)
        try takeMethod(&recipe)
        takeObjective(&recipe)
        // Of two ways to say one thing, the one that was given now counts.
        if steps != nil { recipe.epochs = nil }
        if epochs != nil { recipe.steps = nil }
        if warmupRatio != nil { recipe.warmupSteps = nil }
        take(steps, \.steps)
        take(epochs, \.epochs)
        take(batchSize, \.batchSize)
        take(accumulate, \.gradientAccumulationSteps)
        take(packing, \.packing)
        take(batchTokens, \.batchTokens)
        take(maxLength, \.maxLength)
        take(lr, \.learningRate)
        take(schedule, \.schedule)
        take(warmupSteps, \.warmupSteps)
        take(warmupRatio, \.warmupRatio)
        take(weightDecay, \.weightDecay)
        take(maxGradNorm, \.maxGradNorm)
        take(seed, \.seed)
        take(evalEvery, \.evalSteps)
        take(evalBatchSize, \.evalBatchSize)
        take(saveEvery, \.saveSteps)
        if let keep { recipe.saveTotalLimit = keep == 0 ? nil : keep }
        if loadBestModelAtEnd { recipe.loadBestModelAtEnd = true }
        take(logEvery, \.loggingSteps)
        take(dtype, \.dtype)
        take(quantization, \.quantization)
        take(doubleQuant, \.doubleQuant)
        take(device, \.device)
        if let memory { (recipe.memory, recipe.gradientCheckpointing) = (memory, nil) }
        take(threads, \.threads)
    }

    /// Another method than the recipe's keeps what the recipe selects, and none of the other method's settings.
    private func takeMethod(_ recipe: inout Recipe) throws {
        if let method, method != recipe.method {
            var kept = KeyedList<JSON>()
            for field in Selection.fields { kept[field.name] = recipe.settings[field.name] }
            recipe.method = try MethodRegistry.entry(method).name
            recipe.settings = kept
        }
        Self.take(set, into: &recipe.settings)
    }

    /// Another objective than the recipe's keeps none of the other one's settings.
    private func takeObjective(_ recipe: inout Recipe) {
        if let objective, objective != recipe.objective {
            recipe.objective = objective
            recipe.objectiveSettings = [:]
        }
        Self.take(objectiveSet, into: &recipe.objectiveSettings)
    }

    private static func take(_ given: [String], into settings: inout KeyedList<JSON>) {
        for text in given {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            settings[parts[0]] = (try? JSON.parse(parts[1])) ?? .string(parts[1])
        }
    }
}

extension Schedule.Shape: ExpressibleByArgument {}
extension MemoryUse: ExpressibleByArgument {}
