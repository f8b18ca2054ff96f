import Torch

/// Where the tokens of a forward pass stand, with the virtual ones in front of each row and the prefix of attention.
///
/// Callers count real tokens alone: virtual ones are added here, in the first pass of a cache or in every pass without
/// one, and their hidden states are taken away again.
struct TokenLayout {
    /// The virtual tokens in front of each row in this pass.
    let virtual: Int
    /// int64 `[batch or 1, time]`: each real token's place in its row.
    let ownPositions: Tensor
    /// int64 `[batch or 1, time with virtual tokens]`: the positions that rotate queries and keys.
    let positions: Tensor
    /// Which keys each token sees, prefix not counted.
    let masks: AttentionMasks
    /// One more than the largest position.
    let length: Int
    /// The real tokens of each packed row.
    private let lengths: [Int]?
    private let time: Int

    /// Lays out a pass.
    ///
    /// - Parameters:
    ///   - ids: `[batch, time]`.
    ///   - context: The forward pass.
    ///   - virtualTokens: The vectors in front of every row.
    ///   - prefix: The keys in front of them.
    ///   - device: Where the model lives.
    /// - Throws: `TorchError` when memory is short.
    init(_ ids: Tensor, _ context: Context, virtualTokens: Int, prefix: Int, device: Device) throws {
        let (time, past) = (ids.size(1), context.cache?.length ?? 0)
        let isFirst = past == 0 && (context.cache?.leading ?? 0) == 0
        let virtual = isFirst ? virtualTokens : 0
        let shift = virtualTokens + prefix
        self.time = time
        self.virtual = virtual
        lengths = context.segments?.lengths
        let given = try context.positions.map { try $0.rank == 1 ? $0.unsqueezed(0) : $0 }
        ownPositions =
            try given ?? context.segments?.positions(device: device)
            ?? Tensor.arange(past, past + time, device: device).unsqueezed(0)
        length = (context.length ?? context.segments?.longest ?? past + time) + shift
        let keyPositions = try context.cache.map { try $0.notePositions(given, time: time, device: device) } ?? given
        let queries = try shift == 0 ? ownPositions : ownPositions + shift
        let front = try Tensor.arange(prefix, shift, device: device).unsqueezed(0)
        func behindFront(_ positions: Tensor) throws -> Tensor {
            try Tensor.concatenate([front.expanded([positions.size(0), -1]), positions], dimension: 1)
        }
        let leading = virtual + (context.cache?.leading ?? 0)
        if virtual == 0 {
            positions = queries
        } else if let lengths, lengths.count > 1 {
            let rows = try queries.split(lengths, dimension: 1)
            positions = try Tensor.concatenate(rows.map(behindFront), dimension: 1)
        } else {
            positions = try behindFront(queries)
        }
        let keys = try keyPositions.map { own -> Tensor in
            let shifted = try shift == 0 ? own : own + shift
            return try leading == 0 ? shifted : behindFront(shifted)
        }
        masks = AttentionMasks(
            time: time + virtual, past: past + leading - virtual,
            given: try context.mask.map { try Self.extended($0, queries: virtual, time: time, keys: leading) },
            positions: keys.map { [positions] in (positions, $0) },
            segments: context.segments.map { Segments($0.lengths.map { $0 + virtual }) }, device: device)
        if virtual > 0 { context.cache?.begin(leading: virtual) }
    }

    /// Puts the virtual tokens in front of every row.
    ///
    /// - Parameters:
    ///   - prompt: `[virtual, hidden]`.
    ///   - embedded: `[batch, time, hidden]`.
    func withVirtualTokens(_ prompt: Tensor, _ embedded: Tensor) throws -> Tensor {
        let front = try prompt.to(dtype: embedded.dtype).unsqueezed(0).expanded([embedded.size(0), -1, -1])
        guard let lengths, lengths.count > 1 else {
            return try Tensor.concatenate([front, embedded], dimension: 1)
        }
        let rows = try embedded.split(lengths, dimension: 1)
        return try Tensor.concatenate(rows.flatMap { [front, $0] }, dimension: 1)
    }

    /// Takes the hidden states of virtual tokens away, `[batch, time with virtual tokens, hidden]` to
    /// `[batch, time, hidden]`.
    func withoutVirtualTokens(_ states: Tensor) throws -> Tensor {
        guard virtual > 0 else { return states }
        guard let lengths, lengths.count > 1 else { return try states.narrowed(1, start: virtual, length: time) }
        let parts = try states.split(lengths.flatMap { [virtual, $0] }, dimension: 1)
        return try Tensor.concatenate(parts.enumerated().filter { $0.offset % 2 == 1 }.map(\.element), dimension: 1)
    }

    /// A mask `[batch, 1, time or 1, keys]` over real tokens with virtual ones in front, which every token sees and
    /// which see each other causally.
    private static func extended(_ mask: Tensor, queries: Int, time: Int, keys: Int) throws -> Tensor {
        guard keys > 0 else { return mask }
        let wide = try mask.widened(by: keys)
        guard queries > 0 else { return wide }
        let rows = try wide.expanded([-1, -1, time, -1])
        let front = try callTensor(
            "aten::tril", Tensor.ones([queries, rows.size(3)], dtype: .bool, device: mask.device))
        return try Tensor.concatenate(
            [front.expanded([rows.size(0), rows.size(1), queries, rows.size(3)]), rows], dimension: 2)
    }
}

extension Tensor {
    /// A bool mask with keys in front that every token sees.
    func widened(by keys: Int) throws -> Tensor {
        let front = try Tensor.ones([size(0), size(1), size(2), keys], dtype: .bool, device: device)
        return try Tensor.concatenate([front, self], dimension: 3)
    }
}
