import Graft

/// How a model did on the test rows.
struct Exam {
    /// The mean negative log-likelihood of a token of the right answers.
    let loss: Double
    /// What the model wrote after each prompt.
    let answers: [String]
    /// Which of them are right, and how far the words of each agree with the right ones.
    let scores: [(isRight: Bool, overlap: Double)]

    /// How many are right.
    var right: Int { scores.count { $0.isRight } }
    /// The mean agreement of words (F1).
    var overlap: Double { scores.reduce(0) { $0 + $1.overlap } / Double(max(scores.count, 1)) }

    /// The three measures in one line.
    var summary: String {
        let share = Units.percent(overlap, decimals: 0)
        return "loss \(Units.loss(loss)), \(right) of \(answers.count) answers right, word overlap \(share)"
    }
}

/// Tests a model on rows that it has not learnt from.
struct Tester {
    let model: LanguageModel
    let rows: [DemoData.Row]
    let file: String

    /// The loss, and greedy answers marked right or wrong.
    func examine() throws -> Exam {
        let loss = try model.evaluate(on: file, batchSize: 16).loss
        var answers: [String] = []
        let settings = GenerationSettings(maxTokens: 16, stopTokenIDs: Set(model.tokenizer.stopTokenIDs))
        for start in stride(from: 0, to: rows.count, by: 20) {
            let prompts = rows[start..<min(start + 20, rows.count)].map { model.tokenizer.encode($0.prompt) }
            answers += try model.backbone.generateBatch(prompts: prompts, settings: settings)
                .map { try model.tokenizer.decode($0.tokens, skipSpecialTokens: true) }
        }
        return Exam(loss: loss, answers: answers, scores: zip(answers, rows).map { DemoData.score($0, for: $1) })
    }

    /// An answer on one line.
    static func shown(_ answer: String) -> String {
        answer.split(whereSeparator: \.isNewline).joined(separator: " / ")
    }
}
