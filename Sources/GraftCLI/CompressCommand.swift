import ArgumentParser
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
            loses something: measure it with 'graft eval', and tune --density and --alpha on held-out rows.
            """)

    @ArgumentParser.Argument(
        help: ArgumentHelp("A trained adapter: its folder, or the folder of its run.", valueName: "adapter"))
    var adapter: String

    @Option(help: ArgumentHelp("The share of values that is kept, such as 0.1.", valueName: "share"))
    var density: Double?

    @Option(help: ArgumentHelp("The size of the kept values in units of the deviation of all.", valueName: "x"))
    var alpha = 1.0

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
    }

    func run() throws {
        let folder = adapterFolder(adapter)
        let base = BaseModel(model, adapters: [folder])
        guard let density else {
            try AdapterCompression.decompress(folder, to: output, backbone: base.backbone)
            return try json ? Output.write(["output": .string(output)]) : Output.write(aligned([("folder", output)]))
        }
        let report = try AdapterCompression(density: density, alpha: alpha).compress(
            folder, to: output, backbone: base.backbone)
        try json ? Output.write(document(report)) : Output.write(text(report))
    }

    private func document(_ report: AdapterCompression.Report) -> JSON {
        [
            "output": .string(output), "values": JSON(report.values), "kept": JSON(report.kept),
            "deviation": JSON(report.deviation), "scale": JSON(report.scale),
            "bytes_before": JSON(report.bytesBefore), "bytes_after": JSON(report.bytesAfter),
            "code_bytes": JSON(report.codeBytes), "entropy_bound_bytes": JSON(report.boundBits / 8),
            "ratio_to_16_bits": JSON(report.ratioTo16Bits),
        ]
    }

    private func text(_ report: AdapterCompression.Report) -> String {
        let share = Double(report.kept) / Double(report.values)
        return aligned([
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
