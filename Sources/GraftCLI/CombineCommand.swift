import ArgumentParser
import Graft

/// `graft combine`: one adapter of several.
struct CombineCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "combine",
        abstract: "Make one LoRA adapter of several, by the rules and names of peft's add_weighted_adapter.",
        discussion: """
            cat is the exact weighted sum, svd the sum cut to a rank. The rules whose name ends in svd act on the \
            updates of the weights and factor the result; linear, ties, dare_linear, dare_ties and magnitude_prune act \
            on LoRA's factors one by one, as in peft, and on the updates where an adapter is no plain LoRA. An adapter \
            whose effect is no low-rank update of weights is refused.
            """)

    @ArgumentParser.Argument(
        help: ArgumentHelp("Trained adapters: their folders, or the folders of their runs.", valueName: "adapter"))
    var adapters: [String]

    @Option(help: "How the adapters become one.")
    var method = CombinationRule.svd

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "A factor for each adapter, with commas between, negative ones too (default: 1 for each).",
            valueName: "x,y"))
    var weights: String?

    @Option(help: ArgumentHelp("The share of entries that ties, dare and magnitude_prune keep.", valueName: "share"))
    var density: Double?

    @Option(
        help: ArgumentHelp(
            "The rank of factored results (default: the largest of LoRA adapters; the lowest that is exact for others).",
            valueName: "r"))
    var rank: Int?

    @Option(help: "How ties elects the sign of an entry: by the sum of the values or by their number.")
    var majoritySign = CombinationRule.MajoritySign.total

    @Option(help: ArgumentHelp("The seed of what dare drops.", valueName: "number"))
    var seed: UInt64 = 42

    @Option(help: ArgumentHelp("The new folder.", valueName: "folder"))
    var output: String

    @Option(
        help: ArgumentHelp(
            "The base model, for adapters that are no plain LoRA (default: the one that the first adapter names).",
            valueName: "path"))
    var model: String?

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws { _ = try factors() }

    private func factors() throws -> [Double]? {
        try weights?.split(separator: ",", omittingEmptySubsequences: false).map { text in
            guard let factor = Double(text.filter { $0 != " " }) else {
                throw ValidationError("--weights: expected numbers with commas between, found \"\(text)\".")
            }
            return factor
        }
    }

    func run() throws {
        let folders = adapters.map(adapterFolder)
        var combination = AdapterCombination(method, weights: try factors(), density: density)
        combination.rank = rank
        combination.majoritySign = majoritySign
        combination.seed = Seed(seed)
        let base = BaseModel(model, adapters: folders)
        let report = try combination.combine(folders, to: output, backbone: base.backbone)
        if json {
            return try Output.write([
                "output": .string(output), "rank": JSON(report.rank), "layers": JSON(report.layers),
                "lost": JSON(report.lost),
            ])
        }
        try Output.write(
            aligned([
                ("combined", "\(folders.count) adapters by \(method.rawValue) in \(report.layers) layers"),
                ("rank", "\(report.rank)"), ("cut off by the rank", "\(Units.percent(report.lost)) of the update"),
                ("folder", output),
            ]))
    }
}

extension CombinationRule: ExpressibleByArgument {}
extension CombinationRule.MajoritySign: ExpressibleByArgument {}
