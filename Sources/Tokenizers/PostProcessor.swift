/// What is done to the tokens of one or two texts at the end: tokens put around them, places trimmed.
struct PostProcessor: Sendable {
    /// One thing to do.
    enum Step: Sendable {
        /// Takes blanks at the ends of tokens out of their places.
        case trim(addPrefixSpace: Bool)
        /// Puts tokens around the texts.
        case template(PostTemplate)
    }

    var steps: [Step] = []

    init(steps: [Step] = []) {
        self.steps = steps
    }

    /// Puts a token before each text and one after it, as far as they are given.
    init(bos: Int?, eos: Int?) {
        func around(_ number: Int) -> [PostTemplate.Piece] {
            (bos.map { [.special(ids: [$0], typeID: number)] } ?? []) + [.text(number, typeID: number)]
                + (eos.map { [.special(ids: [$0], typeID: number)] } ?? [])
        }
        steps = [.template(PostTemplate(single: around(0), pair: around(0) + around(1)))]
    }

    /// Joins the tokens of a text and maybe of a second one.
    func process(
        _ parts: [EncodedText], addSpecialTokens: Bool, trimmingBlanks: Bool, tokenizer: Tokenizer
    ) -> Encoding {
        var parts = parts
        for step in steps {
            switch step {
            case .trim(let addPrefixSpace):
                guard trimmingBlanks else { continue }
                for index in parts.indices { parts[index].trim(addPrefixSpace: addPrefixSpace, tokenizer) }
            case .template(let template): parts = template.apply(parts, addSpecialTokens: addSpecialTokens)
            }
        }
        var encoding = Encoding(ids: [], ranges: [], typeIDs: [])
        guard parts.count != 1 else {
            return Encoding(ids: parts[0].ids, ranges: parts[0].ranges, typeIDs: parts[0].typeIDs)
        }
        for part in parts {
            encoding.ids += part.ids
            encoding.ranges += part.ranges
            encoding.typeIDs += part.typeIDs
        }
        return encoding
    }

    /// The template that puts tokens around the texts, when there is one.
    var template: PostTemplate? {
        for case .template(let template) in steps { return template }
        return nil
    }
}

/// The tokens of one text on their way through the post-processor.
struct EncodedText {
    var ids: [Int]
    var ranges: [Range<Int>]
    var typeIDs: [Int]
    /// The text, in which characters are counted where places are trimmed.
    var text: [UInt8]

    fileprivate mutating func trim(addPrefixSpace: Bool, _ tokenizer: Tokenizer) {
        for index in ids.indices where index < ranges.count {
            let range = ranges[index]
            // The text of an added token is what it was found as, with the white space that it took.
            var (leading, trailing) =
                tokenizer.isAddedToken(ids[index]) && range.upperBound <= text.count
                ? Tokenizer.blanks(around: String(decoding: text[range], as: UTF8.self))
                : tokenizer.blanks(around: ids[index])
            guard leading > 0 || trailing > 0 else { continue }
            var (start, end) = (range.lowerBound, range.upperBound)
            if leading > 0 {
                // A single blank that was put before the text is none of it.
                if index == 0 || start == 0, addPrefixSpace, leading == 1 { leading = 0 }
                start = min(place(after: leading, from: start), end)
            }
            if trailing > 0, let place = place(before: trailing, from: end) { end = max(place, start) }
            ranges[index] = start..<end
        }
    }

    private func place(after count: Int, from start: Int) -> Int {
        var place = start
        for _ in 0..<count where place < text.count {
            place += 1
            while place < text.count, text[place] & 0xC0 == 0x80 { place += 1 }
        }
        return place
    }

    /// Nil when there are not so many characters.
    private func place(before count: Int, from end: Int) -> Int? {
        var place = min(end, text.count)
        for _ in 0..<count {
            guard place > 0 else { return nil }
            place -= 1
            while place > 0, text[place] & 0xC0 == 0x80 { place -= 1 }
        }
        return place
    }
}

/// The tokens that stand around one text or two.
struct PostTemplate: Sendable {
    /// One thing of the result.
    enum Piece: Sendable, Equatable {
        /// The first text (0) or the second (1).
        case text(Int, typeID: Int)
        case special(ids: [Int], typeID: Int)
    }

    var single: [Piece]
    var pair: [Piece]

    fileprivate func apply(_ parts: [EncodedText], addSpecialTokens: Bool) -> [EncodedText] {
        (parts.count > 1 ? pair : single).compactMap { piece in
            switch piece {
            case .text(let number, let typeID):
                guard number < parts.count else { return nil }
                var part = parts[number]
                part.typeIDs = [Int](repeating: typeID, count: part.ids.count)
                return part
            case .special(let ids, let typeID):
                guard addSpecialTokens else { return nil }
                return EncodedText(
                    ids: ids, ranges: [Range<Int>](repeating: 0..<0, count: ids.count),
                    typeIDs: [Int](repeating: typeID, count: ids.count), text: [])
            }
        }
    }

    /// Whether a single text stands in the result once, as it nearly always does.
    var isAroundText: Bool {
        single.filter { if case .text = $0 { true } else { false } }.count == 1
    }

    /// The tokens before and after a single text.
    var around: (before: [Int], after: [Int]) {
        var before: [Int] = []
        var after: [Int] = []
        var isAfter = false
        for piece in single {
            switch piece {
            case .text: isAfter = true
            case .special(let ids, _):
                if isAfter { after += ids } else { before += ids }
            }
        }
        return (before, after)
    }
}
