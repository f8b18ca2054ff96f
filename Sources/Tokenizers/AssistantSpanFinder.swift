/// Finds where the assistant speaks in a rendered conversation, by the marks that the messages' strings carry.
///
/// The text between two messages' marks is the template's: the end of the one turn and the header of the next. Which part
/// of it is header is seen by rendering the conversation up to the turn with the generation prompt and comparing what
/// follows the last mark there: this text alone, since what stands before may be written otherwise by then.
struct AssistantSpanFinder {
    let messages: [ChatMessage]
    let endOfTurnTokens: [String]
    /// Renders the first messages, with the generation prompt or without.
    let render: (ArraySlice<ChatMessage>, Bool) throws -> JinjaText

    func spans() throws -> (text: String, spans: [Range<Int>]) {
        let whole = try render(messages[...], false)
        let places = messages.indices.filter { messages[$0].role == "assistant" }
        guard !places.isEmpty else { return (whole.text, []) }
        guard whole.marks.allSatisfy({ $0.message != JinjaMark.mixed }) else {
            throw TemplateError(
                "the template turns several messages into one string, so it is unknown where the assistant speaks; "
                    + "use a template that writes each message on its own")
        }
        let text = Array(whole.text.utf8)
        return (whole.text, try places.map { try span(of: $0, in: text, whole.marks) })
    }

    // MARK: One turn

    /// Where a message's own words stand, and the nearest marks of others.
    private struct Turn {
        let message: Int
        /// From the first to the last of its words.
        let words: Range<Int>
        /// Where the words of what stands before end.
        let before: Int
        /// The message that they belong to; nil at the beginning.
        let messageBefore: Int?
        /// Where the next message's role or words begin, and where its words do.
        let after: Int
        let wordsAfter: Int
        /// Where its own role stands, when that is written before its words.
        let header: Range<Int>?
    }

    private func span(of message: Int, in text: [UInt8], _ marks: [JinjaMark]) throws -> Range<Int> {
        let turn = try turn(of: message, marks, count: text.count)
        let start = try start(of: turn, in: text)
        let end = try end(of: turn, in: text)
        guard start <= end else { throw unknown(message, "has its header after its words") }
        return start..<end
    }

    private func turn(of message: Int, _ marks: [JinjaMark], count: Int) throws -> Turn {
        let own = marks.filter { $0.message == message && !$0.isHeader }
        guard let first = own.first?.range.lowerBound, let last = own.last?.range.upperBound else {
            throw unknown(message, "is left out by the template")
        }
        let others = marks.filter { $0.message != message }
        guard !others.contains(where: { $0.range.lowerBound < last && $0.range.upperBound > first }) else {
            throw unknown(message, "is written among other messages")
        }
        let before = others.last { $0.range.upperBound <= first }
        let header = marks.last {
            $0.message == message && $0.isHeader && $0.range.upperBound <= first
                && $0.range.lowerBound >= before?.range.upperBound ?? 0
        }
        let next = others.filter { $0.range.lowerBound >= last && $0.range != before?.range }
        return Turn(
            message: message, words: first..<last, before: before?.range.upperBound ?? 0,
            messageBefore: before?.message, after: next.first?.range.lowerBound ?? count,
            wordsAfter: next.first { !$0.isHeader }?.range.lowerBound ?? count, header: header?.range)
    }

    private func unknown(_ message: Int, _ reason: String) -> TemplateError {
        TemplateError(
            "message \(message + 1), which is the assistant's, \(reason), so it is unknown which tokens are its own; "
                + "use a template that writes each message on its own")
    }

    // MARK: Its end

    private func end(of turn: Turn, in text: [UInt8]) throws -> Int {
        // The next turn's role may be what ends this one, as in `<|user|>`.
        let rest = text[turn.words.upperBound..<turn.wordsAfter]
        let ends = endOfTurnTokens.compactMap { token in
            Self.place(of: Array(token.utf8), in: rest).map { (start: $0, end: $0 + token.utf8.count) }
        }.filter { $0.start < turn.after }
        // The first token counts; of those that begin together, the longest.
        if let end = ends.min(by: { ($0.start, -$0.end) < ($1.start, -$1.end) }) { return end.end }
        let through = try tail(of: try render(messages[...turn.message], false))
        guard through.message == turn.message, text[turn.words.upperBound..<turn.after].starts(with: through.bytes)
        else {
            throw unknown(turn.message, "ends otherwise once other messages follow")
        }
        return turn.words.upperBound + through.bytes.count
    }

