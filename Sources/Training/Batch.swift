import Backbones
import Torch

/// Rows with what the model learns to predict: side by side and filled up at the right, or packed into one sequence.
///
/// Attention is causal, so what fills a row up is never seen by its tokens, and no label says so: the supervised
/// positions are named one by one, whatever number the filling token has. In a packed sequence each row sees itself
/// alone, and nothing predicts the first token of a row.
public struct Batch {
    /// int64 `[rows, time]`, or `[1, time]` where the rows are packed.
    public let ids: Tensor
    /// The rows of a packed sequence; nil where they lie side by side.
    public let segments: Segments?
    /// int64 `[n]`: positions in the flattened `[rows * time]` whose next token is part of the loss, row by row.
    public let positions: Tensor
    /// int64 `[n]`: the tokens that come next there.
    public let targets: Tensor
    /// The tokens of the longest row, what fills it up not counted.
    public let longest: Int
    /// The tokens of the rows, what fills them up not counted.
    public let tokens: Int
    /// For each row how many of its tokens are part of the loss.
    public let supervisedCounts: [Int]
    /// For each row where its first token lies in the flattened `[rows * time]`.
    let starts: [Int]
    /// The tokens of each row, what fills it up not counted.
    let lengths: [Int]

    /// The tokens that are part of the loss.
    public var supervisedTokens: Int { supervisedCounts.reduce(0, +) }

    /// The tokens that are computed, what fills rows up included.
    public var computedTokens: Int { ids.count }

    /// Lays out rows.
    ///
    /// - Parameters:
    ///   - examples: The rows.
    ///   - padding: The token that fills rows up.
    ///   - isPacked: Whether the rows lie in one sequence.
    ///   - multiple: What the length of each row is filled up to a multiple of. In bf16 the CPU's matrix library keeps
    ///     code and memory for every shape that it meets; see ``lengthMultiple(of:)``.
    ///   - device: Where the batch goes.
    /// - Throws: `TorchError` when memory is short.
    public init(
        _ examples: [Example], padding: Int, isPacked: Bool = false, multiple: Int = 1, device: Device = .cpu
    ) throws {
        let lengths = examples.map { Self.filled($0.ids.count, to: multiple) }
        let time = lengths.max() ?? 0
        let shape = Self.shape(of: examples.map(\.ids.count), isPacked: isPacked, multiple: multiple)
        var ids = [Int](repeating: padding, count: shape.rows * shape.time)
        var positions: [Int] = []
        var targets: [Int] = []
        var starts: [Int] = []
        var start = 0
        for (example, length) in zip(examples, lengths) {
            ids.replaceSubrange(start..<(start + example.ids.count), with: example.ids)
            for (index, isSupervised) in example.supervised.enumerated() where isSupervised && index > 0 {
                positions.append(start + index - 1)
                targets.append(example.ids[index])
            }
            starts.append(start)
            start += isPacked ? length : time
        }
        self.ids = try Tensor(ids, shape: [shape.rows, shape.time]).to(device: device)
        self.positions = try Tensor(positions).to(device: device)
        self.targets = try Tensor(targets).to(device: device)
        segments = isPacked ? Segments(lengths) : nil
        self.longest = examples.map(\.ids.count).max() ?? 0
        tokens = examples.reduce(0) { $0 + $1.ids.count }
        supervisedCounts = examples.map(\.supervisedCount)
        self.starts = starts
        self.lengths = examples.map(\.ids.count)
    }
}

extension Batch {
    /// The model's hidden states of the batch, `[rows * time, hidden]`.
    ///
    /// - Throws: `TorchError` when memory is short; what the adapter throws.
    func states(_ backbone: any Backbone, _ context: Context) throws -> Tensor {
        var context = context
        context.segments = segments
        // What fills rows up does not stretch the positions of models whose frequencies follow the length.
        context.length = max(longest, 1)
        let states = try backbone.hiddenStates(ids, context)
        return try states.reshaped([-1, states.size(-1)])
    }

    /// int64 `[rows]`: where each row's last token lies in the flattened `[rows * time]`.
    func ends() throws -> Tensor {
        try Tensor(zip(starts, lengths).map { $0 + max($1, 1) - 1 }).to(device: ids.device)
    }

    /// The shape of the token ids of rows of the given lengths.
    static func shape(of lengths: [Int], isPacked: Bool, multiple: Int) -> (rows: Int, time: Int) {
        let filled = lengths.map { Self.filled($0, to: multiple) }
        return isPacked ? (1, filled.reduce(0, +)) : (lengths.count, filled.max() ?? 0)
    }

    /// The next multiple.
    private static func filled(_ length: Int, to multiple: Int) -> Int { (length + multiple - 1) / multiple * multiple }

    /// What the length of rows should be a multiple of for a model: few shapes in bf16 on the CPU, else no filling.
    static func lengthMultiple(of backbone: any Backbone) -> Int {
        backbone.device == .cpu && backbone.dtype == .bfloat16 ? 8 : 1
    }
}
