import ArgumentParser
import Foundation
import Graft

/// `graft compress`: an adapter as signs and one scale.
struct CompressCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "compress",
        abstract:
            "Make an adapter some tens of times smaller: the signs of its largest changes and one scale (ComPEFT).",
        discussion: """
            The folder holds adapter_model.ternary in the place of adapter_model.safetensors; every verb that takes an \
            adapter takes it. --decompress writes an ordinary folder again, which other programs read. Compressing \
            loses something: measure it with 'graft eval'. With several values of --alpha and --data, rows that are \
            neither learnt from nor tested with, the one with the lowest loss on these rows is taken.
            """)

    @ArgumentParser.Argument(
        help: ArgumentHelp("A trained adapter: its folder, or the folder of its run.", valueName: "adapter"))
    var adapter: String

    @Option(help: ArgumentHelp("The share of values that is kept, such as 0.1.", valueName: "share"))
    var density: Double?

    @Option(
        help: ArgumentHelp(
            "The size of the kept values in units of the deviation of all; several with commas between are tried on --data.",
            valueName: "x,y"))
    var alpha = "1"

    @Option(help: ArgumentHelp("The file of rows by whose loss alpha is chosen.", valueName: "file"))
    var data: String?

    @Option(
        help: ArgumentHelp(
            "The seed that the training began with, from which its start is drawn again. (default: the run's recipe says)",
            valueName: "number"))
    var seed: UInt64?

    @Option(help: ArgumentHelp("The new folder.", valueName: "folder"))
    var output: String

    @Option(
        help: ArgumentHelp(
            "The base model, for adapters whose start depends on it (default: the one that the adapter names).",
            valueName: "path"))
    var model: String?

    @Flag(help: "Turn a compressed adapter into an ordinary one instead.")
    var decompress = false

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        guard decompress != (density != nil) else {
            throw ValidationError("Give either --density, the share of values to keep, or --decompress.")
        }
        guard try alphas().count == 1 || data != nil else {
            throw ValidationError("Give --data, the rows by whose loss one of the values of --alpha is chosen.")
        }
    }

    private func alphas() throws -> [Double] {
        try alpha.split(separator: ",", omittingEmptySubsequences: false).map { text in
            guard let value = Double(text.filter { $0 != " " }) else {
                throw ValidationError("--alpha: expected numbers with commas between, found \"\(text)\".")
            }
            return value
        }
    }

    func run() throws {
        let folder = adapterFolder(adapter)
        let base = BaseModel(model, adapters: [folder])
        guard let density else {
            try AdapterCompression.decompress(folder, to: output, backbone: base.backbone)
            return try json ? Output.write(["output": .string(output)]) : Output.write(aligned([("folder", output)]))
        }
        let start = try seed ?? runRecipe(ofAdapter: folder).flatMap { UInt64(exactly: $0.seed) }
        var compression = AdapterCompression(density: density, seed: start.map { Seed($0) })
        let trials = try trials(of: compression, folder, base)
        let best = trials.filter { $0.loss.isFinite }.min { $0.loss < $1.loss }
        if let data, best == nil {
            throw PEFTError("\(data): no value of --alpha gives a loss that is a number; try smaller ones")
        }
        compression.alpha = try best?.alpha ?? alphas()[0]
        let report = try compression.compress(folder, to: output, backbone: base.backbone)
        try json
            ? Output.write(document(report, compression.alpha, trials))
            : Output.write(text(report, compression.alpha, trials))
    }

    private typealias Trial = (alpha: Double, loss: Double)

    /// What each alpha comes to on the rows; nothing without rows.
    private func trials(
        of compression: AdapterCompression, _ folder: String, _ base: BaseModel
    ) throws -> [Trial] {
        guard let data else { return [] }
        let model = try base.languageModel()
        let scratch = FileManager.default.temporaryDirectory.path + "/graft-compress-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        return try alphas().map { alpha in
            var compression = compression
            compression.alpha = alpha
            _ = try compression.compress(folder, to: scratch, backbone: base.backbone)
            let (adapted, adapter) = try model.adapted(from: scratch)
            defer { adapter.detach() }
            return (alpha, try adapted.evaluate(on: data).loss)
        }
    }

    private func document(_ report: AdapterCompression.Report, _ alpha: Double, _ trials: [Trial]) -> JSON {
        [
            "output": .string(output), "values": JSON(report.values), "kept": JSON(report.kept),
            "deviation": JSON(report.deviation), "scale": JSON(report.scale),
            "bytes_before": JSON(report.bytesBefore), "bytes_after": JSON(report.bytesAfter),
            "code_bytes": JSON(report.codeBytes), "entropy_bound_bytes": JSON(report.boundBits / 8),
            "ratio_to_16_bits": JSON(report.ratioTo16Bits), "alpha": JSON(alpha),
            "seed": report.seed.map { JSON(Int(truncatingIfNeeded: $0.value)) } ?? .null, "drawn": JSON(report.drawn),
            "trials": JSON(trials.map { ["alpha": JSON($0.alpha), "loss": JSON($0.loss)] }),
        ]
    }

    /// What the values are changes of.
    private func start(_ report: AdapterCompression.Report) -> String {
        guard let seed = report.seed else {
            return "zero, or what the settings and the model begin with; nothing is drawn from a seed"
        }
        return "drawn from the seed \(seed.value) for \(report.drawn) of \(report.tensors) tensors"
    }

    private func text(_ report: AdapterCompression.Report, _ alpha: Double, _ trials: [Trial]) -> String {
        let share = Double(report.kept) / Double(report.values)
        return aligned(
            trials.map { ("alpha \($0.alpha)", "loss \(Units.loss($0.loss))") } + [
                ("start", start(report)),
                ("kept", "\(report.kept) of \(report.values) values (\(Units.percent(share)))"),
                ("scale", "\(Units.scientific(report.scale)): \(alpha) x the deviation"),
                ("before", Units.bytes(report.bytesBefore)),
                (
                    "after",
                    "\(Units.bytes(report.bytesAfter)), of which \(Units.bytes(report.codeBytes)) are codes and the rest names"
                ),
                ("entropy bound", "\(Units.bytes(Int((report.boundBits / 8).rounded(.up)))) for the codes"),
                ("smaller", "\(Units.loss(report.ratioTo16Bits)) times than 16 bits a value"),
                ("folder", output),
            ])
    }
}
