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
            CommandGroup(name: "Adapt", subcommands: [TrainCommand.self, EvalCommand.self, MergeCommand.self]),
            CommandGroup(name: "Use", subcommands: [GenerateCommand.self, ChatCommand.self, TokenizeCommand.self]),
            CommandGroup(name: "Look", subcommands: [InspectCommand.self, MethodsCommand.self, DoctorCommand.self]),
        ])

    /// Parses and runs, and turns every error into a sentence and an exit code.
    static func main() {
        // A closed pipe is an error of the write that meets it, so that a run outlives the reader of its output.
        signal(SIGPIPE, SIG_IGN)
        // Likewise a file that outgrows the user's limit.
        signal(SIGXFSZ, SIG_IGN)
        do {
            try refuseUnknownVerb(CommandLine.arguments.dropFirst().first)
            var command = try parseAsRoot()
            try command.run()
        } catch {
            Failure.exit(with: error)
        }
    }

    /// ArgumentParser would call an unknown verb an unexpected argument.
    private static func refuseUnknownVerb(_ first: String?) throws {
        guard let first, !first.hasPrefix("-") else { return }
        let verbs = configuration.groupedSubcommands.flatMap(\.subcommands).map { $0._commandName }
        guard !verbs.contains(first), first != "help", !first.hasPrefix("___") else { return }
        throw ValidationError(
            "There is no verb \"\(first)\".\(suggestion(for: first, in: verbs)) The verbs are "
                + verbs.joined(separator: ", ") + ".")
    }
}
