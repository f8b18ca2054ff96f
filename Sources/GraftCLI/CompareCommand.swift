import ArgumentParser
import Foundation
import Graft

/// `graft compare`: methods side by side on one task.
struct CompareCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "compare",
        abstract: "Train several methods on one task at equal effort, and show what each comes to.",
        discussion: """
            For each method the learning rate is searched on a part of the training rows, then it is trained with \
            every seed on all of them and measured on the held-out rows. Every trial is a process of its own, so that \
            its memory is its own, and a line of trials.jsonl in the output folder; a comparison that was interrupted, \
            or gets more methods, trains only what is missing. The folder gets the table as comparison.md and \
            comparison.json, and one page with curves, comparison.html.
            """)

    @Option(
        help: ArgumentHelp("The methods, separated by commas; 'graft methods' lists the names.", valueName: "names"))
    var methods: String

    @Option(help: ArgumentHelp("A recipe that all trials share; options below win over it.", valueName: "file"))
    var recipe: String?

    @OptionGroup(title: "Recipe") var options: TrainOptions

    @Option(help: ArgumentHelp("The learning rates that the search begins with.", valueName: "numbers"))
    var learningRates = "3e-4,2e-3,1e-2"

    @Option(help: ArgumentHelp("How many seeds each method is trained with.", valueName: "count"))
    var seeds = 3

    @Option(help: ArgumentHelp("The share of the training rows that the search judges by.", valueName: "share"))
    var searchShare = 0.2

    @Option(help: ArgumentHelp("A number of the evaluation, such as loss or accuracy.", valueName: "name"))
    var metric = "loss"

    @Option(help: ArgumentHelp("The folder of the comparison.", valueName: "folder"))
    var output: String

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        if options.method != nil { throw ValidationError("Give --methods, not --method.") }
        if options.lr != nil { throw ValidationError("Give --learning-rates, not --lr: every method has its own.") }
        guard seeds > 0 else { throw ValidationError("--seeds must be at least 1.") }
        guard rates.allSatisfy({ $0 != nil }) else {
            throw ValidationError("--learning-rates takes numbers separated by commas; found \"\(learningRates)\".")
        }
    }

    private var rates: [Double?] { learningRates.split(separator: ",").map { Double($0) } }

    func run() throws {
        let comparison = try makeComparison()
        let program = try Self.program()
        let trials = try comparison.run { recipe, folder in
            try TrialProcess(program: program).train(recipe, in: folder)
        } note: {
            Output.note($0)
        }
        let report = ComparisonReport(trials, of: comparison)
        let shared = comparison.recipe
        let page = ComparisonPage(
            report, title: "\(report.rows.count) methods on \(shared.model)",
            subtitle: "\(shared.data), \(shared.steps.map { "\($0) steps" } ?? "\(shared.epochs ?? 1) epochs") of "
                + "\(shared.batchSize * shared.gradientAccumulationSteps) rows, \(seeds) seeds; the learning rate of each "
                + "method is searched on a part of the training rows")
        for (name, text) in [
            ("comparison.md", report.markdown), ("comparison.html", page.html()),
            ("comparison.json", report.json.compact + "\n"),
        ] { try AtomicFile.write(text, to: output + "/" + name) }
        try json ? Output.write(report.json) : Output.write(report.text)
    }

    private func makeComparison() throws -> Comparison {
        var shared = try recipe.map { try Recipe(path: $0) } ?? Recipe()
        var plain = options
        plain.set = []
        try plain.apply(to: &shared)
        let names = methods.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
        let arms = try names.map { name in
            let method = try MethodRegistry.entry(name).name
            return Comparison.Arm(method: method, settings: settings(of: method))
        }
        var comparison = Comparison(shared, arms: arms, output: output)
        comparison.learningRates = rates.compactMap { $0 }
        comparison.seeds = Array(1...seeds)
        comparison.searchShare = searchShare
        comparison.metric = metric
        return comparison
    }

    /// `--set lora.r=4` is for one method; `--set r=4` for every one.
    private func settings(of method: String) -> KeyedList<JSON> {
        var settings = KeyedList<JSON>()
        for text in options.set {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            let place = parts[0].split(separator: ".", maxSplits: 1).map(String.init)
            guard place.count == 1 || place[0] == method else { continue }
            settings[place[place.count - 1]] = (try? JSON.parse(parts[1])) ?? .string(parts[1])
        }
        return settings
    }

    private static func program() throws -> String {
        guard let path = Bundle.main.executablePath else {
            throw ValidationError("The path of this program is not known; call it by its path.")
        }
        return path
    }
}
