import ArgumentParser
import Graft

/// `graft eval`: how well a model predicts held-out rows.
struct EvalCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval",
        abstract: "Measure the loss of a model, with an adapter or without, on the rows of a file.",
        discussion: """
            The loss is the mean negative log-likelihood, in nats, of the tokens that training would learn: the whole \
            text, the completion, or the assistant's turns.
            """)

    @OptionGroup(title: "Model") var options: ModelOptions

    @Option(help: ArgumentHelp("The file of rows, as for training.", valueName: "file"))
    var data: String

    @Option(help: ArgumentHelp("Rows of one forward pass.", valueName: "count"))
    var batchSize = 8

    @Option(help: ArgumentHelp("Tokens beyond this many are cut off each row.", valueName: "count"))
    var maxLength = 1024

    @OptionGroup(title: "Rows") var reading: RowOptions

    @Flag(help: "Also report each row.")
    var perExample = false

    @Flag(help: "Also write the likeliest answer to each row and count those that are the row's own, word for word.")
    var exactMatch = false

    @Flag(help: "Write JSON.")
    var json = false

    func validate() throws {
        guard batchSize > 0 else { throw ValidationError("--batch-size must be at least 1.") }
        guard maxLength > 1 else { throw ValidationError("--max-length must be at least 2.") }
    }

    func run() throws {
        let model = try options.load()
        let rows = try model.dataset([DataSource(data)], options: reading.options(maxLength: maxLength))
        rows.notes.forEach(Output.note)
        let evaluation = try Evaluator(model, batchSize: batchSize).evaluate(rows)
        let match = exactMatch ? try model.exactMatch(on: data, columns: reading.columns, batchSize: batchSize) : nil
        try json ? Output.write(document(evaluation, match)) : Output.write(text(evaluation, match))
    }

    private func document(_ evaluation: Evaluation, _ match: ExactMatch?) -> JSON {
        var json = evaluation.json(perExample: perExample)
        guard let match else { return json }
        var result: KeyedList<JSON> = [
            "share": JSON(match.share), "matches": JSON(match.matches), "examples": JSON(match.rows.count),
        ]
        if perExample {
            result["per_example"] = JSON(
                match.rows.map {
                    ["answer": .string($0.answer), "expected": .string($0.expected), "match": .bool($0.isMatch)]
                })
        }
        json["exact_match"] = .object(result)
        return json
    }

    private func text(_ evaluation: Evaluation, _ match: ExactMatch?) -> String {
        var facts = [
            ("loss", Units.loss(evaluation.loss)), ("perplexity", Units.loss(evaluation.perplexity)),
            ("tokens", "\(evaluation.tokens)"), ("examples", "\(evaluation.rows.count)"),
        ]
        if let match {
            facts.append(("exact match", "\(match.matches) of \(match.rows.count) (\(Units.percent(match.share)))"))
        }
        let summary = aligned(facts)
        guard perExample else { return summary }
        // Rows that were cut to nothing have an answer but no loss, so lines tell which belong together.
        let answers = Dictionary((match?.rows ?? []).map { ($0.line, $0) }) { first, _ in first }
        var table = TextTable(.right("line"), .right("loss"), .right("tokens"))
        if match != nil {
            table = TextTable(.right("line"), .right("loss"), .right("tokens"), .left("match"), .left("answer"))
        }
        for row in evaluation.rows {
            let answer = answers[row.line].map { [$0.isMatch ? "yes" : "no", $0.answer] } ?? []
            table.append(["\(row.line)", Units.loss(row.loss), "\(row.tokens)"] + answer)
        }
        return summary + "\n" + table.text()
    }
}
