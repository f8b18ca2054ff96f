import Formats

/// What is looked for in text: a text as it is, or a regular expression.
struct SearchPattern: MatchFinder, Sendable {
    enum Kind: Sendable {
        /// Not empty.
        case string([UInt8])
        case regex(Regex)
    }

    let kind: Kind

    /// Calls `body` with each match from left to right.
    func forEachMatch(_ text: UnsafeBufferPointer<UInt8>, _ body: (Range<Int>) -> Void) {
        switch kind {
        case .regex(let regex): regex.forEachMatch(text, body)
        case .string(let wanted):
            wanted.withUnsafeBufferPointer { wanted in
                var index = 0
                while index + wanted.count <= text.count {
                    let isMatch = wanted.indices.allSatisfy { text[index + $0] == wanted[$0] }
                    if isMatch { body(index..<index + wanted.count) }
                    index += isMatch ? wanted.count : 1
                }
            }
        }
    }
}

extension SearchPattern {
    /// Makes the pattern of a component.
    ///
    /// - Throws: ``RegexError`` when the expression cannot be used.
    init(_ pattern: SplitPattern) throws {
        switch pattern {
        // An empty text matches as an empty expression does.
        case .string(let text) where !text.utf8.isEmpty: kind = .string(Array(text.utf8))
        case .string: kind = .regex(try Regex("(?:)"))
        case .regex(let text): kind = .regex(try Regex(text))
        }
    }
}

extension JSONComponent {
    /// The object `{"String": …}` or `{"Regex": …}` under a key.
    func pattern(_ name: String) throws -> SplitPattern {
        if let text = json[name]?["String"]?.string { return .string(text) }
        if let text = json[name]?["Regex"]?.string { return .regex(text) }
        throw error(name, "expected an object with a \"String\" or a \"Regex\"")
    }

    /// The pattern under a key, ready to search with.
    func searchPattern(_ name: String) throws -> SearchPattern {
        do {
            return try SearchPattern(try pattern(name))
        } catch let problem as RegexError {
            throw error(name, problem.message)
        }
    }
}
