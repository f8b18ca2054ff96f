import Backbones
import Formats
import Torch

/// Partial connection adaptation: a few random input columns of each weight are trained in place, all others stay.
/// arXiv 2503.01905
///
/// With `I` the chosen columns and `s = paca_alpha / r`, `W'[:, I] = W[:, I] + s * delta`. The gradient of `delta
/// [out, r]` needs `x[..., I]` alone. It is LoRA of rank `r` whose `A` picks features and is never trained.
public struct PaCA: Method {
    /// The value of `peft_type`.
    public static let peftType = "PACA"
    /// The hyper-parameters.
    public static let fields: [Field<PaCA>] = [
        Field("r", \.r, "trained columns of each weight"),
        Field("paca_alpha", \.alpha, "the change is scaled by paca_alpha / r"),
        Field("random_seed", \.randomSeed, "what the columns are drawn from; null: the run's seed"),
        Field("save_as_lora", \.savesAsLoRA, "save a LoRA folder that computes the same"),
    ]
    /// What peft has for `PACA` from release 0.22 on.
    public static let folderFields = FolderFields(
        neutral: ["init_weights": true], inert: ["init_weights"], own: ["save_as_lora"])
    /// Every linear layer but the head.
    public static let defaultTargets = Selection.Modules.expression("all-linear")

    /// The trained columns of each weight.
    public var r = 8
    /// The scale times the number of columns.
    public var alpha = 8.0
    /// What the columns are drawn from; nil: the run's seed.
    public var randomSeed: Int?
    /// Whether the folder is one of LoRA.
    public var savesAsLoRA = false

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws { try requirePositive(r, "r") }

    /// The method with the seed of its columns written down.
    public func resolved(seed: Seed) -> PaCA { writing(seed, in: \.randomSeed) }

    /// `r` columns of every layer.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        points.linears.reduce(0) { $0 + Double(r) * Double($1.outFeatures) }
    }

    /// Chooses the columns of every layer; their changes start at zero.
    ///
    /// - Throws: `PEFTError` when a layer has fewer columns; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        let seed = seed.replaced(by: randomSeed)
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            guard r <= layer.inFeatures else {
                throw PEFTError("r: expected at most the \(layer.inFeatures) columns of \(layer.path), found \(r)")
            }
            let name = adapterKey(layer.path, "paca_indices")
            let columns = try points.indices(name, below: layer.inFeatures, count: r) {
                var stream = seed.stream("\(layer.path).paca_indices")
                return stream.permutation(layer.inFeatures).prefix(r).sorted()
            }
            let delta = try attachment.train(
                adapterKey(layer.path, "paca_delta"), from: Tensor.zeros([layer.outFeatures, r]), on: points.device)
            attachment.indices[name] = columns
            let update = ColumnUpdate(
                values: delta, columns: columns, inFeatures: layer.inFeatures, scale: alpha / Double(r))
            attachment.updates.append((layer, update))
        }
        if savesAsLoRA { attachment.export = { [updates = attachment.updates] in try lora(of: updates) } }
        return attachment
    }

    /// The same as LoRA of rank `r`: `A[j, I[j]] = 1`, `B = delta`.
    private func lora(
        of updates: [(linear: Linear, update: any WeightUpdate)]
    ) throws -> (method: any Method, tensors: KeyedList<Tensor>) {
        var method = LoRA()
        (method.r, method.loraAlpha) = (r, alpha)
        var tensors = KeyedList<Tensor>()
        for (layer, update) in updates {
            guard let update = update as? ColumnUpdate else { continue }
            let a = try callTensor("aten::one_hot", update.columns, layer.inFeatures)
            tensors[adapterKey(layer.path, "lora_A.weight")] = try a.to(dtype: .float32)
            tensors[adapterKey(layer.path, "lora_B.weight")] = update.values
        }
        return (method, tensors)
    }
}
