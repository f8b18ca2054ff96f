import ArgumentParser
import Graft

/// `graft generate --rows`: answers to the rows of a file, several at once, each with an adapter of its own.
struct GenerateRows {
    /// The model, with nothing attached.
    let model: LanguageModel
    /// The adapters by name.
    let adapters: [(name: String, folder: String)]
    var settings: GenerationSettings
    let batchSize: Int

    /// A row as tokens.
    private struct Row {
        let line: Int
        let adapter: String?
        let tokens: [Int]
    }

    /// Reads `[NAME=]FOLDER`; without a name it is the folder's.
    ///
    /// - Throws: `ValidationError` when two adapters have one name.
    static func named(_ arguments: [String]) throws -> [(name: String, folder: String)] {
        var seen: Set<String> = []
        return try arguments.map { argument in
            var (name, path) = (argument[...], argument)
            if let sign = argument.firstIndex(of: "="), PathKind(argument) == .missing {
                (name, path) = (argument[..<sign], String(argument[argument.index(after: sign)...]))
            } else {
                while name.hasSuffix("/") { name.removeLast() }
                name = name.split(separator: "/").last ?? name
            }
            guard !name.isEmpty, seen.insert(String(name)).inserted else {
                throw ValidationError("--adapter: two are called \"\(name)\"; give names, such as --adapter a=\(path).")
            }
            return (String(name), adapterFolder(path))
        }
    }

    /// Answers all rows and writes the results in their order: a JSON document a line, or with `isOneDocument` all as one.
    ///
    /// - Throws: What is wrong with a row or an adapter, and what generating throws.
    func run(_ path: String, isOneDocument: Bool) throws {
        let rows = try read(path)
        let bank = AdapterBank(on: model.backbone)
        for (name, folder) in adapters { try bank.load(folder, as: name) }
        var results: [JSON?] = rows.map { _ in nil }
        var written = 0
        for batch in try bank.batches(rows.map(\.adapter)) {
            for start in stride(from: 0, to: batch.count, by: batchSize) {
                let chosen = batch[start..<min(start + batchSize, batch.count)].map { $0 }
                // Without adapters on the model there is nothing to choose from.
                let routing = try bank.names.isEmpty ? nil : bank.routing(chosen.map { rows[$0].adapter })
                let answers = try model.backbone.generateBatch(
                    prompts: chosen.map { rows[$0].tokens }, settings: settings, routing: routing)
                for (index, answer) in zip(chosen, answers) { results[index] = try document(rows[index], answer) }
                while !isOneDocument, written < results.count, let result = results[written] {
                    try Output.write(result.compact + "\n")
                    written += 1
                }
            }
        }
        if isOneDocument { try Output.write(JSON(results.compactMap { $0 })) }
    }

    private func read(_ path: String) throws -> [Row] {
        let file = try JSONLines(path: path)
        let names = adapters.map(\.name)
        let rows = try file.rows().map { row in
            do {
                return try self.row(row, names)
            } catch let error as FormatError {
                throw error
            } catch {
                throw file.error("\(error)", in: row)
            }
        }
        guard !rows.isEmpty else { throw InputError("\(path): there is no row to answer") }
        return rows
    }

    private func row(_ row: JSONLines.Row, _ names: [String]) throws -> Row {
        guard let fields = row.value.object else {
            throw InputError("expected an object with \"prompt\" or \"messages\", found \(row.value.kind)")
        }
        let known = ["prompt", "messages", "tools", "chat_template_kwargs", "adapter"]
        if let other = fields.keys.first(where: { !known.contains($0) }) {
            throw InputError("the key \"\(other)\" is unknown.\(suggestion(for: other, in: known))")
        }
        let adapter = fields["adapter"] ?? .null
        if let name = adapter.string, !names.contains(name) {
            throw InputError(
                "there is no adapter \"\(name)\".\(suggestion(for: name, in: names)) "
                    + (names.isEmpty ? "Name its folder with --adapter" : "There are \(names.joined(separator: ", "))"))
        }
        guard adapter.isNull || adapter.string != nil else {
            throw InputError("\"adapter\" is \(adapter.kind); expected the name of an adapter, or null for none")
        }
        return Row(line: row.line, adapter: adapter.string, tokens: try tokens(fields))
    }

    private func tokens(_ fields: KeyedList<JSON>) throws -> [Int] {
        switch (fields["prompt"], fields["messages"]) {
        case (let prompt?, nil):
            guard let text = prompt.string, !text.isEmpty else {
                throw InputError("\"prompt\" is \(prompt.kind == "a string" ? "empty" : prompt.kind); expected text")
            }
            return model.promptTokens(text)
        case (nil, .some): return try model.promptTokens(ChatConversation(json: .object(fields)))
        default: throw InputError("expected either \"prompt\" or \"messages\"")
        }
    }

    private func document(_ row: Row, _ answer: GeneratedTokens) throws -> JSON {
        [
            "line": JSON(row.line), "adapter": row.adapter.map { .string($0) } ?? .null,
            "text": .string(try model.tokenizer.decode(answer.tokens, skipSpecialTokens: true)),
            "ids": JSON(answer.tokens.map { JSON($0) }), "prompt_tokens": JSON(row.tokens.count),
            "generated_tokens": JSON(answer.tokens.count), "stop_reason": .string(answer.stopReason.description),
        ]
    }
}
