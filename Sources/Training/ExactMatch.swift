import Backbones
import Formats
import Tokenizers

/// How many rows a model answers word for word.
public struct ExactMatch: Sendable, Equatable {
    /// The answer to one row.
    public struct Row: Sendable, Equatable {
        /// What the model wrote.
        public let answer: String
        /// What the row says.
        public let expected: String
        /// The row's line in the file, from 1.
        public let line: Int

        /// Whether both are the same text, white space around them apart.
        public var isMatch: Bool { trimmed(answer).elementsEqual(trimmed(expected)) }
    }

    /// The rows, in the file's order.
    public let rows: [Row]

    /// The number of rows that were answered word for word.
    public var matches: Int { rows.count { $0.isMatch } }
    /// Their share of all rows.
    public var share: Double { Double(matches) / Double(max(rows.count, 1)) }
}

extension LanguageModel {
    /// Lets the model write the likeliest answer to each row and compares it with the row's own.
    ///
    /// A row's question is its `prompt`, or its `messages` without the last, which is the assistant's.
    ///
    /// - Parameters:
    ///   - path: A file of rows with a prompt or a conversation.
    ///   - columns: For keys of a row the column that each is read from; empty: rows are read as they are.
    ///   - batchSize: Rows that are answered at once.
    /// - Throws: `FormatError` naming file and line of a row without an answer; `ModelError` when a row does not fit
    ///   the model's context.
    public func exactMatch(
        on path: String, columns: KeyedList<String> = [:], batchSize: Int = 8
    ) throws -> ExactMatch {
        let file = try RowFile(path: path)
        let reader = try RowColumns(columns)
        var questions: [Question] = []
        try file.forEach { row in
            let value = try row.value.get()
            do {
                let data = try reader.row(value, isTable: file.format == .csv || file.format == .tsv)
                questions.append(try Question(data, line: row.line, model: self))
            } catch {
                throw file.error("\(error)", line: row.line)
            }
        }
        guard !questions.isEmpty else {
            throw TrainingError("\(path): the file has no rows; expected one JSON object a line")
        }
        // Rows of like length share a batch, so that little is computed for what only fills them up.
        let order = questions.indices.sorted { questions[$0].ids.count < questions[$1].ids.count }
        var rows: [ExactMatch.Row?] = questions.map { _ in nil }
        for start in stride(from: 0, to: order.count, by: max(1, batchSize)) {
            let chosen = order[start..<min(start + max(1, batchSize), order.count)]
            for (index, row) in zip(chosen, try answers(to: chosen.map { questions[$0] })) { rows[index] = row }
        }
        return ExactMatch(rows: rows.compactMap { $0 })
    }

    private func answers(to questions: [Question]) throws -> [ExactMatch.Row] {
        // An answer that goes on beyond the expected one is wrong however it ends.
        let limit = (questions.map(\.expectedTokens).max() ?? 0) + 4
        let settings = GenerationSettings(maxTokens: limit, stopTokenIDs: Set(tokenizer.stopTokenIDs))
        let results = try backbone.generateBatch(prompts: questions.map(\.ids), settings: settings)
        return try zip(questions, results).map { question, result in
            ExactMatch.Row(
                answer: try tokenizer.decode(result.tokens, skipSpecialTokens: true), expected: question.expected,
                line: question.line)
        }
    }
}

/// A row as what the model is given and what it should write.
private struct Question {
    let ids: [Int]
    let expected: String
    let expectedTokens: Int
    let line: Int

    init(_ row: DataRow, line: Int, model: LanguageModel) throws {
        switch row {
        case .text: throw TrainingError("the row is a \"text\" and so has no answer to compare with")
        case .preference: throw TrainingError("the row has two answers and so none to compare with")
        case .labelled: throw TrainingError("the row has a label and so no answer to compare with")
        case .completion(let prompt, let completion):
            ids = model.promptTokens(prompt)
            expected = completion
        case .instruction(let request, let output) where model.chatTemplate == nil:
            ids = model.promptTokens(request + "\n\n")
            expected = output
        case .messages, .conversation, .instruction:
            guard model.chatTemplate != nil else {
                throw TrainingError("the row has \"messages\", but the model has no chat template")
            }
            var conversation = row.conversation
            guard let last = conversation.messages.popLast(), last.role == "assistant" else {
                throw TrainingError("the last message is not the assistant's, so there is no answer to compare with")
            }
            ids = try model.promptTokens(conversation)
            expected = last.content
        }
        guard !ids.isEmpty else { throw TrainingError("the prompt has no tokens") }
        expectedTokens = model.tokenizer.encode(expected).count
        self.line = line
    }
}

/// Without white space at both ends.
private func trimmed(_ text: String) -> Substring.UnicodeScalarView {
    var rest = text.unicodeScalars[...]
    while let first = rest.first, first.properties.isWhitespace { rest.removeFirst() }
    while let last = rest.last, last.properties.isWhitespace { rest.removeLast() }
    return rest
}
