import Formats
import PEFT
import Torch

/// Everything needed to run a training again: model, data, method and settings.
///
/// Keys are those of Hugging Face's `TrainingArguments` where it has them. A recipe is a value: change its properties,
/// write it as ``yaml``, read it back.
public struct Recipe: Sendable {
    /// A folder, a `.gguf` file, or an alias such as `smollm2-135m`.
    public var model = ""
    /// The files to learn from, with their weights.
    public var dataSources: [DataSource] = []
    /// The file with held-out rows, or nil.
    public var evalData: String?
    /// For keys of a row the column that each is read from; empty: rows are read as they are.
    public var columns: KeyedList<JSON> = [:]
    /// The share of a file's rows that may be left out because they cannot be used; 0: the first is an error.
    public var maxBadRows = 0.0
    /// Whether the tokens of large files are kept for the next run; see ``TokenCache``.
    public var usesCache = true
    /// What is learnt: `sft`, `dpo` or `classification`.
    public var objective = "sft"
    /// The objective's settings, and those of what is added to its loss; what is not named has its default.
    public var objectiveSettings: KeyedList<JSON> = [:]
    /// A name of the registry of methods.
    public var method = "lora"
    /// The method's hyper-parameters and the selection of modules; what is not named has its default.
    public var settings: KeyedList<JSON> = [:]
    /// Optimiser steps; nil: as many as ``epochs`` make.
    public var steps: Int?
    /// Passes over the data, where ``steps`` is nil; parts of one are allowed, and nil is one.
    public var epochs: Double?
    /// Rows of one forward pass.
    ///
    /// An optimiser step takes ``batchSize`` times ``gradientAccumulationSteps`` rows, whatever ``batchTokens`` makes of
    /// them and however many processes share them.
    public var batchSize = 8
    /// Forward passes of one optimiser step.
    public var gradientAccumulationSteps = 1
    /// Whether the rows of a forward pass lie in one sequence without filling, in which each sees itself alone.
    public var packing = false
    /// The most tokens of one forward pass, which then holds as many whole rows as fit; nil: ``batchSize`` rows.
    public var batchTokens: Int?
    /// Tokens beyond this many are cut off each row.
    public var maxLength = 1024
    /// The peak learning rate.
    public var learningRate = 2e-4
    /// The course of the learning rate after the warm-up.
    public var schedule = Schedule.Shape.linear
    /// Optimiser steps of the warm-up; nil: ``warmupRatio``.
    public var warmupSteps: Int?
    /// The share of the run that is warm-up, where ``warmupSteps`` is nil.
    public var warmupRatio = 0.0
    /// Decoupled weight decay.
    public var weightDecay = 0.0
    /// AdamW's first decay rate.
    public var adamBeta1 = 0.9
    /// AdamW's second decay rate.
    public var adamBeta2 = 0.999
    /// What AdamW adds to the root in the denominator.
    public var adamEpsilon = 1e-8
    /// The norm above which gradients are scaled down; 0: never.
    public var maxGradNorm = 1.0
    /// The dtype of frozen weights and activations.
    public var dtype = Precision.auto
    /// How the frozen weights of linear layers are held.
    public var quantization = Quantization.none
    /// Whether the scales of `nf4` are quantised, too (double quantisation).
    public var doubleQuant = true
    /// Where the model runs.
    public var device = DeviceChoice.auto
    /// What a run does with memory: whether blocks are computed again in the backward pass instead of being kept.
    public var memory = MemoryUse.auto
    /// The blocks that are computed again; nil: ``memory`` decides.
    public var gradientCheckpointing: GradientCheckpointing?
    /// Every random number of the run comes from it.
    public var seed = 42
    /// Processor threads of one operator; nil: as many as the engine chooses.
    public var threads: Int?
    /// Optimiser steps between evaluations on the held-out rows; nil: before the first and after the last step only.
    public var evalSteps: Int?
    /// Rows of one forward pass in evaluations; nil: as in training.
    public var evalBatchSize: Int?
    /// Optimiser steps between checkpoints; nil: one every ten minutes.
    public var saveSteps: Int?
    /// Checkpoints that are kept, the newest ones and that of the best evaluation; nil: all.
    public var saveTotalLimit: Int? = 2
    /// Whether the run ends with the adapter that had the lowest held-out loss, not with the last.
    public var loadBestModelAtEnd = false
    /// Optimiser steps between reports.
    public var loggingSteps = 1
    /// The versions of the programs that wrote the recipe, by name; they are not compared.
    public var versions: KeyedList<String> = [:]

    /// Makes a recipe with the defaults.
    ///
    /// - Parameters:
    ///   - model: A folder, a `.gguf` file, or an alias.
    ///   - data: The file to learn from.
    ///   - method: A name of the registry of methods.
    ///   - settings: The method's hyper-parameters and the selection of modules.
    public init(model: String = "", data: String = "", method: String = "lora", settings: KeyedList<JSON> = [:]) {
        self.model = model
        dataSources = data.isEmpty ? [] : [DataSource(data)]
        self.method = method
        self.settings = settings
    }

