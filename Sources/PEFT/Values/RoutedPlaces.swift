import Backbones
import Torch

/// Stands in a sublayer for several adapters: each row's output is that of its own adapter.
final class RoutedSublayer: SublayerAdapter {
    func output(
        _ output: Tensor, from input: Tensor, stream: Tensor, of sublayer: Sublayer, in context: Context
    ) throws -> Tensor {
        let routing = try context.requiredRouting(at: sublayer.path)
        let own = context.unrouted
        func adapted(_ adapter: (any RoutedAdapter)?, _ parts: [Tensor]) throws -> Tensor {
            guard let occupant = adapter?.occupant(of: sublayer) as? any SublayerAdapter else { return parts[0] }
            return try occupant.output(parts[0], from: parts[1], stream: parts[2], of: sublayer, in: own)
        }
        if let common = routing.common { return try adapted(common, [output, input, stream]) }
        return try RoutedRows.of(routing, output, context, path: sublayer.path).map([output, input, stream], adapted)
    }
}

/// Stands in front of keys and values for several adapters; all rows of a pass have to use the same.
final class RoutedPrefix: AttentionPrefix {
    private unowned let state: AttentionState

    init(_ state: AttentionState) {
        self.state = state
    }

    var length: Int { 0 }

    func length(in context: Context) -> Int {
        (context.routing?.rows ?? []).compactMap { occupant($0)?.length(in: context.unrouted) }.max() ?? 0
    }

    func keysAndValues(of state: AttentionState, in context: Context) throws -> (keys: Tensor, values: Tensor) {
        let routing = try context.requiredRouting(at: state.path)
        guard let common = routing.common, let prefix = occupant(common) else {
            throw PEFTError(
                "\(state.path): keys and values in front belong to all rows of a pass; rows that use an adapter with a "
                    + "prefix need a pass without others")
        }
        return try prefix.keysAndValues(of: state, in: context.unrouted)
    }

    func gate(of state: AttentionState, in context: Context) throws -> Tensor? {
        guard let common = try context.requiredRouting(at: state.path).common else { return nil }
        return try occupant(common)?.gate(of: state, in: context.unrouted)
    }

    private func occupant(_ adapter: (any RoutedAdapter)?) -> (any AttentionPrefix)? {
        adapter?.occupant(of: state) as? any AttentionPrefix
    }
}

/// Stands in the token vectors for several adapters; vectors in front need a pass in which all rows use the same.
final class RoutedEmbedding: EmbeddingAdapter {
    private unowned let embedding: TokenEmbedding

    init(_ embedding: TokenEmbedding) {
        self.embedding = embedding
    }

    func virtualTokens(in context: Context) -> Int {
        (context.routing?.rows ?? []).compactMap { occupant($0)?.virtualTokens(in: context.unrouted) }.max() ?? 0
    }

    func prompt(for embedding: TokenEmbedding, in context: Context) throws -> Tensor? {
        guard let common = try context.requiredRouting(at: embedding.path).common else {
            throw PEFTError(
                "\(embedding.path): vectors in front belong to all rows of a pass; rows that use an adapter with virtual "
                    + "tokens need a pass without others")
        }
        return try occupant(common)?.prompt(for: embedding, in: context.unrouted)
    }

    func embeddings(_ embedded: Tensor, at positions: Tensor, in context: Context) throws -> Tensor {
        let routing = try context.requiredRouting(at: embedding.path)
        let own = context.unrouted
        func adapted(_ adapter: (any RoutedAdapter)?, _ parts: [Tensor]) throws -> Tensor {
            try occupant(adapter)?.embeddings(parts[0], at: parts[1], in: own) ?? parts[0]
        }
        if let common = routing.common { return try adapted(common, [embedded, positions]) }
        let rows = try RoutedRows.of(routing, embedded, context, path: embedding.path)
        return try rows.map([embedded, positions.expanded([embedded.size(0), -1])], adapted)
    }

    private func occupant(_ adapter: (any RoutedAdapter)?) -> (any EmbeddingAdapter)? {
        adapter?.occupant(of: embedding) as? any EmbeddingAdapter
    }
}
