import ArgumentParser
import Graft

/// Which model, with which adapter, where and how it is held: the options of every verb that runs one.
struct ModelOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String

    @Option(help: ArgumentHelp("A trained adapter: its folder, or the folder of its run.", valueName: "folder"))
    var adapter: [String] = []

    @Option(help: "The type of weights and activations; auto is bfloat16 where the machine multiplies it faster.")
    var dtype = Precision.auto

    @Option(help: "How frozen weights are held; keep: the blocks of a GGUF file, which text is generated from anyway.")
    var quantization: Quantization?

    @Flag(inversion: .prefixedNo, help: "Whether the scales of nf4 are quantised, too.")
    var doubleQuant = true

    @Option(help: "Where to compute; auto is CUDA where there is a device.")
    var device = DeviceChoice.auto

    @Option(help: ArgumentHelp("Threads of one operator (default: all cores).", valueName: "count"))
    var threads: Int?

    func validate() throws {
        guard let threads else { return }
        guard (1...4096).contains(threads) else { throw ValidationError("--threads must be from 1 to 4096.") }
    }

    /// Loads the model and puts the adapter to work in it.
    ///
    /// - Parameters:
    ///   - keepsBlocks: For generating text: multiplies the blocks of a GGUF file as they are.
    ///   - classifies: Whether the adapter may be one that tells texts apart.
    /// - Throws: What is wrong with the model or the adapter, or what the machine lacks.
    func load(keepsBlocks: Bool = false, classifies: Bool = false) throws -> LanguageModel {
        guard self.adapter.count < 2 else {
            throw ValidationError(
                "--adapter: give one; several go with 'graft generate --rows', and 'graft combine' makes one of them.")
        }
        let model = try loadModel(keepsBlocks: keepsBlocks)
        guard let adapter = self.adapter.first else { return model }
        if classifies { return try model.adapted(from: adapterFolder(adapter)).model }
        _ = try Adapter.load(from: adapterFolder(adapter), onto: model.backbone)
        return model
    }

    /// Loads the model without adapters.
    ///
    /// - Throws: What is wrong with the model, or what the machine lacks.
    func loadModel(keepsBlocks: Bool) throws -> LanguageModel {
        if let threads { try Machine.setThreads(threads) }
        try noteMerged()
        var form = quantization?.form(doubleQuant: doubleQuant) ?? .plain
        if keepsBlocks, form == .blocks { form = .multipliedBlocks }
        return try LanguageModel.load(
            model, dtype: dtype, device: device, form: form, keepsBlocks: keepsBlocks && quantization == nil)
    }
}

extension ModelOptions {
    /// Quantising what was merged makes another model of it, which nobody should have to find out.
    private func noteMerged() throws {
        guard quantization == .nf4 || quantization == .int8, try Checkpoint(model).mergedInto != nil else { return }
        Output.note(
            "\(model): an adapter was merged into these weights, and quantising them moves them again: the model no longer is "
                + "what was trained; give --model and --adapter instead to have exactly that")
    }
}

extension Precision: ExpressibleByArgument {}
extension Quantization: ExpressibleByArgument {}
extension DeviceChoice: ExpressibleByArgument {}

/// The adapter's folder where a run's is named, else the folder itself.
func adapterFolder(_ path: String) -> String {
    let inRun = RunLayout(path).adapter
    let isAdapter = PathKind(joined(path, "adapter_config.json")) == .file
    return !isAdapter && PathKind(inRun) == .folder ? inRun : path
}

/// The recipe of the run that an adapter comes from, where it lies with the adapter.
///
/// - Throws: `FormatError` when it cannot be read.
func runRecipe(ofAdapter path: String) throws -> Recipe? {
    let files = [path, joined(path, "..")].map { RunLayout($0).recipe }
    return try files.first { PathKind($0) == .file }.map { try Recipe(path: $0) }
}

extension Tokenizer {
    /// Loads the tokenizer of a model by its path or alias, without the model.
    ///
    /// - Throws: `ModelError`, `FormatError` or `TokenizerError` saying what is missing or wrong.
    init(ofModel name: String) throws {
        switch try ModelCatalog.locate(name) {
        case .folder(let path): try self.init(folder: path)
        case .gguf(let path): try self.init(gguf: GGUFFile(path: path))
        }
    }
}