    /// The keys of a recipe with their meaning, in the order in which they are written.
    public static let fields: [Field<Recipe>] = [
        Field("model", \.model, "a folder, a .gguf file, or an alias such as smollm2-135m"),
        Field("data", \.dataValue, "the file to learn from, or a list of files or of {path, weight}"),
        Field("eval_data", \.evalData, "a file of held-out rows"),
        Field("columns", \.columnsValue, "keys of a row with the column that each is read from; else by their names"),
        Field("max_bad_rows", \.maxBadRows, "the share of rows that may be left out because they cannot be used"),
        Field("cache", \.usesCache, "whether the tokens of large files are kept for the next run"),
        Field("objective", \.objective, "what is learnt: sft, dpo or classification"),
        Field(
            "objective_settings", \.objectiveSettingsValue, "settings of the objective and of what is added to its loss"
        ),
        Field("method", \.method, "how to adapt; `graft methods` lists the names"),
        Field("settings", \.settingsValue, "hyper-parameters of the method and the selection of modules"),
        Field("steps", \.steps, "optimiser steps; else epochs counts"),
        Field("epochs", \.epochs, "passes over the data, where steps is not given; default 1"),
        Field("batch_size", \.batchSize, "rows of one forward pass"),
        Field("gradient_accumulation_steps", \.gradientAccumulationSteps, "forward passes of one optimiser step"),
        Field("packing", \.packing, "whether the rows of a forward pass lie in one sequence, each for itself"),
        Field("batch_tokens", \.batchTokens, "the most tokens of one forward pass; else batch_size counts its rows"),
        Field("max_length", \.maxLength, "tokens beyond this many are cut off each row"),
        Field("learning_rate", \.learningRate, "the peak learning rate"),
        Field("lr_scheduler_type", \.schedule, "the course of the learning rate after the warm-up"),
        Field("warmup_steps", \.warmupSteps, "optimiser steps of the warm-up; else warmup_ratio counts"),
        Field("warmup_ratio", \.warmupRatio, "the share of the run that is warm-up"),
        Field("weight_decay", \.weightDecay, "decoupled weight decay"),
        Field("adam_beta1", \.adamBeta1, "AdamW's first decay rate"),
        Field("adam_beta2", \.adamBeta2, "AdamW's second decay rate"),
        Field("adam_epsilon", \.adamEpsilon, "what AdamW adds to the root in the denominator"),
        Field("max_grad_norm", \.maxGradNorm, "the norm above which gradients are scaled down; 0: never"),
        Field("dtype", \.dtype, "dtype of frozen weights and activations"),
        Field("quantization", \.quantization, "how frozen weights are held"),
        Field("double_quant", \.doubleQuant, "whether the scales of nf4 are quantised, too"),
        Field("device", \.device, "where the model runs"),
        Field(
            "memory", \.memory,
            "low: blocks are computed again in the backward pass; fast: they are kept; auto: as fits"),
        Field("gradient_checkpointing", \.gradientCheckpointing, "which blocks those are; else memory decides"),
        Field("seed", \.seed, "every random number of the run comes from it"),
        Field("threads", \.threads, "processor threads of one operator"),
        Field("eval_steps", \.evalSteps, "optimiser steps between evaluations; else before and after the run only"),
        Field("eval_batch_size", \.evalBatchSize, "rows of one forward pass in evaluations; else batch_size"),
        Field("save_steps", \.saveSteps, "optimiser steps between checkpoints; else one every ten minutes"),
        Field("save_total_limit", \.saveTotalLimit, "checkpoints that are kept, beside the best; null: all"),
        Field("load_best_model_at_end", \.loadBestModelAtEnd, "end with the adapter of the lowest held-out loss"),
        Field("logging_steps", \.loggingSteps, "optimiser steps between reports"),
        Field("versions", \.versionsValue, "the programs that wrote the recipe"),
    ]

