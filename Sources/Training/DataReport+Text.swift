import Formats
import PEFT

extension DataReport {
    /// The report for a terminal.
    ///
    /// - Parameter isColoured: Whether trained tokens are marked by colour; else they stand in `[[` and `]]`.
    public func text(isColoured: Bool = false) -> String {
        var text = files()
        let share = Units.percent(Double(supervisedTokens) / Double(max(1, tokens)), decimals: 1)
        text += "\n\(kept) rows with \(tokens) tokens, \(supervisedTokens) of them trained (\(share))\n"
        text += "lengths: min \(lengths.min), median \(lengths.median), 90% \(lengths.p90), 99% \(lengths.p99), "
        text += "max \(lengths.max) tokens; rows are cut at \(maxLength)\n\n" + histogram()
        text += pairs("duplicate rows", duplicates)
        text += pairs("rows with the prompt of an earlier one and another answer", otherAnswers)
        if let evalRows {
            text += "held-out rows: \(evalRows)\n" + pairs("held-out rows that are also learnt from", evalDuplicates)
            text += pairs("held-out rows whose prompt is learnt with another answer", evalPrompts)
        }
        text += dropped()
        for note in notes { text += "note: \(note)\n" }
        for row in firstRows {
            text += "\n" + row.heading("row", isColoured: isColoured) + "\n" + row.text(isColoured: isColoured) + "\n"
        }
        return text
    }

    private func files() -> String {
        var table = TextTable(
            .left("file"), .left("format"), .right("weight"), .right("rows"), .right("kept"), .right("cut"),
            .right("dropped"), .right("bad"), .right("tokens"))
        for file in summaries {
            table.append([
                file.source.path, file.format.rawValue, file.source.weight.json.compact, "\(file.rows)", "\(file.kept)",
                "\(file.truncated)", "\(file.droppedLines.count)", "\(file.badCount)", "\(file.tokens)",
            ])
        }
        return table.text()
    }

    private func histogram() -> String {
        var table = TextTable(.right("tokens up to"), .right("rows"), .left(""))
        let most = lengths.histogram.map(\.rows).max() ?? 0
        for step in lengths.histogram {
            let width = step.rows == 0 ? 0 : max(1, step.rows * 40 / max(1, most))
            table.append(["\(step.upTo)", "\(step.rows)", String(repeating: "█", count: width)])
        }
        return table.text() + "\n"
    }

    private func pairs(_ title: String, _ pairs: Pairs) -> String {
        guard let first = pairs.first.first else { return "\(title): none\n" }
        return "\(title): \(pairs.count); the first: \(first.later), as \(first.earlier)\n"
    }

    /// Lines and reasons of rows that are not learnt from.
    private func dropped() -> String {
        var text = ""
        for file in summaries {
            if !file.droppedLines.isEmpty {
                text += "\(file.source.path): nothing to learn is left of \(file.droppedLines.count) rows once they "
                text += "are cut: lines \(Self.list(file.droppedLines))\n"
            }
            var reasons = KeyedList<[Int]>()
            for row in file.badRows { reasons[row.reason] = (reasons[row.reason] ?? []) + [row.line] }
            for (reason, lines) in reasons.prefix(20) {
                text += "\(file.source.path): \(lines.count == 1 ? "line" : "lines") \(Self.list(lines)): \(reason)\n"
            }
            let rest = file.badCount - reasons.prefix(20).reduce(0) { $0 + $1.value.count }
            if rest > 0 { text += "\(file.source.path): and \(rest) more bad rows\n" }
        }
        return text
    }

    private static func list(_ lines: [Int]) -> String {
        let shown = lines.prefix(10).map { "\($0)" }.joined(separator: ", ")
        return lines.count > 10 ? shown + " and \(lines.count - 10) more" : shown
    }

    /// The report as an object, for `--json`.
    public var json: JSON {
        var document: KeyedList<JSON> = [
            "files": JSON(summaries.map(\.json)), "rows": JSON(kept), "tokens": JSON(tokens),
            "supervised_tokens": JSON(supervisedTokens), "max_length": JSON(maxLength),
            "lengths": [
                "min": JSON(lengths.min), "median": JSON(lengths.median), "p90": JSON(lengths.p90),
                "p99": JSON(lengths.p99), "max": JSON(lengths.max),
            ],
            "histogram": JSON(lengths.histogram.map { ["up_to": JSON($0.upTo), "rows": JSON($0.rows)] }),
            "duplicates": Self.json(duplicates), "other_answers": Self.json(otherAnswers),
        ]
        if let evalRows {
            document["eval"] = [
                "rows": JSON(evalRows), "duplicates": Self.json(evalDuplicates), "prompts": Self.json(evalPrompts),
            ]
        }
        document["notes"] = JSON(notes.map { .string($0) })
        document["first_rows"] = JSON(firstRows.map(\.json))
        return .object(document)
    }

    private static func json(_ pairs: Pairs) -> JSON {
        [
            "count": JSON(pairs.count),
            "first": JSON(pairs.first.map { [.string($0.earlier), .string($0.later)] }),
        ]
    }
}

extension DataSummary {
    /// The summary as an object, as run folders keep it.
    var json: JSON {
        [
            "path": .string(source.path), "weight": source.weight.json, "format": .string(format.rawValue),
            "rows": JSON(rows), "kept": JSON(kept), "truncated": JSON(truncated),
            "dropped_lines": JSON(droppedLines.prefix(1000).map { JSON($0) }), "dropped": JSON(droppedLines.count),
            "bad": JSON(badCount),
            "bad_rows": JSON(badRows.map { ["line": JSON($0.line), "reason": .string($0.reason)] }),
            "tokens": JSON(tokens), "longest": JSON(longest), "digest": .string(digest),
        ]
    }
}
