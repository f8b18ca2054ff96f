import Backbones
import Formats
import PEFT
import Torch

/// What a recipe would do: trainable parameters, memory, steps, and the first row with its trained tokens marked.
///
/// Making a plan loads model and data, and trains nothing.
public struct TrainingPlan: Sendable {
    /// A part of the memory.
    public struct Part: Sendable {
        /// What it is.
        public let name: String
        /// How large it is.
        public let bytes: Int
    }

    /// The recipe with every setting written down.
    public let recipe: Recipe
    /// The values that are trained.
    public let trainableParameters: Int
    /// The values of the pretrained model.
    public let modelParameters: Int
    /// The memory part by part, which adds up to the predicted peak.
    public let memory: [Part]
    /// The adapter's file, about.
    public let adapterFileBytes: Int
    /// The rows of the data; those dropped are not among them.
    public let rows: Int
    /// The tokens of the data.
    public let tokens: Int
    /// The tokens of the data that are part of the loss.
    public let supervisedTokens: Int
    /// The tokens of the longest row.
    public let longestRow: Int
    /// What there is to say about the rows, such as what was cut and dropped.
    public let notes: [String]
    /// The held-out rows.
    public let evalRows: Int
    /// The optimiser steps of the run.
    public let steps: Int
    /// The optimiser steps of one pass over the data.
    public let stepsPerEpoch: Int
    /// Whether the method has a way of its own to run the blocks.
    private let runsBlocksItself: Bool
    /// The first row with what is learnt of it.
    public let firstRow: MarkedRow

    /// The predicted peak of the process's memory, or of the accelerator's.
    public var peakBytes: Int { memory.reduce(0) { $0 + $1.bytes } }

    /// Makes the plan of a recipe.
    ///
    /// - Throws: What is wrong with the recipe, the model, the data or the method.
    public init(_ recipe: Recipe) throws {
        let setup = try TrainingSetup(recipe)
        let (backbone, adapter, data) = (setup.model.backbone, setup.adapter, setup.data)
        self.recipe = setup.recipe
        trainableParameters = adapter.parameterCount
        modelParameters = backbone.parameterCount
        runsBlocksItself = backbone.blockStack.execution != nil
        rows = data.count
        tokens = data.tokens
        supervisedTokens = data.supervisedTokens
        longestRow = data.longest
        notes = data.trainingNotes + (setup.evalData?.notes ?? [])
        evalRows = setup.evalData?.count ?? 0
        steps = try setup.totalSteps()
        stepsPerEpoch = setup.order.stepsPerEpoch
        let largest = try setup.largestBatch()
        let estimate = setup.checkpointing { largest.estimate(backbone, adapter) }
        memory = Self.parts(estimate, workSpace: largest.workSpace(of: backbone), on: backbone)
        let exported = try adapter.exported().tensors
        // Beside its values each tensor has an entry of about 80 bytes and its name.
        adapterFileBytes = exported.reduce(0) { $0 + $1.value.byteCount + $1.key.utf8.count + 80 }
        firstRow = try MarkedRow(data[0], of: data, tokenizer: setup.model.tokenizer)
    }

    private static func parts(_ estimate: MemoryEstimate, workSpace: Int, on backbone: any Backbone) -> [Part] {
        var parts = [
            Part(name: "frozen weights", bytes: estimate.weights), Part(name: "adapter", bytes: estimate.adapter),
            Part(name: "gradients", bytes: estimate.gradients),
            Part(name: "optimiser state", bytes: estimate.optimiser),
            Part(name: "activations", bytes: estimate.activations), Part(name: "logits", bytes: estimate.logits),
        ]
        if backbone.device == .cpu {
            // What this process holds now beside weights and adapter is what a training process would hold too.
            let rest = Memory.resident() - estimate.weights - estimate.adapter
            parts.append(Part(name: "program, engine, data", bytes: max(0, rest)))
            parts.append(Part(name: "kept for reuse", bytes: Memory.keptBytes))
            parts.append(Part(name: "engine's work space", bytes: workSpace))
        }
        return parts
    }
}

extension TrainingPlan {
    /// The plan for a terminal.
    ///
    /// - Parameter isColoured: Whether trained tokens are marked by colour; else they stand in `[[` and `]]`.
    public func text(isColoured: Bool = false) -> String {
        var table = TextTable(.left("memory"), .right("size"))
        for part in memory { table.append([part.name, Units.bytes(part.bytes)]) }
        table.append(["predicted peak", Units.bytes(peakBytes)])
        let share = Units.percent(Double(trainableParameters) / Double(max(modelParameters, 1)))
        let epochs = Units.fixed(Double(steps) / Double(max(stepsPerEpoch, 1)), decimals: 2)
        var lines = [
            "model      \(recipe.model), \(Units.count(modelParameters)) parameters, \(recipe.dtype.rawValue) on "
                + recipe.device.rawValue
                + (recipe.quantization == .none ? "" : ", quantization \(recipe.quantization.rawValue)"),
            "method     \(recipe.method): \(trainableParameters) trainable parameters (\(share)), adapter file about "
                + Units.bytes(adapterFileBytes),
            "data       \(recipe.data): \(rows) rows, \(tokens) tokens, \(supervisedTokens) of them trained, longest row "
                + "\(longestRow)",
            "blocks     \(checkpointingText)",
            "steps      \(steps) of \(recipe.batchSize * recipe.gradientAccumulationSteps) rows (\(epochs) passes over "
                + "the data)",
        ]
        if evalRows > 0 { lines.append("held out   \(recipe.evalData ?? ""): \(evalRows) rows") }
        lines += notes.map { "note       \($0)" }
        return lines.joined(separator: "\n") + "\n\n" + table.text() + "\n"
            + firstRow.heading("first row", isColoured: isColoured) + "\n" + firstRow.text(isColoured: isColoured)
            + "\n"
    }

    /// How many blocks are computed again, and why.
    private var checkpointingText: String {
        guard !runsBlocksItself else { return "run as the method says" }
        let why = "memory: \(recipe.memory.rawValue)"
        return switch recipe.gradientCheckpointing ?? .none {
        case .none: "kept for the backward pass (\(why))"
        case .all: "all computed again in the backward pass (\(why))"
        case .blocks(let count): "the lowest \(count) computed again in the backward pass (\(why))"
        }
    }

    /// The plan as an object, for `--json`.
    public var json: JSON {
        var parts = KeyedList<JSON>()
        for part in memory {
            parts[part.name.replacing(", ", with: "_").replacing(" ", with: "_").replacing("'s", with: "")] = JSON(
                part.bytes)
        }
        return [
            "recipe": recipe.json, "trainable_parameters": JSON(trainableParameters),
            "model_parameters": JSON(modelParameters), "memory_bytes": .object(parts),
            "peak_memory_bytes": JSON(peakBytes),
            "adapter_file_bytes": JSON(adapterFileBytes), "rows": JSON(rows), "tokens": JSON(tokens),
            "supervised_tokens": JSON(supervisedTokens), "longest_row": JSON(longestRow), "eval_rows": JSON(evalRows),
            "steps": JSON(steps), "steps_per_epoch": JSON(stepsPerEpoch),
            "notes": JSON(notes.map { .string($0) }), "first_row": firstRow.json,
        ]
    }
}
