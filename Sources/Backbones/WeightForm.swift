import Formats
import Torch

/// How the frozen matrices of a model are held in memory.
public enum WeightForm: Sendable, Equatable {
    /// As plain numbers of the model's dtype.
    case plain
    /// As the quantised blocks of a GGUF file, each unpacked for the product that it is part of.
    case blocks
    /// As those blocks, regrouped to be multiplied without being unpacked: for generating text.
    case multipliedBlocks
    /// Linear layers but the head in 4-bit NormalFloat, perhaps with quantised scales (double quantisation).
    case nf4(quantisesScales: Bool = true)
    /// Linear layers but the head in 8-bit integers with a scale a row.
    case int8

    /// The form of which a packed matrix is, or nil for one of another making.
    init?(_ matrix: any PackedStorage) {
        switch matrix {
        case is Dequantiser: self = .blocks
        case is PackedMatrix: self = .multipliedBlocks
        case let matrix as NF4Matrix: self = .nf4(quantisesScales: matrix.quantisesScales)
        case is Int8Matrix: self = .int8
        default: return nil
        }
    }

    /// Quantises the weight of a linear layer, where this form does.
    ///
    /// - Throws: `FormatError` when it has values that are no finite numbers.
    package func quantised(_ weight: Tensor) throws -> (any PackedStorage)? {
        switch self {
        case .plain, .blocks, .multipliedBlocks: nil
        case .nf4(let quantisesScales): try NF4Matrix(weight, quantisesScales: quantisesScales)
        case .int8: try Int8Matrix(weight)
        }
    }
}
