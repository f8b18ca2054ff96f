import ArgumentParser
import Graft

/// `graft merge`: a model with an adapter worked into its weights.
struct MergeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge",
        abstract: "Work an adapter into its model and write a Hugging Face folder.",
        discussion: """
            The weights are merged in float32 and rounded once, tensor by tensor. The folder holds safetensors, \
            configuration and tokenizer files, as transformers loads them; it appears whole or not at all.
            """)

    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String

    @Option(help: ArgumentHelp("A trained adapter: its folder, or the folder of its run.", valueName: "folder"))
    var adapter: String

    @Option(help: ArgumentHelp("The new folder.", valueName: "folder"))
    var output: String

    @Option(help: "The type of the merged weights; stored keeps a folder's own and takes float32 for a GGUF file.")
    var dtype = MergedType.stored

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
        let report = try merger.write(to: output)
        let comparison = verify ? try merger.verify(output, prompts: prompts(), dtype: .float32) : nil
        try json ? Output.write(Self.document(report, comparison)) : Output.write(Self.text(report, comparison))
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
            "output": .string(report.folder), "tensors": JSON(report.tensorCount),
            "changed_tensors": JSON(report.changes.count), "relative_rounding_loss": JSON(report.relativeLoss),
            "untied_head": .bool(report.isUntied),
            "changes": JSON(
                report.changes.map {
                    [
                        "name": .string($0.name), "dtype": .string("\($0.dtype)"), "update_norm": JSON($0.update),
                        "rounding_loss_norm": JSON($0.loss), "relative_rounding_loss": JSON($0.relativeLoss),
                    ]
                }),
        ]
        if let comparison {
            json["verify"] = [
                "largest_logit_difference": JSON(comparison.largestDifference),
                "largest_logit": JSON(comparison.largestLogit), "argmax_agreement": JSON(comparison.argmaxAgreement),
                "positions": JSON(comparison.positions),
            ]
        }
        return .object(json)
    }

    private static func text(_ report: MergeReport, _ comparison: MergeComparison?) -> String {
        var facts = [
            ("merged", "\(report.changes.count) of \(report.tensorCount) tensors"),
            ("lost to rounding", "\(Units.percent(report.relativeLoss, decimals: 4)) of the update"),
        ]
        if let worst = report.changes.max(by: { $0.relativeLoss < $1.relativeLoss }), worst.relativeLoss > 0 {
            facts.append(("most of all in", "\(worst.name): \(Units.percent(worst.relativeLoss, decimals: 4))"))
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

/// A value of `--dtype` for a merged model.
enum MergedType: String, ExpressibleByArgument, CaseIterable {
    case stored, float32, bfloat16, float16

    /// The dtype, or nil for that of each stored tensor.
    var dtype: DType? { DType(name: rawValue) }
}