    /// Checks what can be checked without model, method and data.
    ///
    /// - Throws: ``TrainingError`` naming the key, or `ScheduleError`.
    public func validate() throws {
        func require(_ holds: Bool, _ key: String, _ found: String, _ expected: String) throws {
            guard holds else { throw TrainingError("\(key) is \(found); expected \(expected)") }
        }
        func positive(_ value: Int?, _ key: String) throws {
            guard let value else { return }
            try require(value > 0 && value < 1 << 31, key, "\(value)", "a positive whole number")
        }
        func within(_ value: Double, _ key: String, _ range: Range<Double>, _ words: String) throws {
            try require(range.contains(value), key, "\(value)", words)
        }
        for source in dataSources { try source.validate() }
        for (value, key) in [(model, "model"), (data, "data")] where value.isEmpty {
            throw TrainingError("the recipe names no \(key); give --\(key), or the key \"\(key)\"")
        }
        if let steps, let epochs {
            throw TrainingError("both steps (\(steps)) and epochs (\(epochs)) are given; give one of them")
        }
        for (value, key) in [
            (steps, "steps"), (batchSize, "batch_size"), (gradientAccumulationSteps, "gradient_accumulation_steps"),
            (batchTokens, "batch_tokens"),
            (threads, "threads"), (evalSteps, "eval_steps"), (evalBatchSize, "eval_batch_size"),
            (saveSteps, "save_steps"), (saveTotalLimit, "save_total_limit"), (loggingSteps, "logging_steps"),
        ] { try positive(value, key) }
        if loadBestModelAtEnd, evalData == nil {
            throw TrainingError("load_best_model_at_end needs held-out rows to tell the best by; give eval_data")
        }
        if let gradientCheckpointing, let implied = memory.checkpointing, implied != gradientCheckpointing {
            throw TrainingError(
                "memory is \(memory.rawValue), but gradient_checkpointing is \(gradientCheckpointing.json.compact); give "
                    + "one of them")
        }
        if let epochs {
            try within(epochs, "epochs", .leastNonzeroMagnitude..<1e6, "a positive number below a million")
        }
        try require(maxLength > 1 && maxLength < 1 << 31, "max_length", "\(maxLength)", "a whole number of at least 2")
        try within(learningRate, "learning_rate", 0..<1e6, "a number of at least 0")
        try within(maxBadRows, "max_bad_rows", 0..<1.nextUp, "a share from 0 to 1")
        for (key, value) in columns where value.string == nil {
            throw TrainingError("columns, \(key): expected the name of a column, found \(value.compact)")
        }
        _ = try RowColumns(columnNames)
        try within(weightDecay, "weight_decay", 0..<1e6, "a number of at least 0")
        try within(adamBeta1, "adam_beta1", 0..<1, "a number in 0..<1")
        try within(adamBeta2, "adam_beta2", 0..<1, "a number in 0..<1")
        try within(adamEpsilon, "adam_epsilon", 0..<1, "a number in 0..<1")
        try within(maxGradNorm, "max_grad_norm", 0..<1e12, "a number of at least 0")
        try require(seed >= 0, "seed", "\(seed)", "a number of at least 0")
        _ = try makeSchedule(totalSteps: steps ?? 1)
        _ = try lossFunction()
    }

    /// What the run minimises.
    ///
    /// - Throws: ``TrainingError`` for an unknown objective or setting, with the nearest one, or a wrong value.
    package func lossFunction() throws -> LossFunction { try LossFunction(objective, settings: objectiveSettings) }

    /// The learning rate's course over a run.
    ///
    /// - Throws: `ScheduleError` when the warm-up is none.
    public func makeSchedule(totalSteps: Int) throws -> Schedule {
        let warmUp = warmupSteps.map(Schedule.WarmUp.steps) ?? .ratio(warmupRatio)
        return try Schedule(schedule, warmUp: warmUp, totalSteps: totalSteps)
    }

    /// The method with its settings.
    ///
    /// - Throws: `PEFTError` for an unknown method or key, or a value of the wrong form.
    public func adapterConfiguration() throws -> AdapterConfiguration {
        try AdapterConfiguration(method: method, settings: settings)
    }
}

extension Schedule.Shape: FieldValue {}

/// A mapping of a recipe as a field's value.
struct MappingValue: FieldValue {
    var pairs: KeyedList<JSON>

    static var form: String { "a mapping" }

    init(_ pairs: KeyedList<JSON>) {
        self.pairs = pairs
    }

    init?(json: JSON) {
        if json.isNull {
            pairs = [:]
        } else if let object = json.object {
            pairs = object
        } else {
            return nil
        }
    }

    var json: JSON { .object(pairs) }
}

extension Recipe {
    /// The file to learn from; of several files with weights their names, see ``dataSources``.
    public var data: String {
        get { dataSources.map(\.description).joined(separator: ", ") }
        set { dataSources = newValue.isEmpty ? [] : [DataSource(newValue)] }
    }

    /// How the files are read.
    public var dataOptions: Dataset.Options {
        var options = Dataset.Options(maxLength: maxLength, cache: usesCache ? .standard : nil)
        options.columns = columnNames
        options.maxBadRows = maxBadRows
        options.rows = (try? Objectives.type(objective))?.rows ?? .text
        return options
    }

    private var columnNames: KeyedList<String> {
        var names = KeyedList<String>()
        for (key, value) in columns { names[key] = value.string }
        return names
    }

    var dataValue: DataSourcesValue {
        get { DataSourcesValue(dataSources) }
        set { dataSources = newValue.sources }
    }

    var columnsValue: MappingValue {
        get { MappingValue(columns) }
        set { columns = newValue.pairs }
    }

    var objectiveSettingsValue: MappingValue {
        get { MappingValue(objectiveSettings) }
        set { objectiveSettings = newValue.pairs }
    }

    var settingsValue: MappingValue {
        get { MappingValue(settings) }
        set { settings = newValue.pairs }
    }

    var versionsValue: MappingValue {
        get {
            var pairs = KeyedList<JSON>()
            for (key, value) in versions { pairs.appendIfNew(key: key, value: JSON(value)) }
            return MappingValue(pairs)
        }
        set {
            versions = [:]
            for (key, value) in newValue.pairs { versions[key] = value.string ?? value.compact }
        }
    }
}
