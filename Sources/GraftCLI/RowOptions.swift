import ArgumentParser
import Graft

/// How files of rows are read: the options of every verb that reads some.
struct RowOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Read a key of a row, such as prompt, from another column and leave unnamed columns alone; repeated.",
            valueName: "key=column"))
    var column: [String] = []

    @Option(
        help: ArgumentHelp(
            "The share of a file's rows that may be left out because they cannot be used. (default: 0)",
            valueName: "share"))
    var maxBadRows: Double?

    @Flag(help: "Keep no tokens for the next run, and use none that were kept.")
    var noCache = false

    func validate() throws {
        for text in column where text.split(separator: "=", maxSplits: 1).count < 2 || text.hasPrefix("=") {
            throw ValidationError("--column takes key=column, such as --column prompt=question; found \"\(text)\".")
        }
        if let maxBadRows, !(0...1).contains(maxBadRows) {
            throw ValidationError("--max-bad-rows must be from 0 to 1.")
        }
    }

    /// The columns by the keys that they are read as.
    var columns: KeyedList<String> {
        var columns = KeyedList<String>()
        for text in column {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            if parts.count == 2 { columns[parts[0]] = parts[1] }
        }
        return columns
    }

    /// The options for reading.
    ///
    /// - Parameter rows: What the rows teach.
    func options(maxLength: Int, rows: RowKind = .text) -> Dataset.Options {
        var options = Dataset.Options(maxLength: maxLength, cache: noCache ? nil : .standard)
        options.rows = rows
        options.columns = columns
        options.maxBadRows = maxBadRows ?? 0
        return options
    }

    /// Puts what was given into a recipe.
    func apply(to recipe: inout Recipe) {
        if !column.isEmpty {
            recipe.columns = [:]
            for (key, name) in columns { recipe.columns[key] = .string(name) }
        }
        if let maxBadRows { recipe.maxBadRows = maxBadRows }
        if noCache { recipe.usesCache = false }
    }
}
