import Tokenizers
import Torch

/// What generating a text took.
public struct GenerationReport: Sendable, Equatable {
    /// The tokens of the prompt.
    public var promptTokens: Int
    /// The tokens of the text.
    public var generatedTokens: Int
    /// Seconds from the call to the first token.
    public var secondsToFirstToken: Double
    /// Seconds from the call to the last token.
    public var seconds: Double
    /// Why the text ended.
    public var stopReason: StopReason

    /// Tokens a second after the first one; 0 when there are none.
    public var tokensPerSecond: Double {
        let duration = seconds - secondsToFirstToken
        return generatedTokens > 1 && duration > 0 ? Double(generatedTokens - 1) / duration : 0
    }
}

/// A text that a model has written.
public struct GeneratedText: Sendable {
    /// The text, without the stop string that ended it.
    public var text: String
    /// The tokens that were chosen, without the stop token that ended them.
    public var tokens: [Int]
    /// What it took.
    public var report: GenerationReport
}

/// Lets a model write text.
public struct TextGenerator {
    private let backbone: any Backbone
    private let tokenizer: Tokenizer

    /// Makes a generator of a model and its tokenizer.
    public init(_ backbone: any Backbone, tokenizer: Tokenizer) {
        self.backbone = backbone
        self.tokenizer = tokenizer
    }

    /// Goes on from a text.
    ///
    /// - Throws: As the form with tokens.
    public func generate(
        _ prompt: String, settings: GenerationSettings = GenerationSettings(),
        onText: (String) throws -> Bool = { _ in true }
    ) throws -> GeneratedText {
        try generate(tokenizer.encode(prompt, addSpecialTokens: true), settings: settings, onText: onText)
    }

    /// Goes on from tokens, such as those of a rendered chat template.
    ///
    /// - Parameters:
    ///   - prompt: Token ids.
    ///   - settings: How tokens are chosen and when to stop.
    ///   - onText: Gets the text piece by piece, in whole characters; returns false for no more.
    /// - Throws: `ModelError` when the prompt does not fit or a setting is out of range; what `onText` throws.
    public func generate(
        _ prompt: [Int], settings: GenerationSettings = GenerationSettings(),
        onText: (String) throws -> Bool = { _ in true }
    ) throws -> GeneratedText {
        let clock = ContinuousClock()
        let begin = clock.now
        func elapsed() -> Double { (clock.now - begin) / .seconds(1) }

        var settings = settings
        if settings.stopsAtEndOfText { settings.stopTokenIDs.formUnion(tokenizer.stopTokenIDs) }
        let stream = try TokenStream(backbone, prompt: prompt, settings: settings)
        var decoder = tokenizer.makeStreamingDecoder(skipSpecialTokens: true)
        var finder = StopStringFinder(settings.stopStrings)
        var (text, tokens, first) = ("", [Int](), 0.0)
        func give(_ piece: String) throws {
            text += piece
            if try !piece.isEmpty && !onText(piece) { stream.stop(.cancelled) }
        }
        while let token = try stream.next() {
            if tokens.isEmpty { first = elapsed() }
            tokens.append(token)
            let piece = finder.append(try decoder.append(token))
            if let found = piece.found { stream.stop(.stopString(found)) }
            try give(piece.text)
        }
        let seconds = elapsed()
        let rest = finder.append(decoder.finish())
        switch stream.stopReason {
        case .stopString, .cancelled: break
        default: try give(rest.text + finder.finish())
        }
        let report = GenerationReport(
            promptTokens: prompt.count, generatedTokens: tokens.count,
            secondsToFirstToken: tokens.isEmpty ? seconds : first, seconds: seconds,
            stopReason: stream.stopReason ?? .maxTokens)
        return GeneratedText(text: text, tokens: tokens, report: report)
    }
}
