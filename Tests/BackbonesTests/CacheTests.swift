import Backbones
import TestSupport
import Testing
import Torch

@Suite struct CacheTests {
    /// How a sequence of 24 tokens is cut: token by token, in two parts, in parts longer than the windows.
    static let cuts = [Array(repeating: 1, count: 24), [15, 9], [1, 3, 12, 8], [23, 1]]

    /// Dynamic scaling is left out: its base depends on the length at the time a key is made.
    @Test(arguments: kinds.filter { $0 != "llama-dynamic" }, cuts)
    func partsEqualTheWhole(kind: String, parts: [Int]) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 11)
        let backbone = try load(folder)
        var random = SeededGenerator(seed: 21)
        let ids = try tensor(random.tokens(rows: 2, length: 24, vocabulary: 97))
        try withoutGrad {
            let whole = try backbone.logits(ids)
            let cache = backbone.makeCache(capacity: 24)
            var logits: [Tensor] = []
            for part in parts {
                let piece = try ids.narrowed(1, start: cache.length, length: part)
                logits.append(try backbone.logits(piece, Context(cache: cache)))
            }
            #expect(cache.length == 24)
            #expect(try difference(Tensor.concatenate(logits, dimension: 1), whole) < 1e-5)
        }
    }

    @Test func truncatedCacheForgets() async throws {
        let backbone = try load(try await TinyModels.shared.folder("mistral", seed: 11))
        try withoutGrad {
            let cache = backbone.makeCache(capacity: 12)
            _ = try backbone.logits(tensor([[1, 2, 3, 4, 5]]), Context(cache: cache))
            _ = try backbone.logits(tensor([[90, 91, 92]]), Context(cache: cache))
            cache.truncate(to: 5)
            let again = try backbone.logits(tensor([[6, 7]]), Context(cache: cache))
            let whole = try backbone.logits(tensor([[1, 2, 3, 4, 5, 6, 7]]))
            #expect(try difference(again, whole.narrowed(1, start: 5, length: 2)) < 1e-5)
        }
    }

    @Test func fullCacheIsAnError() async throws {
        let backbone = try load(try await TinyModels.shared.folder("llama", seed: 11))
        let cache = backbone.makeCache(capacity: 4)
        let sentence = message { _ = try backbone.logits(tensor([[1, 2, 3, 4, 5]]), Context(cache: cache)) }
        #expect(sentence == "5 tokens do not fit into a key/value cache of 4")
    }

    /// Rows of different lengths, padded on the right, with their positions and mask: each as if it were alone.
    @Test(arguments: ["llama", "mistral", "qwen2-sliding", "qwen3-sliding", "llama-yarn"])
    func paddedRowsEqualSingleRows(kind: String) async throws {
        let backbone = try load(try await TinyModels.shared.folder(kind, seed: 11))
        let lengths = [19, 4, 11]
        var random = SeededGenerator(seed: 22)
        let rows = lengths.map { random.tokens(rows: 1, length: $0, vocabulary: 97)[0] }
        let batch = Batch(rows: rows, padding: 0)
        try withoutGrad {
            let all = try backbone.logits(tensor(batch.ids), batch.context())
            for (index, row) in rows.enumerated() {
                let alone = try backbone.logits(tensor([row]))
                let padded = try all.narrowed(0, start: index, length: 1).narrowed(1, start: 0, length: row.count)
                #expect(try difference(padded, alone) < 1e-5)
            }
        }
    }

    /// Padded rows go on with new tokens, whose slots lie behind the padding: windows count positions, not slots.
    @Test(arguments: ["llama", "mistral", "qwen2-sliding", "llama-linear"])
    func paddedRowsGoOn(kind: String) async throws {
        let backbone = try load(try await TinyModels.shared.folder(kind, seed: 11))
        var random = SeededGenerator(seed: 23)
        let rows = [13, 5, 9].map { random.tokens(rows: 1, length: $0, vocabulary: 97)[0] }
        let new = random.tokens(rows: 3, length: 6, vocabulary: 97)
        let batch = Batch(rows: rows, padding: 0)
        try withoutGrad {
            let cache = backbone.makeCache(capacity: 19)
            _ = try backbone.logits(tensor(batch.ids), batch.context(cache: cache))
            for step in 0..<6 {
                let ids = try tensor(new.map { [$0[step]] })
                let logits = try backbone.logits(ids, batch.context(cache: cache, step: step))
                for (index, row) in rows.enumerated() {
                    let alone = try backbone.logits(tensor([row + new[index][...step]]))
                    let last = try alone.narrowed(1, start: row.count + step, length: 1)
                    #expect(try difference(logits.narrowed(0, start: index, length: 1), last) < 1e-5)
                }
            }
        }
    }

    /// Two documents in one row: positions start again and the mask keeps them apart.
    @Test(arguments: ["llama", "mistral", "qwen3"])
    func packedRowsEqualSingleRows(kind: String) async throws {
        let backbone = try load(try await TinyModels.shared.folder(kind, seed: 11))
        var random = SeededGenerator(seed: 24)
        let documents = [12, 17].map { random.tokens(rows: 1, length: $0, vocabulary: 97)[0] }
        let owner = documents.enumerated().flatMap { index, ids in ids.map { _ in index } }
        let visible = owner.indices.flatMap { query in owner.indices.map { $0 <= query && owner[$0] == owner[query] } }
        try withoutGrad {
            var context = Context()
            context.positions = try Tensor(documents.flatMap { Array($0.indices) }, shape: [1, 29])
            context.length = 17
            context.mask = try Tensor(visible, shape: [1, 1, 29, 29])
            let all = try backbone.logits(tensor([documents.flatMap { $0 }]), context)
            let alone = try documents.map { try backbone.logits(tensor([$0])) }
            #expect(try difference(all, Tensor.concatenate(alone, dimension: 1)) < 1e-5)
        }
    }
}

/// Rows padded on the right, with what a forward pass must know about them.
private struct Batch {
    let ids: [[Int]]
    private let lengths: [Int]
    private let width: Int

    init(rows: [[Int]], padding: Int) {
        let width = rows.map(\.count).max() ?? 0
        ids = rows.map { $0 + Array(repeating: padding, count: width - $0.count) }
        lengths = rows.map(\.count)
        self.width = width
    }

    /// The pass over the rows themselves.
    func context(cache: KeyValueCache? = nil) throws -> Context {
        var context = Context(cache: cache)
        context.positions = try tensor(lengths.map { _ in Array(0..<width) })
        context.length = width
        let visible = lengths.flatMap { length in
            (0..<width).flatMap { query in (0..<width).map { $0 <= query && ($0 < length || $0 == query) } }
        }
        context.mask = try Tensor(visible, shape: [lengths.count, 1, width, width])
        return context
    }

    /// The pass over one new token of each row.
    func context(cache: KeyValueCache, step: Int) throws -> Context {
        var context = Context(cache: cache)
        context.positions = try tensor(lengths.map { [$0 + step] })
        context.length = width + step + 1
        let visible = lengths.flatMap { length in (0...(width + step)).map { $0 < length || $0 >= width } }
        context.mask = try Tensor(visible, shape: [lengths.count, 1, 1, width + step + 1])
        return context
    }
}
