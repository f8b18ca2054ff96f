import Torch

/// An adapter's part in the vectors that enter the first block.
public protocol EmbeddingAdapter: AnyObject {
    /// The vectors in front of the tokens of every row; the positions of tokens begin behind them.
    var virtualTokens: Int { get }
    /// The vectors in front in one pass, where that is not always the same.
    func virtualTokens(in context: Context) -> Int
    /// The vectors in front, `[virtualTokens, hidden]` in the model's dtype; nil where there are none.
    func prompt(for embedding: TokenEmbedding, in context: Context) throws -> Tensor?
    /// The vectors of the tokens.
    ///
    /// - Parameters:
    ///   - embedded: The pretrained vectors, `[batch, time, hidden]`.
    ///   - positions: int64 `[batch or 1, time]`, each token's place in its row, not counting what stands in front.
    ///   - context: The forward pass.
    /// - Returns: `[batch, time, hidden]`.
    func embeddings(_ embedded: Tensor, at positions: Tensor, in context: Context) throws -> Tensor
}

extension EmbeddingAdapter {
    /// No vectors in front.
    public var virtualTokens: Int { 0 }
    /// Always the same.
    public func virtualTokens(in context: Context) -> Int { virtualTokens }
    /// No vectors in front.
    public func prompt(for embedding: TokenEmbedding, in context: Context) throws -> Tensor? { nil }
    /// The pretrained vectors.
    public func embeddings(_ embedded: Tensor, at positions: Tensor, in context: Context) throws -> Tensor { embedded }
}

/// The table of token vectors, with a slot for what changes them or stands in front of them.
public final class TokenEmbedding: AttachPoint {
    /// `[vocabulary, hidden]`.
    public let table: Parameter
    /// What changes the vectors, or nil.
    public var adapter: (any EmbeddingAdapter)?

    init(table: Parameter) {
        self.table = table
    }

    /// The path in the checkpoint, such as `model.embed_tokens`.
    public var path: String { table.modulePath }

    /// The ``adapter``.
    public var occupant: AnyObject? {
        get { adapter }
        set { adapter = newValue as? any EmbeddingAdapter }
    }

    /// The vectors of token ids, `[batch, time]` to `[batch, time, hidden]`, with those in front.
    func callAsFunction(_ ids: Tensor, _ layout: TokenLayout, _ context: Context) throws -> Tensor {
        let embedded = try context.observed(table.rows(ids), path)
        guard let adapter, context.usesAdapters else { return embedded }
        let own = try adapter.embeddings(embedded, at: layout.ownPositions, in: context)
        guard layout.virtual > 0, let prompt = try adapter.prompt(for: self, in: context) else { return own }
        return try layout.withVirtualTokens(prompt, own)
    }
}
