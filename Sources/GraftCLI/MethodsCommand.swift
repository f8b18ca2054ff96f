import ArgumentParser
import Graft

/// `graft methods`: the registry as a table, or one method with its hyper-parameters.
struct MethodsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "methods",
        abstract: "List the methods, or show the settings of one.",
        discussion: "Settings are given to 'graft train' as --set key=value, or in a recipe.")

    @ArgumentParser.Argument(help: "A method; without one all are listed.")
    var name: String?

    @Flag(help: "Write JSON.")
    var json = false

    @Flag(help: "Write Markdown, as in the documentation.")
    var markdown = false

    func validate() throws {
        if json && markdown { throw ValidationError("Choose --json or --markdown, not both.") }
    }

    func run() throws {
        if let name { try show(MethodRegistry.entry(name)) } else { try list() }
    }

    private func list() throws {
        if json { return try Output.write(.array(MethodRegistry.entries.map(\.json))) }
        var table = TextTable(.left("method"), .left("called"), .left("what it does"), .left("paper"))
        if markdown {
            table = TextTable(.left("method"), .left("called"), .left("what it does"), .left("paper"), .left("kind"))
        }
        for entry in MethodRegistry.entries {
            if markdown {
                let paper = "[\(entry.paper)](https://arxiv.org/abs/\(entry.paper))"
                table.append(["`\(entry.name)`", entry.title, entry.summary, paper, entry.kind])
            } else {
                table.append([entry.name, entry.title, entry.summary, "arXiv \(entry.paper)"])
            }
        }
        try Output.write(markdown ? table.markdown() : table.text())
    }

    private func show(_ entry: MethodRegistry.Entry) throws {
        if json { return try Output.write(entry.detailedJSON()) }
        let quote = markdown ? "`" : ""
        func table(_ title: String, _ settings: [Setting]) -> String {
            var table = TextTable(.left(title), .left("default"), .left("meaning"))
            for setting in settings {
                table.append([quote + setting.key + quote, quote + setting.value.compact + quote, setting.summary])
            }
            return markdown ? table.markdown() : table.text()
        }
        let paper = "https://arxiv.org/abs/\(entry.paper)"
        let method = try entry.make()
        try Output.write(
            """
            \(markdown ? "## " : "")\(entry.title)

            \(entry.summary) Kind: \(entry.kind). \(paper)

            \(table("setting", Setting.of(method)))
            \(table("where", Setting.ofSelection()))
            """)
    }
}

/// A key after `--set` with its default.
private struct Setting {
    let key: String
    let value: JSON
    let summary: String
    let form: String

    var json: JSON {
        ["key": .string(key), "default": value, "form": .string(form), "meaning": .string(summary)]
    }

    /// The hyper-parameters of a method.
    static func of<M: Method>(_ method: M) -> [Setting] {
        let values = method.settings
        return M.fields.map {
            Setting(key: $0.name, value: values[$0.name] ?? .null, summary: $0.summary, form: $0.form)
        }
    }

    /// The parts of the model, which are settings of every method.
    static func ofSelection() -> [Setting] {
        let selection = Selection()
        return Selection.fields.map {
            Setting(key: $0.name, value: $0.read(selection), summary: $0.summary, form: $0.form)
        }
    }
}

extension MethodRegistry.Entry {
    fileprivate var json: JSON {
        [
            "name": .string(name), "title": .string(title), "summary": .string(summary), "paper": .string(paper),
            "kind": .string(kind), "peft_type": .string(type.peftType),
        ]
    }

    fileprivate func detailedJSON() throws -> JSON {
        var json = json
        json["settings"] = JSON(Setting.of(try make()).map(\.json))
        json["selection"] = JSON(Setting.ofSelection().map(\.json))
        return json
    }
}
