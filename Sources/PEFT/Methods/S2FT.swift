import Backbones
import Formats
import Torch

/// Structured sparse fine-tuning: a few attention heads and MLP channels of the whole model are trained, each with the
/// dense block of weight that belongs to it. arXiv 2412.06289
///
/// Heads are the inputs of `o_proj` and the outputs of `v_proj`, channels the inputs of `down_proj` and the outputs of
/// `up_proj`. Of the weights, `W'[:, S] = W[:, S] + D` where units are inputs and `W'[S, :] = W[S, :] + D` where they
/// are outputs. Units are drawn evenly from all layers together, so layers have different numbers of them. Nothing is
/// permuted: `S` is a list of indices, which also serves heads that share keys and values.
public struct S2FT: Method {
    /// The value of `peft_type`.
    public static let peftType = "S2FT"
    /// The hyper-parameters.
    public static let fields: [Field<S2FT>] = [
        Field("ratio_o", \.outputRatio, "share of the heads whose columns of o_proj are trained"),
        Field("ratio_d", \.downRatio, "share of the channels whose columns of down_proj are trained"),
        Field("ratio_v", \.valueRatio, "share of the key/value heads whose rows of v_proj are trained"),
        Field("ratio_u", \.upRatio, "share of the channels whose rows of up_proj are trained"),
        Field("random_seed", \.randomSeed, "what the units are drawn from; null: the run's seed"),
    ]
    /// Every linear layer but the head, of which the ratios choose.
    public static let defaultTargets = Selection.Modules.expression("all-linear")

    /// The share of the heads whose columns of `o_proj` are trained.
    public var outputRatio = 0.052
    /// The share of the channels whose columns of `down_proj` are trained.
    public var downRatio = 0.02
    /// The share of the key/value heads whose rows of `v_proj` are trained.
    public var valueRatio = 0.0
    /// The share of the channels whose rows of `up_proj` are trained.
    public var upRatio = 0.0
    /// What the units are drawn from; nil: the run's seed.
    public var randomSeed: Int?

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        for (field, ratio) in zip(Self.fields, ratios.map(\.ratio)) where !(0...1).contains(ratio) {
            throw PEFTError("\(field.name): expected a number in 0...1, found \(ratio)")
        }
    }

    /// The method with the seed of its units written down.
    public func resolved(seed: Seed) -> S2FT { writing(seed, in: \.randomSeed) }

    /// The values of the chosen units' blocks.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        ratios.reduce(0) { sum, choice in
            let structures = points.linears(choice.role).map(Structure.init)
            guard let first = structures.first else { return sum }
            let units = structures.reduce(0) { $0 + $1.units }
            return sum + (choice.ratio * Double(units)).rounded(.down) * Double(first.width * first.depth)
        }
    }

    /// Draws the units; their changes start at zero.
    ///
    /// - Throws: `PEFTError` when the ratios choose nothing; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let seed = seed.replaced(by: randomSeed)
        var attachment = Attachment(trainables: [], updates: [])
        for (role, ratio) in ratios {
            let structures = points.linears(role).map(Structure.init)
            let drawn = drawn(points.folder == nil ? ratio : 0, of: structures, role, from: seed)
            for (structure, units) in zip(structures, drawn) {
                try structure.train(units, in: &attachment, at: points)
            }
        }
        guard !attachment.updates.isEmpty else {
            throw PEFTError(
                "ratio_o, ratio_d, ratio_v, ratio_u: the shares of the selected layers' heads and channels come to less "
                    + "than one; expected larger ratios, or o_proj, down_proj, v_proj or up_proj in target_modules")
        }
        return attachment
    }

    private var ratios: [(role: LinearRole, ratio: Double)] {
        [(.output, outputRatio), (.down, downRatio), (.value, valueRatio), (.up, upRatio)]
    }

    /// `floor(ratio * units)` units of all structures together, as ascending lists, one a structure.
    private func drawn(
        _ ratio: Double, of structures: [Structure], _ role: LinearRole, from seed: Seed
    ) -> [[Int]] {
        let all = structures.enumerated().flatMap { place, structure in (0..<structure.units).map { (place, $0) } }
        var stream = seed.stream("s2ft.\(role.rawValue)")
        var chosen = structures.map { _ in [Int]() }
        for index in stream.permutation(all.count).prefix(Int(ratio * Double(all.count))) {
            chosen[all[index].0].append(all[index].1)
        }
        return chosen.map { $0.sorted() }
    }
}

/// A weight as heads or channels of which some are trained.
private struct Structure {
    let layer: Linear
    /// Whether the units are the weight's inputs.
    var isInput: Bool { layer.role == .output || layer.role == .down }
    /// The features of one unit.
    var width: Int { layer.heads?.dimension ?? 1 }
    /// The heads or channels that there are.
    var units: Int { (isInput ? layer.inFeatures : layer.outFeatures) / width }
    /// The size of the other side.
    var depth: Int { isInput ? layer.outFeatures : layer.inFeatures }

    /// Trains drawn units, or those of the folder that is being loaded.
    func train(_ units: [Int], in attachment: inout Attachment, at points: AttachPoints) throws {
        let name = adapterKey(layer.path, "s2ft_indices")
        let indices = try points.indices(name, below: isInput ? layer.inFeatures : layer.outFeatures) {
            units.flatMap { unit in (0..<width).map { unit * width + $0 } }
        }
        let count = indices.count
        guard count > 0 else { return }
        let block = try attachment.train(
            adapterKey(layer.path, "s2ft_block"), from: Tensor.zeros(isInput ? [depth, count] : [count, depth]),
            on: points.device)
        attachment.indices[name] = indices
        let update: any WeightUpdate =
            isInput
            ? ColumnUpdate(values: block, columns: indices, inFeatures: layer.inFeatures)
            : RowUpdate(values: block, rows: indices, outFeatures: layer.outFeatures)
        attachment.updates.append((layer, update))
    }
}
