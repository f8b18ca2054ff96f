/// The type of a tensor's elements; raw values are LibTorch's.
public enum DType: Int32, Sendable, CaseIterable, CustomStringConvertible {
    case uint8 = 0
    case int8 = 1
    case int16 = 2
    case int32 = 3
    case int64 = 4
    case float16 = 5
    case float32 = 6
    case float64 = 7
    case complex32 = 8
    case complex64 = 9
    case complex128 = 10
    case bool = 11
    case bfloat16 = 15
    case float8E5M2 = 23
    case float8E4M3FN = 24
    case float8E5M2FNUZ = 25
    case float8E4M3FNUZ = 26
    case uint16 = 27
    case uint32 = 28
    case uint64 = 29
    case float8E8M0FNU = 44

    /// The name that PyTorch prints, such as `bfloat16`.
    public var description: String {
        switch self {
        case .uint8: "uint8"
        case .int8: "int8"
        case .int16: "int16"
        case .int32: "int32"
        case .int64: "int64"
        case .float16: "float16"
        case .float32: "float32"
        case .float64: "float64"
        case .complex32: "complex32"
        case .complex64: "complex64"
        case .complex128: "complex128"
        case .bool: "bool"
        case .bfloat16: "bfloat16"
        case .float8E5M2: "float8_e5m2"
        case .float8E4M3FN: "float8_e4m3fn"
        case .float8E5M2FNUZ: "float8_e5m2fnuz"
        case .float8E4M3FNUZ: "float8_e4m3fnuz"
        case .uint16: "uint16"
        case .uint32: "uint32"
        case .uint64: "uint64"
        case .float8E8M0FNU: "float8_e8m0fnu"
        }
    }

    /// Makes a dtype from the name that PyTorch prints.
    public init?(name: String) {
        guard let match = DType.allCases.first(where: { $0.description == name }) else { return nil }
        self = match
    }

    /// Bytes of one element.
    public var byteCount: Int {
        switch self {
        case .uint8, .int8, .bool, .float8E5M2, .float8E4M3FN, .float8E5M2FNUZ, .float8E4M3FNUZ, .float8E8M0FNU: 1
        case .int16, .uint16, .float16, .bfloat16: 2
        case .int32, .uint32, .float32, .complex32: 4
        case .int64, .uint64, .float64, .complex64: 8
        case .complex128: 16
        }
    }

    /// Whether elements are real numbers that can carry a gradient.
    public var isFloatingPoint: Bool {
        switch self {
        case .float16, .float32, .float64, .bfloat16, .float8E5M2, .float8E4M3FN, .float8E5M2FNUZ, .float8E4M3FNUZ,
            .float8E8M0FNU:
            true
        default: false
        }
    }
}

/// A Swift number that LibTorch has a dtype for.
public protocol TensorScalar: BitwiseCopyable, Sendable {
    /// The dtype with this memory layout.
    static var dtype: DType { get }
}

extension UInt8: TensorScalar {
    /// `uint8`.
    public static var dtype: DType { .uint8 }
}
extension Int8: TensorScalar {
    /// `int8`.
    public static var dtype: DType { .int8 }
}
extension Int16: TensorScalar {
    /// `int16`.
    public static var dtype: DType { .int16 }
}
extension Int32: TensorScalar {
    /// `int32`.
    public static var dtype: DType { .int32 }
}
extension Int64: TensorScalar {
    /// `int64`.
    public static var dtype: DType { .int64 }
}
extension Int: TensorScalar {
    /// `int64`.
    public static var dtype: DType { .int64 }
}
extension Float: TensorScalar {
    /// `float32`.
    public static var dtype: DType { .float32 }
}
extension Double: TensorScalar {
    /// `float64`.
    public static var dtype: DType { .float64 }
}
extension Bool: TensorScalar {
    /// `bool`.
    public static var dtype: DType { .bool }
}
