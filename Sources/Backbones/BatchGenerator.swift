import Torch

/// The tokens generated after one prompt of a batch.
public struct GeneratedTokens: Sendable, Equatable {
    /// The tokens, without the stop token that ended them.
    public var tokens: [Int]
    /// Why they ended.
    public var stopReason: StopReason
}

extension Backbone {
    /// Goes on from several prompts at once; each gives what it would give alone.
    ///
    /// Each row has its own random stream of the same seed, as if the prompts had been given one after the other.
    /// Stop strings are not looked for. In bfloat16 the sums of a batch round differently, and where two tokens are
    /// all but equally likely the choice can too.
    ///
    /// - Parameters:
    ///   - prompts: Token ids, of any lengths.
    ///   - settings: How tokens are chosen and when to stop.
    ///   - routing: Which adapter each prompt uses, where several share the model.
    /// - Returns: One result for each prompt.
    /// - Throws: `ModelError` when a prompt does not fit or a setting is out of range; `TorchError` when memory is
    ///   short.
    public func generateBatch(
        prompts: [[Int]], settings: GenerationSettings = GenerationSettings(), routing: Routing? = nil
    ) throws -> [GeneratedTokens] {
        guard !prompts.isEmpty else { return [] }
        if let routing, routing.rows.count != prompts.count {
            throw ModelError("\(prompts.count) prompts, but adapters are chosen for \(routing.rows.count)")
        }
        return try withoutGrad { try BatchRun(self, prompts, settings, routing).finish() }
    }
}

/// One batch under way.
///
/// Prompts are padded on the right: new tokens of all rows share the slots behind the padding.
private final class BatchRun {
    private struct Row {
        let index: Int
        let promptCount: Int
        let limit: Int
        var sampler: Sampler
        var tokens: [Int] = []
        var stopReason: StopReason?
    }

    private let backbone: any Backbone
    private let settings: GenerationSettings
    /// The adapters of `rows`.
    private var routing: Routing?
    private let cache: KeyValueCache
    /// The slots of the prompts.
    private let width: Int
    private let isPadded: Bool
    /// The rows that are in the cache, in its order.
    private var rows: [Row]
    private var results: [GeneratedTokens?]
    /// bool `[rows, 1, 1, capacity]`: false for slots of padding.
    private var visible: Tensor
    private var logits: Tensor

    init(
        _ backbone: any Backbone, _ prompts: [[Int]], _ settings: GenerationSettings, _ routing: Routing?
    ) throws {
        self.backbone = backbone
        self.settings = settings
        self.routing = routing
        let rows = try prompts.enumerated().map { index, prompt in
            Row(
                index: index, promptCount: prompt.count,
                limit: try backbone.configuration.tokensLeft(after: prompt, settings),
                sampler: try Sampler(settings, prompt: prompt))
        }
        self.rows = rows
        results = prompts.map { _ in nil }
        let width = prompts.map(\.count).max() ?? 0
        self.width = width
        isPadded = prompts.contains { $0.count < width }
        let capacity = width + (rows.map(\.limit).max() ?? 0)
        cache = backbone.makeCache(capacity: capacity)
        let slots = rows.flatMap { row in (0..<capacity).map { $0 < row.promptCount || $0 >= width } }
        visible = try Tensor(slots, shape: [rows.count, 1, 1, capacity]).to(device: backbone.device)
        logits = visible
        logits = try prefill(prompts)
    }

    func finish() throws -> [GeneratedTokens] {
        while true {
            try choose()
            try dropStopped()
            guard rows.contains(where: { $0.stopReason == nil }) else { break }
            logits = try step()
        }
        return results.map { $0 ?? GeneratedTokens(tokens: [], stopReason: .maxTokens) }
    }

    /// Passes the prompts through the model; no token sees the padding, which lies behind it.
    ///
    /// - Returns: The logits after each prompt's last token, `[rows, 1, vocabulary]`.
    private func prefill(_ prompts: [[Int]]) throws -> Tensor {
        var context = Context(cache: cache, usesAdapters: settings.usesAdapters)
        context.length = width
        context.routing = routing
        var last: [Tensor?] = prompts.map { _ in nil }
        for start in stride(from: 0, to: width, by: settings.prefillTokens) {
            let range = start..<min(start + settings.prefillTokens, width)
            let ids = prompts.flatMap { prompt in range.map { $0 < prompt.count ? prompt[$0] : 0 } }
            let states = try backbone.hiddenStates(
                Tensor(ids, shape: [prompts.count, range.count]).to(device: backbone.device), context)
            for (row, prompt) in prompts.enumerated() where range.contains(prompt.count - 1) {
                last[row] = try states.narrowed(0, start: row, length: 1)
                    .narrowed(1, start: prompt.count - 1 - start, length: 1)
            }
        }
        return try backbone.head(Tensor.concatenate(last.compactMap { $0 }), context)
    }

    /// Chooses the next token of every row that goes on.
    private func choose() throws {
        let values: [Float] = try logits.values()
        let vocabulary = values.count / max(rows.count, 1)
        for row in rows.indices where rows[row].stopReason == nil {
            let token = try rows[row].sampler.next(Array(values[row * vocabulary..<(row + 1) * vocabulary]))
            if settings.stopTokenIDs.contains(token) {
                rows[row].stopReason = .stopToken(token)
                continue
            }
            rows[row].tokens.append(token)
            if rows[row].tokens.count == rows[row].limit {
                rows[row].stopReason = rows[row].limit < settings.maxTokens ? .contextFull : .maxTokens
            }
        }
    }

    /// Notes the results of rows that have stopped, and takes them out of the cache once they are a quarter of it: a
    /// copy of the cache costs about as much as a step.
    private func dropStopped() throws {
        for row in rows {
            guard let reason = row.stopReason else { continue }
            results[row.index] = GeneratedTokens(tokens: row.tokens, stopReason: reason)
        }
        let going = rows.indices.filter { rows[$0].stopReason == nil }
        guard !going.isEmpty, going.count * 4 <= rows.count * 3 else { return }
        let kept = try Tensor(going).to(device: backbone.device)
        try cache.keep(rows: kept)
        visible = try visible.gathered(kept)
        routing = routing?.keeping(going)
        rows = going.map { rows[$0] }
    }

    /// Passes the last token of each row through the model; a row that has stopped repeats one, unused.
    private func step() throws -> Tensor {
        var context = Context(cache: cache, usesAdapters: settings.usesAdapters)
        let (count, keys) = (rows.count, cache.length + 1)
        if isPadded {
            let generated = cache.length - width
            context.positions = try Tensor(rows.map { $0.promptCount + generated }, shape: [count, 1])
                .to(device: backbone.device)
            context.mask = try visible.narrowed(3, start: 0, length: keys)
        }
        context.length = keys
        context.routing = routing
        let ids = try Tensor(rows.map { $0.tokens.last ?? 0 }, shape: [count, 1]).to(device: backbone.device)
        return try backbone.head(backbone.hiddenStates(ids, context), context)
    }
}