    private static func place(of part: [UInt8], in text: ArraySlice<UInt8>) -> Int? {
        guard let first = part.first, text.count >= part.count else { return nil }
        return (text.startIndex...text.endIndex - part.count).first {
            text[$0] == first && text[$0..<$0 + part.count].elementsEqual(part)
        }
    }

    // MARK: Its beginning

    /// What a rendered conversation ends with after the last words of a message, and whose they are.
    private func tail(of text: JinjaText) throws -> (bytes: [UInt8], message: Int?) {
        let last = text.marks.last
        return (Array(text.text.utf8.dropFirst(last?.range.upperBound ?? 0)), last?.message)
    }

    private func start(of turn: Turn, in text: [UInt8]) throws -> Int {
        let before = messages[..<turn.message]
        do {
            let prompt = try tail(of: try render(before, true))
            if prompt.message == turn.messageBefore, let start = match(prompt.bytes, turn, text, before) {
                return start
            }
        } catch let error as TemplateError {
            // Some templates refuse to answer what is no question; another conversation shows their prompt then.
            if let start = startByExample(turn, text) { return start }
            throw unknown(turn.message, "stands where the template writes no prompt (\(error.message))")
        }
        if let start = startByExample(turn, text) { return start }
        throw unknown(turn.message, "begins otherwise than the generation prompt")
    }

    /// The place after the generation prompt, which is expected right after the words before the turn.
    private func match(
        _ prompt: [UInt8], _ turn: Turn, _ text: [UInt8], _ before: ArraySlice<ChatMessage>
    ) -> Int? {
        let space = text[turn.before..<turn.words.upperBound]
        let shared = zip(space, prompt).prefix { $0 == $1 }.count
        let gap = turn.words.lowerBound - turn.before
        if shared == prompt.count { return afterRole(turn, turn.before + shared, text) }
        // A prompt may go on, such as by opening the thoughts that this turn lacks; but the turns must part where the
        // template has said whose turn it is: after what ends the turn before.
        guard let closed = try? tail(of: render(before, false)).bytes else { return nil }
        let closing = zip(closed, prompt).prefix { $0 == $1 }.count
        guard shared >= min(closing, closed.count), shared > 0 else { return nil }
        if shared >= gap { return shared > closing || gap > closing ? turn.words.lowerBound : nil }
        let border = prompt[..<shared].lastIndex { ">]}:\n".utf8.contains($0) }.map { $0 + 1 } ?? 0
        guard border > 0, opensThoughts(prompt[border...]) else { return nil }
        return turn.before + border
    }

    private func opensThoughts(_ rest: ArraySlice<UInt8>) -> Bool {
        String(decoding: rest.prefix(24), as: UTF8.self).lowercased().contains("think")
    }

    /// Where a template has no generation prompt but writes the role before the words: the line's or the tag's end after
    /// the role.
    private func afterRole(_ turn: Turn, _ start: Int, _ text: [UInt8]) -> Int? {
        guard let header = turn.header, header.lowerBound >= start else { return start }
        let rest = text[header.upperBound..<turn.words.lowerBound]
        if let newline = rest.firstIndex(of: UInt8(ascii: "\n")) { return newline + 1 }
        return rest.count <= 16 ? turn.words.lowerBound : nil
    }

    /// The place after the last generation prompt before the words, as a question alone is followed by it.
    private func startByExample(_ turn: Turn, _ text: [UInt8]) -> Int? {
        let question = [ChatMessage(role: "user", content: "a")][...]
        guard let prompt = try? tail(of: render(question, true)).bytes,
            let closed = try? tail(of: render(question, false)).bytes
        else { return nil }
        let added = Array(prompt[zip(prompt, closed).prefix { $0 == $1 }.count...])
        let gap = text[turn.before..<turn.words.lowerBound]
        guard !added.isEmpty, gap.count >= added.count else { return nil }
        return (gap.startIndex...gap.endIndex - added.count).last {
            gap[$0..<$0 + added.count].elementsEqual(added)
        }.map { $0 + added.count }
    }
}
