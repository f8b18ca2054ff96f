import ArgumentParser
import Graft

/// `graft eval`: how well a model does on held-out rows what they are for.
struct EvalCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval",
        abstract: "Measure a model, with an adapter or without, on the rows of a file.",
        discussion: """
            Of texts, completions and conversations the loss is the mean negative log-likelihood, in nats, of the tokens \
            that training would learn: the whole text, the completion, or the assistant's turns. Of rows {"prompt", \
            "chosen", "rejected"} it is DPO's, with the accuracy and margin of the preference against the model without the \
            adapter. Of rows {"text", "label"} it is the cross-entropy of the label, with accuracy, F1 and Matthews \
            correlation. Beside each measure stands the interval that holds 95% of what 1000 drawings of such rows give.
            """)

    @OptionGroup(title: "Model") var options: ModelOptions

    @Option(help: ArgumentHelp("The file of rows, as for training.", valueName: "file"))
    var data: String

    @Option(help: ArgumentHelp("Rows of one forward pass.", valueName: "count"))
    var batchSize = 8

    @Flag(inversion: .prefixedNo, help: "Whether the rows of a forward pass lie in one sequence, each for itself.")
    var packing = false

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
        let kind = try RowKind(of: data, columns: reading.columns)
        let model = try options.load(classifies: true)
        try requireHead(model, for: kind)
        let rows = try model.dataset([DataSource(data)], options: reading.options(maxLength: maxLength, rows: kind))
        rows.notes.forEach(Output.note)
        let evaluation = try Evaluator(model, layout: BatchLayout(rows: batchSize, isPacked: packing)).evaluate(rows)
        let match = exactMatch ? try model.exactMatch(on: data, columns: reading.columns, batchSize: batchSize) : nil
        try json ? Output.write(document(evaluation, match)) : Output.write(text(evaluation, match))
    }

    /// Labels are told by a head, and everything else without one.
    private func requireHead(_ model: LanguageModel, for kind: RowKind) throws {
        guard (kind == .labelled) != (model.labels != nil) else { return }
        throw InputError(
            kind == .labelled
                ? "\(data): rows with labels need an adapter that was trained with --objective classification"
                : "\(data): the adapter tells texts apart, so its rows are {\"text\", \"label\"}")
    }

    private func document(_ evaluation: Evaluation, _ match: ExactMatch?) -> JSON {
        var json = evaluation.json(perExample: perExample, intervals: true)
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

    /// A line a row with what its objective measures.
    private func perRow(_ evaluation: Evaluation) -> String {
        let measures = evaluation.rowMeasures
        let names = measures.first?.keys ?? []
        var table = TextTable([.right("line"), .right("loss"), .right("tokens")] + names.map { .right($0) })
        for (row, measures) in zip(evaluation.rows, measures) {
            table.append(
                ["\(row.line)", Units.loss(row.loss), "\(row.tokens)"] + measures.map { Units.loss($0.value) })
        }
        return table.text()
    }

    private func text(_ evaluation: Evaluation, _ match: ExactMatch?) -> String {
        var facts = [("loss", Units.loss(evaluation.loss))]
        if evaluation.hasPerplexity { facts.append(("perplexity", Units.loss(evaluation.perplexity))) }
        facts += [("tokens", "\(evaluation.tokens)"), ("examples", "\(evaluation.rows.count)")]
        let (measures, intervals) = (evaluation.measures, evaluation.intervals())
        for (name, value) in measures {
            let interval = intervals[name].map {
                " (\(Units.loss($0.lowerBound)) to \(Units.loss($0.upperBound)))"
            }
            facts.append((name, Units.loss(value) + (interval ?? "")))
        }
        if let match {
            facts.append(("exact match", "\(match.matches) of \(match.rows.count) (\(Units.percent(match.share)))"))
        }
        let summary = aligned(facts)
        guard perExample else { return summary }
        guard measures.isEmpty else { return summary + "\n" + perRow(evaluation) }
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
