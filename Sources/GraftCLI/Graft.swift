import ArgumentParser
import Graft

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The program: one verb a task.
@main
struct GraftCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "graft",
        abstract: "Fine-tune a transformer by training a small set of added or selected parameters.",
        usage: "graft <verb> [<options>]",
        discussion: """
            A model is a Hugging Face folder, a GGUF file, or the alias smollm2-135m of the model that 'make setup' \
            fetches.

            Results go to standard output, progress and errors to standard error. With --json a verb writes one JSON \
            document to standard output and nothing else.

            Exit codes: 0 done; 1 the run failed; 2 a model, adapter, data file, recipe or setting cannot be used; \
            64 the command line is wrong; 74 a file or folder cannot be written; 130 interrupted; 141 nobody reads \
            the output any more.
            """,
        version: graftVersion,
        groupedSubcommands: [
            CommandGroup(
                name: "Adapt",
                subcommands: [
                    TrainCommand.self, EvalCommand.self, CompareCommand.self, MergeCommand.self, CombineCommand.self,
                    CompressCommand.self,
                ]),
            CommandGroup(name: "Use", subcommands: [GenerateCommand.self, ChatCommand.self, TokenizeCommand.self]),
            CommandGroup(
                name: "Look",
                subcommands: [DataCommand.self, InspectCommand.self, MethodsCommand.self, DoctorCommand.self]),
        ])

    /// Parses and runs, and turns every error into a sentence and an exit code.
    static func main() {
        // A closed pipe is an error of the write that meets it, so that a run outlives the reader of its output.
        signal(SIGPIPE, SIG_IGN)
        // Likewise a file that outgrows the user's limit.
        signal(SIGXFSZ, SIG_IGN)
        do {
            try refuseUnknownVerb(Array(CommandLine.arguments.dropFirst()))
            var command = try parseAsRoot()
            try command.run()
        } catch {
            Failure.exit(with: error)
        }
    }

    /// ArgumentParser would call an unknown verb an unexpected argument, and show its general help for `graft help trian`.
    private static func refuseUnknownVerb(_ arguments: [String]) throws {
        let asked = arguments.first == "help" ? arguments.dropFirst().first : arguments.first
        guard let asked, !asked.hasPrefix("-"), !asked.hasPrefix("___") else { return }
        let verbs = configuration.groupedSubcommands.flatMap(\.subcommands).map { $0._commandName }
        guard !verbs.contains(asked), asked != "help" else { return }
        throw ValidationError(
            "There is no verb \"\(asked)\".\(suggestion(for: asked, in: verbs)) The verbs are "
                + verbs.joined(separator: ", ") + ".")
    }
}
