import Backbones
import PEFT

/// How users choose the form of the frozen weights; see `WeightForm`.
public enum Quantization: String, FieldValue, CaseIterable {
    /// Plain numbers.
    case none
    /// The quantised blocks of a GGUF file, as they are.
    case keep
    /// 4-bit NormalFloat (QLoRA), made from the weights while they are read.
    case nf4
    /// 8-bit integers, made from the weights while they are read.
    case int8

    /// The form for training and measuring.
    ///
    /// - Parameter doubleQuant: Whether the scales of `nf4` are quantised, too.
    public func form(doubleQuant: Bool) -> WeightForm {
        switch self {
        case .none: .plain
        case .keep: .blocks
        case .nf4: .nf4(quantisesScales: doubleQuant)
        case .int8: .int8
        }
    }

    /// What a model's form is called.
    init(_ form: WeightForm) {
        switch form {
        case .plain: self = .none
        case .blocks, .multipliedBlocks: self = .keep
        case .nf4: self = .nf4
        case .int8: self = .int8
        }
    }
}
