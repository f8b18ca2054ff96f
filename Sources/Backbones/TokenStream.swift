import Torch

/// Generates one text token by token, with a key/value cache.
///
/// Nothing is computed before the first ``next()``, and nothing for tokens that are not asked for.
public final class TokenStream {
    /// Why the text ended, once it has.
    public private(set) var stopReason: StopReason?
    private let backbone: any Backbone
    private let settings: GenerationSettings
    private let cache: KeyValueCache
    private let limit: Int
    private var sampler: Sampler
    /// What the model has not seen yet: the prompt, then the last token.
    private var pending: [Int]
    private var generated = 0

    /// Makes a stream that goes on from a prompt.
    ///
    /// - Parameters:
    ///   - backbone: The model.
    ///   - prompt: Token ids.
    ///   - settings: How tokens are chosen; stop strings need a tokenizer, see ``TextGenerator``.
    /// - Throws: `ModelError` when the prompt is empty, does not fit the model, or a setting is out of range.
    public init(_ backbone: any Backbone, prompt: [Int], settings: GenerationSettings = GenerationSettings()) throws {
        sampler = try Sampler(settings, prompt: prompt)
        limit = try backbone.configuration.tokensLeft(after: prompt, settings)
        cache = backbone.makeCache(capacity: prompt.count + limit)
        self.backbone = backbone
        self.settings = settings
        pending = prompt
    }

    /// The next token; nil when the text has ended.
    ///
    /// - Throws: `ModelError` when the model's answer is not finite; `TorchError` when memory is short.
    public func next() throws -> Int? {
        guard stopReason == nil else { return nil }
        guard generated < limit else {
            stopReason = limit < settings.maxTokens ? .contextFull : .maxTokens
            return nil
        }
        let token = try sampler.next(logits())
        guard !settings.stopTokenIDs.contains(token) else {
            stopReason = .stopToken(token)
            return nil
        }
        pending = [token]
        generated += 1
        return token
    }

    /// Ends the text.
    public func stop(_ reason: StopReason) { stopReason = stopReason ?? reason }

    /// The logits that follow the pending tokens.
    private func logits() throws -> [Float] {
        try withoutGrad {
            var context = Context(cache: cache, usesAdapters: settings.usesAdapters)
            context.length = cache.length + pending.count
            var start = 0
            while true {
                let count = min(settings.prefillTokens, pending.count - start)
                let ids = try Tensor(Array(pending[start..<start + count]), shape: [1, count])
                let states = try backbone.hiddenStates(ids.to(device: backbone.device), context)
                start += count
                guard start == pending.count else { continue }
                let last = try states.narrowed(1, start: count - 1, length: 1)
                return try backbone.head(last, context).values(as: Float.self)
            }
        }
    }
}

extension LlamaConfiguration {
    /// The most tokens of one sequence.
    public var contextLength: Int {
        guard case .dynamic(let factor, let positions) = rotary.scaling else { return maxPositionEmbeddings }
        return Int(min(Double(positions) * max(factor, 1), Double(Int32.max)))
    }

    /// How many tokens can be generated after a prompt: those that are asked for, as far as the context has room.
    ///
    /// - Throws: `ModelError` when the prompt is empty, too long, or has tokens that the model does not know.
    func tokensLeft(after prompt: [Int], _ settings: GenerationSettings) throws -> Int {
        guard !prompt.isEmpty else { throw ModelError("the prompt has no tokens; at least one is needed") }
        if let stranger = prompt.first(where: { $0 < 0 || $0 >= vocabSize }) {
            throw ModelError(
                "the prompt has the token \(stranger), but the model's vocabulary has \(vocabSize): "
                    + "the tokenizer is of another model")
        }
        guard prompt.count < contextLength else {
            throw ModelError(
                "the prompt has \(prompt.count) tokens, the model's context holds \(contextLength) with at least one "
                    + "new token: shorten the prompt")
        }
        return min(settings.maxTokens, contextLength - prompt.count)
    }
}
