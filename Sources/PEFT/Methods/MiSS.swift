import Backbones
import Formats
import Torch

/// Matrix shard sharing (MiSS) and Bone, its first form: one trained matrix a layer, repeated over shards of the
/// inputs; zero at the start. arXiv 2409.15371
///
/// With `D` the trained matrix, by `init_weights`:
///
/// - `true` (MiSS): `D [r, out]`, `dW[o, i] = D[i mod r, o]`: the inputs are cut into shards of width `r`, which are
///   summed and multiplied by `D`; a last shard may be narrower;
/// - `mini`: `D [r, mini_r]` is repeated along the outputs, `dW[o, i] = D[i mod r, o mod mini_r]`;
/// - `bat` (Bone): `D [out / r, r, r]`; with `W` in blocks of `r` times `r`, block `(a, c)` becomes
///   `W_ac (I + D_a) + D_a`;
/// - `false`: as `true`, with a random start.
///
/// Saved is `base_model.model.<path>.miss_block`, in these shapes, as peft has it.
public struct MiSS: Method {
    /// The value of `peft_type`.
    public static let peftType = "MISS"
    /// The hyper-parameters.
    public static let fields: [Field<MiSS>] = [
        Field("r", \.r, "width of the shards, or of the blocks"),
        Field("miss_dropout", \.dropout, "probability of zeroing an element of the adapter's input"),
        Field("mini_r", \.miniR, "outputs after which the matrix of init_weights mini repeats"),
        Field("init_weights", \.form, "form and start: true, mini, bat (Bone), or false: true with a random start"),
    ]
    /// What peft 0.21.2 writes for `MISS`.
    public static let folderFields = FolderFields(decimals: ["miss_dropout"], adaptedBiases: "MiSS_only")

    /// Where the trained matrix acts, and how it starts.
    public enum Form: String, FlagOrName {
        /// Shards of the inputs share one matrix.
        case shards = "true"
        /// Shards of the inputs and of the outputs do.
        case mini
        /// Blocks of the weight are changed by themselves.
        case bat
        /// As `shards`; uniform within `1 / sqrt(out)` at the start, so that the output changes at once. For tests.
        case random = "false"
    }

    /// The width of the shards, or of the blocks.
    public var r = 64
    /// The probability of zeroing an element of the adapter's input.
    public var dropout = 0.0
    /// The outputs after which the matrix of the form `mini` repeats.
    public var miniR = 1
    /// The form and the start.
    public var form = Form.shards

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(r, "r")
        try requirePositive(miniR, "mini_r")
        try requireProbability(dropout, "miss_dropout")
        guard form != .bat || dropout == 0 else {
            throw PEFTError("miss_dropout: init_weights bat drops nothing; expected 0, found \(dropout)")
        }
    }

    /// The values of the matrices.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        points.linears.reduce(0) { $0 + Double(r) * Double(form == .mini ? miniR : $1.outFeatures) }
    }

    /// Makes the matrix of every layer.
    ///
    /// - Throws: `PEFTError` when a layer does not fit; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        try requireFit(points)
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let block = try attachment.train(
                adapterKey(layer.path, "miss_block"), from: start(of: layer, seed: seed), on: points.device)
            guard form != .bat else {
                attachment.updates.append((layer, BlockAffineUpdate(blocks: block)))
                continue
            }
            let shards = try Tensor((0..<layer.inFeatures).map { $0 % r }, shape: [layer.inFeatures])
            let places = try Tensor.eye(r).gathered(shards, dimension: 1).to(device: points.device)
            let update = MiSSUpdate(block: block, places: places, outputs: layer.outFeatures, dropout: dropout)
            attachment.updates.append((layer, update))
        }
        return attachment
    }

    private func requireFit(_ points: AttachPoints) throws {
        if let narrow = points.linears.min(by: { $0.inFeatures < $1.inFeatures }), narrow.inFeatures < r {
            throw PEFTError("r: expected at most the \(narrow.inFeatures) inputs of \(narrow.path), found \(r)")
        }
        if form == .bat { try points.requireDivisor(r, "r") { [$0.inFeatures, $0.outFeatures] } }
        if form == .mini { try points.requireDivisor(miniR, "mini_r") { [$0.outFeatures] } }
    }

    private func start(of layer: Linear, seed: Seed) throws -> Tensor {
        let (outputs, name) = (layer.outFeatures, "\(layer.path).miss_block")
        switch form {
        case .shards: return try Tensor.zeros([r, outputs])
        case .mini: return try Tensor.zeros([r, miniR])
        case .bat: return try Tensor.zeros([outputs / r, r, r])
        case .random: return try seed.uniform(name, [r, outputs], within: 1 / Double(outputs).squareRoot())
        }
    }
}

/// `dW[o, i] = D[i mod r, o mod m]`, a product of `D` and fixed places.
struct MiSSUpdate: LowRankUpdate {
    /// `[r, m]`.
    let block: Tensor
    /// `[r, in]`: 1 where the input lies at that place of its shard.
    let places: Tensor
    let outputs: Int
    let dropout: Double
    let scale = 1.0

    func factors() throws -> (down: Tensor, up: Tensor) {
        let (rank, period) = (block.size(0), block.size(1))
        let tiled = try block.unsqueezed(1).expanded([rank, outputs / period, period])
        return (places, try tiled.reshaped([rank, outputs]).transposed())
    }
}

/// `W'_ac = W_ac (I + D_a) + D_a` for every block of the weight.
struct BlockAffineUpdate: WeightUpdate {
    /// `[out / r, r, r]`.
    let blocks: Tensor
    let dropout = 0.0

    func output(for input: Tensor, of layer: Linear, in context: Context) throws -> Tensor {
        let weight = try merged(into: layer.weight.values(dtype: .float32))
        return try linear(input, weight.to(dtype: input.dtype), layer.bias?.value())
    }

    func merged(into weight: Tensor) throws -> Tensor {
        let (rows, size) = (blocks.size(0), blocks.size(1))
        let blocks = try blocks.to(dtype: weight.dtype)
        // The rows of a row of blocks, piece by piece of `r` columns: [out / r, in, r].
        let product = try weight.reshaped([rows, -1, size]).matmul(blocks)
        let pieces = try product.reshaped([rows, size, -1, size]) + blocks.unsqueezed(2)
        return try weight + pieces.reshaped(weight.shape)
    }
}
