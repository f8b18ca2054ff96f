import ArgumentParser
import Graft

/// `graft data`: what a model would learn from files.
struct DataCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "data",
        abstract: "Show what a model would learn from files of rows, and what is wrong with them.",
        discussion: """
            Rows, lengths, the share that is learnt, the first rows with the learnt tokens marked, duplicates, overlap \
            with held-out rows, and every row that would be cut, dropped or refused with its line and the reason. Reads \
            the tokenizer alone, neither weights nor engine.
            """)

    @ArgumentParser.Argument(
        help: ArgumentHelp(
            "Files of rows, each perhaps with a weight: rows.jsonl more.csv=0.5", valueName: "file"))
    var files: [String] = []

    @Option(help: ArgumentHelp("The model: a Hugging Face folder, a GGUF file or an alias.", valueName: "path"))
    var model: String?

    @Option(help: ArgumentHelp("A file of held-out rows, to be compared.", valueName: "file"))
    var evalData: String?

    @Option(help: ArgumentHelp("Tokens beyond this many are cut off each row.", valueName: "count"))
    var maxLength = 1024

    @Option(help: ArgumentHelp("How many of the first rows to show.", valueName: "count"))
    var rows = 1

    @OptionGroup(title: "Rows") var reading: RowOptions

    @Flag(help: "Remove all that was kept for later runs.")
    var clearCache = false

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        if files.isEmpty && !clearCache { throw ValidationError("Name the files of rows.") }
        if !files.isEmpty && model == nil { throw ValidationError("Give --model, whose tokenizer reads the rows.") }
        guard maxLength > 1 else { throw ValidationError("--max-length must be at least 2.") }
        guard rows >= 0 else { throw ValidationError("--rows must be at least 0.") }
    }

    func run() throws {
        if clearCache { try clear() }
        guard let model, !files.isEmpty else { return }
        let text = try TextModel.load(model)
        let limit = min(maxLength, text.maxPositions ?? maxLength)
        let sources = files.map { DataSource(argument: $0) }
        let kind = try sources.first.map { try RowKind(of: $0.path, columns: reading.columns) } ?? .text
        var options = reading.options(maxLength: limit, rows: kind)
        // All bad rows are to be seen here, and refused at the end if they are too many.
        let allowed = options.maxBadRows
        options.maxBadRows = 1
        let data = try Dataset(sources, text: text, options: options)
        if kind == .labelled { options.labels = data.labels }
        let evalData = try evalData.map { try Dataset([DataSource($0)], text: text, options: options) }
        let report = try DataReport(
            data, evalData: evalData, maxLength: limit, tokenizer: text.tokenizer, rows: rows)
        try json ? Output.write(report.json) : Output.write(report.text(isColoured: Output.hasColour))
        for file in data.summaries + (evalData?.summaries ?? [])
        where Double(file.badCount) > allowed * Double(file.rows) {
            let first = file.badRows.first.map { "; the first at line \($0.line): \($0.reason)" } ?? ""
            throw InputError("\(file.source.path): \(file.badCount) of \(file.rows) rows cannot be used" + first)
        }
    }

    private func clear() throws {
        guard let cache = TokenCache.standard else {
            throw InputError("there is no cache: HOME and GRAFT_CACHE are empty")
        }
        let size = cache.size
        try cache.clear()
        Output.note("\(cache.folder): removed \(size.tables) token tables, \(Units.bytes(size.bytes))")
    }
}
