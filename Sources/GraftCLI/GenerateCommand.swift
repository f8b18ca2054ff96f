import ArgumentParser
import Graft

/// `graft generate`: the text that a model writes after a prompt.
struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate",
        abstract: "Let a model go on from a prompt, or answer in chat form.",
        discussion: """
            The text appears on standard output as it is written, without the prompt. With --rows several texts are \
            written at once, each with an adapter of its own: --adapter is repeated, FOLDER or NAME=FOLDER, and a row is \
            {"prompt": text} or {"messages": [...]} with "adapter": the name (by default the folder's) or null.
            """)

    @OptionGroup(title: "Model") var options: ModelOptions

    @Option(help: ArgumentHelp("The text to go on from.", valueName: "text"))
    var prompt: String?

    @Option(help: ArgumentHelp("What the user says; the model's chat template is put around it.", valueName: "text"))
    var chat: String?

    @Option(help: ArgumentHelp("With --chat: the system's message before it.", valueName: "text"))
    var system: String?

    @Option(help: ArgumentHelp("Answer the rows of a JSON Lines file; a JSON document a row.", valueName: "file"))
    var rows: String?

    @Option(help: ArgumentHelp("With --rows: rows that are answered at once.", valueName: "count"))
    var batchSize = 8

    @OptionGroup(title: "Sampling") var sampling: SamplingOptions

    @Option(help: ArgumentHelp("Text that ends the answer and is left out; may be repeated.", valueName: "text"))
    var stop: [String] = []

    @Flag(help: "Write one JSON document at the end: text, ids, counts, timings.")
    var json = false

    func validate() throws {
        guard [prompt, chat, rows].count(where: { $0 != nil }) == 1 else {
            throw ValidationError("Give either --prompt, --chat or --rows.")
        }
        if batchSize < 1 { throw ValidationError("--batch-size must be at least 1.") }
        if rows != nil, !stop.isEmpty { throw ValidationError("--stop does not go with --rows.") }
        if rows != nil { _ = try GenerateRows.named(options.adapter) }
        if prompt == "" { throw ValidationError("--prompt is empty: give some text to go on from.") }
        if system != nil && chat == nil { throw ValidationError("--system goes with --chat only.") }
        if stop.contains("") { throw ValidationError("--stop is empty: give the text that ends the answer.") }
    }

    func run() throws {
        if let rows { return try answer(rows) }
        let clock = ContinuousClock()
        let start = clock.now
        let model = try options.load(keepsBlocks: true)
        let ids = try promptTokens(model)
        let loadSeconds = (clock.now - start) / .seconds(1)
        let generator = TextGenerator(model.backbone, tokenizer: model.tokenizer)
        let result = try generator.generate(ids, settings: sampling.settings(stops: stop)) { piece in
            if !json { try Output.write(piece) }
            return true
        }
        if json { return try Output.write(result.json(loadSeconds: loadSeconds, weights: model.backbone.heldWeights)) }
        if result.text.last?.isNewline != true { try Output.write("\n") }
        if Output.isInteractive { Output.note(result.report.line) }
    }

    private func answer(_ rows: String) throws {
        let model = try options.loadModel(keepsBlocks: true)
        var settings = sampling.settings()
        settings.stopTokenIDs.formUnion(model.tokenizer.stopTokenIDs)
        let adapters = try GenerateRows.named(options.adapter)
        try GenerateRows(model: model, adapters: adapters, settings: settings, batchSize: batchSize).run(
            rows, isOneDocument: json)
    }

    private func promptTokens(_ model: LanguageModel) throws -> [Int] {
        guard let chat else { return model.promptTokens(prompt ?? "") }
        var messages = [ChatMessage(role: "user", content: chat)]
        if let system { messages.insert(ChatMessage(role: "system", content: system), at: 0) }
        return try model.promptTokens(ChatConversation(messages))
    }
}

extension GenerationReport {
    /// Counts and speed on one line.
    var line: String {
        "[\(generatedTokens) tokens, first after \(Units.duration(secondsToFirstToken)), then "
            + "\(Units.count(tokensPerSecond)) tok/s; \(stopReason)]"
    }
}

extension GeneratedText {
    fileprivate func json(loadSeconds: Double, weights: String) -> JSON {
        [
            "text": .string(text), "ids": JSON(tokens.map { JSON($0) }), "prompt_tokens": JSON(report.promptTokens),
            "generated_tokens": JSON(report.generatedTokens), "stop_reason": .string(report.stopReason.description),
            "weights": .string(weights),
            "load_seconds": JSON(loadSeconds), "first_token_seconds": JSON(report.secondsToFirstToken),
            "generate_seconds": JSON(report.seconds), "tokens_per_second": JSON(report.tokensPerSecond),
        ]
    }
}
