import Torch

/// How the next token is chosen, and when to stop.
public struct GenerationSettings: Sendable, Equatable {
    /// The most tokens that are generated.
    public var maxTokens: Int
    /// Divides the logits before sampling; 0 takes the most likely token instead.
    public var temperature: Double
    /// Sampling is among that many most likely tokens; nil: among all.
    public var topK: Int?
    /// Sampling is among the most likely tokens that together have at least this probability; 1: among all.
    public var topP: Double
    /// Makes tokens of the prompt and of the text so far less likely; 1 leaves them alone.
    public var repetitionPenalty: Double
    /// Tokens that end the text and do not belong to it.
    public var stopTokenIDs: Set<Int>
    /// Whether the tokenizer's tokens for the end of a text or turn end it too.
    public var stopsAtEndOfText: Bool
    /// Strings that end the text and do not belong to it.
    public var stopStrings: [String]
    /// The same seed, prompt and settings give the same text.
    public var seed: Seed
    /// Whether adapters act; off, the model is the pretrained one.
    public var usesAdapters: Bool
    /// How many tokens of a long prompt pass through the model at once.
    public var prefillTokens: Int

    /// Makes settings: by default greedy, until the end of the text or 256 tokens.
    public init(
        maxTokens: Int = 256, temperature: Double = 0, topK: Int? = nil, topP: Double = 1,
        repetitionPenalty: Double = 1, stopTokenIDs: Set<Int> = [], stopsAtEndOfText: Bool = true,
        stopStrings: [String] = [], seed: Seed = Seed(0), usesAdapters: Bool = true, prefillTokens: Int = 512
    ) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.repetitionPenalty = repetitionPenalty
        self.stopTokenIDs = stopTokenIDs
        self.stopsAtEndOfText = stopsAtEndOfText
        self.stopStrings = stopStrings
        self.seed = seed
        self.usesAdapters = usesAdapters
        self.prefillTokens = prefillTokens
    }

    /// Checks every value.
    ///
    /// - Throws: `ModelError` naming the setting that is out of range.
    public func validate() throws {
        func require(_ holds: Bool, _ name: String, _ expected: String, _ found: Any) throws {
            guard holds else { throw ModelError("the setting \(name) is \(found); expected \(expected)") }
        }
        try require(maxTokens > 0, "maxTokens", "a positive number", maxTokens)
        try require(temperature >= 0 && temperature.isFinite, "temperature", "zero or more", temperature)
        try require(topK ?? 1 > 0, "topK", "a positive number", topK ?? 0)
        try require(topP > 0 && topP <= 1, "topP", "a number above 0 and up to 1", topP)
        try require(
            repetitionPenalty > 0 && repetitionPenalty.isFinite, "repetitionPenalty", "a positive number",
            repetitionPenalty)
        try require(prefillTokens > 0, "prefillTokens", "a positive number", prefillTokens)
        try require(!stopStrings.contains(""), "stopStrings", "strings that are not empty", stopStrings)
    }
}

/// Why a text ended.
public enum StopReason: Sendable, Equatable, CustomStringConvertible {
    /// One of the stop tokens was chosen.
    case stopToken(Int)
    /// The text contained one of the stop strings.
    case stopString(String)
    /// As many tokens as were allowed have been generated.
    case maxTokens
    /// Prompt and text fill the model's context.
    case contextFull
    /// The receiver of the text asked for no more.
    case cancelled

    /// A few words, such as `stop token 2`.
    public var description: String {
        switch self {
        case .stopToken(let id): "stop token \(id)"
        case .stopString(let text): "stop string \"\(text)\""
        case .maxTokens: "token limit"
        case .contextFull: "context full"
        case .cancelled: "cancelled"
        }
    }
}
