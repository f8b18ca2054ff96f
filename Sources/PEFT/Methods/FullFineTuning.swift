import Backbones
import Formats
import Torch

/// Full fine-tuning: every parameter is trained, as a copy in fp32 beside the frozen model.
///
/// The folder holds the whole model's values, `base_model.model.<name in the checkpoint>` in fp32, so it is as large
/// as the model; a head that is the embedding is held once. Decay acts on matrices alone.
public struct FullFineTuning: Method {
    /// The value of `peft_type`.
    public static let peftType = "FULL"
    /// There are none.
    public static let fields: [Field<FullFineTuning>] = []
    /// All parameters of the selected blocks are trained, of whatever layer.
    public static let usesLinears = false

    /// Makes the method.
    public init() {}

    /// Every value of the model once.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double {
        points.parameters.reduce(0) { $0 + ($1 === points.tiedHead ? 0 : Double($1.frozen.count)) }
    }

    /// Copies every parameter.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        try points.addCopies(of: points.parameters, to: &attachment)
        return attachment
    }
}
