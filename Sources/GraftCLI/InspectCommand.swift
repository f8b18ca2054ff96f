import ArgumentParser
import Graft

/// `graft inspect`: what is at a path.
struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Show what is in a model folder, GGUF or safetensors file, adapter, checkpoint or run folder.")

    @ArgumentParser.Argument(help: "A folder or file, or a model's alias.")
    var path: String

    @Flag(help: "Also list every tensor.")
    var tensors = false

    @Flag(help: "Write JSON.")
    var json = false

    func run() throws {
        let inspection = try Inspection(path: path)
        if json { return try Output.write(.object(inspection.json(listsTensors: tensors))) }
        try Output.write(inspection.text(listsTensors: tensors))
    }
}
