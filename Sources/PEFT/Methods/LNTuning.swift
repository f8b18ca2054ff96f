import Backbones
import Formats
import Torch

/// Tuning of norms: the gains of the model's RMS norms are trained, everything else stays. arXiv 2312.11420
public struct LNTuning: Method {
    /// The value of `peft_type`.
    public static let peftType = "LN_TUNING"
    /// The hyper-parameters.
    public static let fields: [Field<LNTuning>] = [
        Field("target_modules", \.targets, "norms to train"),
        Field("exclude_modules", \.excluded, "norms to leave out"),
    ]
    /// What peft 0.21.2 writes for `LN_TUNING`.
    public static let folderFields = FolderFields(selection: ["modules_to_save"])
    /// Norms are no linear layers.
    public static let usesLinears = false

    /// The norms to train.
    public var targets = Selection.Modules.names(["input_layernorm", "post_attention_layernorm", "norm"])
    /// The norms to leave out.
    public var excluded: Selection.Modules?

    /// Makes the method with its defaults.
    public init() {}

    /// The gains of the chosen norms.
    ///
    /// - Throws: `PEFTError` when no norm is chosen.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        try norms(of: points).reduce(0) { $0 + Double($1.frozen.count) }
    }

    /// Copies the gains of the chosen norms.
    ///
    /// - Throws: `PEFTError` when no norm is chosen; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        try points.addCopies(of: norms(of: points), to: &attachment) { "ln_tuning_layers.\($0)" }
        return attachment
    }

    private func norms(of points: AttachPoints) throws -> [Parameter] {
        let linears = Set(points.backbone.linears.map(\.path))
        let all = points.parameters.filter { $0.frozen.rank == 1 && !linears.contains($0.modulePath) }
        let chosen = try all.filter { norm in
            try targets.matches(norm.modulePath) && excluded?.matches(norm.modulePath) != true
        }
        guard !chosen.isEmpty else {
            let names = Set(all.map { String($0.modulePath.split(separator: ".").last ?? "") }).sorted()
            throw PEFTError(
                "target_modules \(targets.json.compact) matches no norm of the model; its norms are "
                    + names.joined(separator: ", "))
        }
        return chosen
    }
}
