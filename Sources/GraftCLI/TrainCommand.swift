import ArgumentParser
import Graft

/// `graft train`: a new adapter from a model and rows.
struct TrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train",
        abstract: "Train an adapter for a model on the rows of a file.",
        discussion: """
            Files are JSONL, JSON, CSV or TSV, each also gzip'd; a row is {"text"}, {"prompt", "completion"}, {"messages"}, \
            {"instruction", "input", "output"} or {"conversations"}, other columns are named by --column. The run \
            folder holds the recipe, the metrics, the adapter and the checkpoints. Ctrl-C stops after the current step \
            and writes a checkpoint, from which --resume goes on; it needs no option but --output. Under torchrun, or \
            any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, the processes share each step's rows \
            and learn the same as one.
            """)

    @Option(help: ArgumentHelp("A recipe, as in a run folder; options below win over it.", valueName: "file"))
    var recipe: String?

    @OptionGroup(title: "Recipe") var options: TrainOptions

    @Option(help: ArgumentHelp("The run folder, which is new or empty.", valueName: "folder"))
    var output: String?

    @Flag(help: "Go on with the run in the output folder.")
    var resume = false

    @Flag(help: "Show the plan and the first row with the tokens that are learnt marked; train nothing.")
    var dryRun = false

    @Flag(help: "Show where a step's time and memory go, and write it and a trace for Chrome to the run folder.")
    var profile = false

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        if resume && dryRun { throw ValidationError("--resume and --dry-run do not go together.") }
        if profile && (resume || dryRun) {
            throw ValidationError("--profile goes with a new run: leave out --resume and --dry-run.")
        }
        if resume && recipe != nil {
            throw ValidationError("--resume uses the recipe in the output folder: leave out --recipe.")
        }
    }

    func run() throws {
        let recipe = try makeRecipe()
        if dryRun {
            let plan = try TrainingPlan(recipe)
            return try json ? Output.write(plan.json) : Output.write(plan.text(isColoured: Output.hasColour))
        }
        guard let output else { throw ValidationError("Give --output, the folder of the run (or --dry-run).") }
        let measured = profile ? StepProfile() : nil
        let result =
            try resume
            ? Trainer.resume(output, recipe: recipe) : Trainer.run(recipe, output: output, profile: measured)
        // Of several processes that share a run, one speaks.
        if try LaunchEnvironment.current()?.rank ?? 0 == 0 {
            try json ? Output.write(result.json) : Output.write(Self.text(result))
            if let measured, !json { try Output.write("\n" + measured.text) }
        }
        if result.isInterrupted { throw ExitCode(ExitStatus.interrupted) }
    }

    private func makeRecipe() throws -> Recipe {
        var recipe = Recipe()
        if let path = self.recipe { recipe = try Recipe(path: path) }
        if resume, let output {
            let begun = RunLayout(output).recipe
            // Without one the trainer says what is wrong with the folder.
            if PathKind(begun) == .file { recipe = try Recipe(path: begun) }
        }
        try options.apply(to: &recipe)
        return recipe
    }

    private static func text(_ result: TrainingResult) -> String {
        var facts = [
            ("steps", "\(result.steps) of \(result.totalSteps)"),
            (
                "trained",
                "\(Units.count(result.trainableParameters)) parameters on \(Units.count(result.tokens)) tokens"
            ),
            ("time", Units.duration(result.seconds)), ("peak memory", Units.bytes(result.peakMemoryBytes)),
        ]
        if let loss = result.loss { facts.append(("training loss", Units.loss(loss))) }
        if let after = result.evaluationAfter {
            let before = result.evaluationBefore.map { Units.loss($0.loss) + " before, " } ?? ""
            facts.append(("held-out loss", before + Units.loss(after.loss) + " after"))
        }
        facts.append(("run folder", result.output))
        if let adapter = result.adapter { facts.append(("adapter", adapter)) }
        return aligned(facts)
    }
}
