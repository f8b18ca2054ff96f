import Formats
import Foundation
import TestSupport
import Testing

/// Help, versions and wrong command lines, which need no engine.
@Suite struct HelpTests {
    static let verbs = [
        "train", "eval", "compare", "merge", "combine", "compress", "generate", "chat", "tokenize", "data", "inspect",
        "methods", "doctor",
    ]

    @Test(arguments: [[]] + verbs.map { [$0] })
    func helpNeedsNoEngine(_ verb: [String]) async throws {
        let result = try await graft(
            verb + ["--help"], environment: ["GRAFT_ENGINE": "/nonexistent", "LD_DEBUG": "files"])
        #expect(result.status == 0)
        #expect(result.output.contains("USAGE: graft"))
        // The dynamic linker tells every file that it opens.
        #expect(result.errors.contains("libc.so"))
        #expect(!result.errors.contains("libtorch"))
        #expect(!result.errors.contains("libgraft_torch"))
    }

    @Test func rootListsEveryVerb() async throws {
        let result = try await graft("--help")
        for verb in Self.verbs { #expect(result.output.contains("\n  \(verb) ")) }
        let bare = try await graft([])
        #expect(bare.status == 0 && bare.output == result.output)
    }

    @Test func version() async throws {
        let result = try await graft("--version")
        #expect(result.status == 0)
        #expect(result.output.wholeMatch(of: /\d+\.\d+\.\d+\n/) != nil)
    }

    @Test func unknownVerb() async throws {
        try await graft("trian").expectFailure(64, "\"trian\"", "Did you mean \"train\"?")
        try await graft("help", "trian").expectFailure(64, "\"trian\"", "Did you mean \"train\"?")
        try await graft("quux").expectFailure(64, "\"quux\"", "train, eval")
    }

    @Test func unknownFlag() async throws {
        try await graft("train", "--batchsize", "3").expectFailure(64, "--batchsize", "--batch-size")
    }

    @Test(arguments: [
        (["train", "--steps", "many"], "--steps"),
        (["train", "--model", "m", "--data", "d"], "--output"),
        (["train", "--output", "o", "--set", "r"], "key=value"),
        (["train", "--output", "o", "--steps", "1", "--epochs", "1"], "--epochs"),
        (["train", "--output", "o", "--dtype", "float16"], "float16"),
        (["eval", "--model", "m"], "--data"),
        (["eval", "--model", "m", "--data", "d", "--batch-size", "0"], "--batch-size"),
        (["generate", "--model", "m"], "--prompt"),
        (["generate", "--model", "m", "--prompt", "a", "--chat", "b"], "--chat"),
        (["generate", "--model", "m", "--prompt", "a", "--temperature", "nan"], "--temperature"),
        (["generate", "--model", "m", "--prompt", "a", "--top-p", "0"], "--top-p"),
        (["merge", "--model", "m"], "--adapter"),
        (["combine", "a", "--output", "o", "--method", "sum"], "--method"),
        (["combine", "a", "--output", "o", "--weights", "1,x"], "--weights"),
        (["compress", "a", "--output", "o"], "--density"),
        (["compress", "a", "--output", "o", "--density", "0.1", "--decompress"], "--decompress"),
        (["generate", "--model", "m", "--prompt", "a", "--rows", "b"], "--rows"),
        (["generate", "--model", "m", "--rows", "b", "--adapter", "x/a", "--adapter", "y/a"], "\"a\""),
        (["generate", "--model", "m", "--rows", "b", "--stop", "x"], "--stop"),
        (["generate", "--model", "m", "--rows", "b", "--batch-size", "0"], "--batch-size"),
        (["inspect"], "path"),
        (["methods", "--json", "--markdown"], "--markdown"),
    ])
    func wrongCommandLine(_ arguments: [String], _ word: String) async throws {
        try await graft(arguments).expectFailure(64, word)
    }

    /// The page says every flag that there is, and no verb or flag that there is not.
    @Test func documentationIsComplete() async throws {
        let page = try String(contentsOfFile: RepositoryPaths.root + "/docs/cli.md", encoding: .utf8)
        let dump = try await graft("--experimental-dump-help").json()
        let commands = try #require(dump["command"]?["subcommands"]?.array)
        func flags(of command: JSON) -> Set<String> {
            var flags: Set<String> = []
            for argument in command["arguments"]?.array ?? [] {
                for name in argument["names"]?.array ?? [] where name["kind"]?.string == "long" {
                    flags.insert("--" + (name["name"]?.string ?? ""))
                }
            }
            return flags.subtracting(["--help", "--version"])
        }
        let training = flags(of: try #require(commands.first { $0["commandName"]?.string == "train" }))
        for command in commands {
            let verb = try #require(command["commandName"]?.string)
            if verb == "help" { continue }
            let section = try #require(
                page.components(separatedBy: "\n## graft \(verb)\n").dropFirst().first, "\(verb)"
            )
            .components(separatedBy: "\n## ")[0]
            let flags = flags(of: command)
            let written = Set(section.matches(of: /--[a-z][a-z-]*/).map { String($0.output) })
            // A comparison shares the options of its trainings.
            for flag in verb == "compare" ? flags.subtracting(training) : flags {
                #expect(written.contains(flag), "\(verb): docs/cli.md lacks \(flag)")
            }
            for flag in written where !["--help"].contains(flag) {
                #expect(flags.contains(flag), "\(verb): docs/cli.md has \(flag), which the program lacks")
            }
        }
    }
}
