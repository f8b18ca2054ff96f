import Torch

/// The rows of a packed sequence, one behind the other: none sees another's tokens, and in each positions begin anew.
public struct Segments: Sendable, Hashable {
    /// The tokens of each row, in order; together they are the sequence.
    public let lengths: [Int]

    /// Describes a sequence.
    ///
    /// - Parameter lengths: The tokens of each row; rows without any are left out.
    public init(_ lengths: [Int]) {
        self.lengths = lengths.filter { $0 > 0 }
    }

    /// The tokens of all rows.
    public var total: Int { lengths.reduce(0, +) }
    /// The tokens of the longest row.
    public var longest: Int { lengths.max() ?? 0 }

    /// The position of every token in its row, int64 `[1, total]`.
    func positions(device: Device) throws -> Tensor {
        try Tensor(lengths.flatMap { 0..<$0 }, shape: [1, total]).to(device: device)
    }

    /// Checks that a forward pass can have these rows.
    ///
    /// - Throws: `ModelError` when they are not the sequence, or the pass says itself who sees whom.
    func requireFit(_ ids: Tensor, _ context: Context) throws {
        guard ids.size(0) == 1, ids.size(1) == total else {
            throw ModelError("token ids have shape \(ids.shape); the packed rows make [1, \(total)]")
        }
        guard context.cache == nil, context.mask == nil, context.positions == nil else {
            throw ModelError("a packed sequence has its own mask and positions and no cache; give none of them")
        }
    }
}
