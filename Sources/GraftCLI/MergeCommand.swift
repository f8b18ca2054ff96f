import ArgumentParser
import Graft

/// `graft merge`: a model with an adapter worked into its weights.
struct MergeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge",
        abstract: "Work an adapter into its model and write a Hugging Face folder.",
        discussion: """
            The weights are merged in float32 and rounded once, tensor by tensor. The folder holds safetensors, \
            configuration and tokenizer files, as transformers loads them; it appears whole or not at all. An adapter \
            that was trained over quantised weights (nf4, int8) is merged into the original ones, or with --base \
            dequantised into what it was trained over; how far these two are apart is shown. The run's recipe says \
            how weights were held, for an adapter without one --quantization does.
            """)

    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String

    @Option(help: ArgumentHelp("A trained adapter: its folder, or the folder of its run.", valueName: "folder"))
    var adapter: String

    @Option(help: ArgumentHelp("The new folder.", valueName: "folder"))
    var output: String

    @Option(help: "The type of the merged weights; stored keeps a folder's own and takes float32 for a GGUF file.")
    var dtype = MergedType.stored

    @Option(help: "What an adapter over quantised weights is merged into: original or dequantised ones.")
    var base: MergeBase?

    @Option(help: "How weights were held when the adapter was trained. (default: as its run's recipe says)")
    var quantization: Quantization?

    @Flag(inversion: .prefixedNo, help: "With --quantization nf4: whether scales were quantised, too.")
    var doubleQuant = true

    @Flag(help: "Run both models and show the largest difference of their logits.")
    var verify = false

    @Option(help: ArgumentHelp("Threads of one operator (default: all cores).", valueName: "count"))
    var threads: Int?

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        if let threads, threads < 1 { throw ValidationError("--threads must be at least 1.") }
    }

    func run() throws {
        if let threads { try Machine.setThreads(threads) }
        let checkpoint = try Checkpoint(model)
        var merger = Merger(checkpoint, adapter: adapterFolder(adapter))
        merger.dtype = dtype.dtype
        merger.form = try trainedForm()
        if let base {
            if base == .dequantised, merger.form == .plain {
                throw ValidationError(
                    "--base dequantised: nothing says that the adapter was trained over quantised weights; name how, such as "
                        + "--quantization nf4.")
            }
            merger.base = base
        }
        let report = try merger.write(to: output)
        let comparison = verify ? try merger.verify(output, prompts: prompts(), dtype: .float32) : nil
        try json ? Output.write(Self.document(report, comparison)) : Output.write(Self.text(report, comparison))
    }

    /// How weights were held in training: as was said, else as the recipe says that lies with the adapter.
    private func trainedForm() throws -> WeightForm {
        if let quantization { return quantization.form(doubleQuant: doubleQuant) }
        guard let begun = try runRecipe(ofAdapter: adapter) else { return .plain }
        return begun.quantization.form(doubleQuant: begun.doubleQuant)
    }

    /// Some text of several kinds as tokens of the model.
    private func prompts() throws -> [[Int]] {
        let tokenizer = try Tokenizer(ofModel: model)
        return [
            "The quick brown fox jumps over the lazy dog, and nobody saw it coming.",
            "def mean(values):\n    return sum(values) / len(values)\n",
            "In 1969, two people walked on the Moon; the third one stayed in orbit.",
        ].map { tokenizer.encode($0) }
    }

    private static func document(_ report: MergeReport, _ comparison: MergeComparison?) -> JSON {
        var json: KeyedList<JSON> = [
            "output": .string(report.folder), "base": .string(report.base), "tensors": JSON(report.tensorCount),
            "changed_tensors": JSON(report.changes.count), "relative_rounding_loss": JSON(report.relativeLoss),
            "untied_head": .bool(report.isUntied),
            "changes": JSON(report.changes.map(Self.entry)),
        ]
        if let moved = report.relativeQuantisation { json["quantisation_over_update"] = JSON(moved) }
        if let comparison {
            json["verify"] = [
                "largest_logit_difference": JSON(comparison.largestDifference),
                "largest_logit": JSON(comparison.largestLogit), "argmax_agreement": JSON(comparison.argmaxAgreement),
                "positions": JSON(comparison.positions),
            ]
        }
        return .object(json)
    }

    private static func entry(_ change: MergeReport.Change) -> JSON {
        var entry: KeyedList<JSON> = [
            "name": .string(change.name), "dtype": .string("\(change.dtype)"), "update_norm": JSON(change.update),
            "rounding_loss_norm": JSON(change.loss), "relative_rounding_loss": JSON(change.relativeLoss),
        ]
        if let moved = change.quantisation { entry["quantisation_norm"] = JSON(moved) }
        return .object(entry)
    }

    private static func text(_ report: MergeReport, _ comparison: MergeComparison?) -> String {
        var facts = [
            ("merged", "\(report.changes.count) of \(report.tensorCount) tensors"), ("into", report.base),
            ("lost to rounding", "\(Units.percent(report.relativeLoss, decimals: 4)) of the update"),
        ]
        if let worst = report.changes.max(by: { $0.relativeLoss < $1.relativeLoss }), worst.relativeLoss > 0 {
            facts.append(("most of all in", "\(worst.name): \(Units.percent(worst.relativeLoss, decimals: 4))"))
        }
        if let moved = report.relativeQuantisation {
            facts.append(("moved by quantising", "\(Units.fixed(moved, decimals: 2)) times the update"))
            for change in report.changes {
                guard let moved = change.quantisation, change.update > 0 else { continue }
                facts.append(("  " + change.name, Units.fixed(moved / change.update, decimals: 2)))
            }
        }
        if report.isUntied { facts.append(("output head", "a tensor of its own now; the base shared the embedding")) }
        if let comparison {
            let size =
                "\(Units.scientific(comparison.largestDifference)) (logits reach \(Units.loss(comparison.largestLogit)))"
            facts.append(("largest logit difference", size))
            facts.append(
                (
                    "same likeliest token",
                    "\(Units.percent(comparison.argmaxAgreement)) of \(comparison.positions) positions"
                ))
        }
        return aligned(facts + [("folder", report.folder)])
    }
}

extension MergeBase: ExpressibleByArgument {}

/// A value of `--dtype` for a merged model.
enum MergedType: String, ExpressibleByArgument, CaseIterable {
    case stored, float32, bfloat16, float16

    /// The dtype, or nil for that of each stored tensor.
    var dtype: DType? { DType(name: rawValue) }
}
