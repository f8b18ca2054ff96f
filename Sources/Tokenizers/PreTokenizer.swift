/// How text is cut into the pieces that the model works within, as data.
///
/// A stage cuts every piece of the stage before it. The names are those of tokenizer.json.
public enum PreTokenizer: Sendable, Equatable {
    /// Separates numeric characters from the rest, one by one or in runs.
    case digits(individual: Bool)
    /// Prepares for byte-level merging: optionally begins each piece with a space, and cuts by GPT-2's pattern.
    case byteLevel(addPrefixSpace: Bool, useRegex: Bool)
    /// Cuts where a pattern matches, or with `invert` where it does not.
    case split(pattern: SplitPattern, behavior: SplitBehavior, invert: Bool)
    /// Writes spaces as a visible character, puts one before the text, and with `split` cuts before each.
    case metaspace(replacement: Unicode.Scalar, prependScheme: PrependScheme, split: Bool)
    /// Cuts at white space, which goes, and around punctuation.
    case bert
    /// Cuts into runs of word characters and runs of others; white space goes.
    case whitespace
    /// Cuts at white space, which goes.
    case whitespaceSplit
    /// Cuts around punctuation.
    case punctuation(behavior: SplitBehavior)
    /// Cuts at a character, which goes.
    case charDelimiterSplit(delimiter: Unicode.Scalar)
    /// Cuts where the script changes.
    case unicodeScripts
    /// Cuts every so many characters.
    case fixedLength(Int)
    /// Applies stages one after the other.
    case sequence([PreTokenizer])

    /// The stages in order, without nesting.
    var stages: [PreTokenizer] {
        if case .sequence(let steps) = self { return steps.flatMap(\.stages) }
        return [self]
    }
}

/// What text is searched for.
public enum SplitPattern: Sendable, Equatable {
    /// A text as it is.
    case string(String)
    /// A regular expression.
    case regex(String)
}

/// What becomes of the matches where text is cut.
public enum SplitBehavior: String, Sendable, Equatable, CaseIterable {
    /// They go.
    case removed = "Removed"
    /// Each is a piece.
    case isolated = "Isolated"
    /// Each ends the piece before it.
    case mergedWithPrevious = "MergedWithPrevious"
    /// Each begins the piece after it.
    case mergedWithNext = "MergedWithNext"
    /// Neighbouring matches are one piece.
    case contiguous = "Contiguous"
}

/// Where the visible space of `Metaspace` is put.
public enum PrependScheme: String, Sendable, Equatable, CaseIterable {
    /// Before the first piece of a text.
    case first
    /// Nowhere.
    case never
    /// Before every piece.
    case always
}
