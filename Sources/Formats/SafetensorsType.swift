/// The element types of safetensors files.
///
/// Raw values are the format's codes; the order of the cases is the format's order, by which its reference writer
/// sorts.
public enum SafetensorsType: String, Sendable, CaseIterable {
    /// One byte, 0 or 1.
    case bool = "BOOL"
    /// 4-bit float.
    case f4 = "F4"
    /// 6-bit float, 2 bits of exponent.
    case f6E2M3 = "F6_E2M3"
    /// 6-bit float, 3 bits of exponent.
    case f6E3M2 = "F6_E3M2"
    /// 8-bit unsigned integer.
    case u8 = "U8"
    /// 8-bit integer.
    case i8 = "I8"
    /// 8-bit float, 5 bits of exponent.
    case f8E5M2 = "F8_E5M2"
    /// 8-bit float, 4 bits of exponent, no infinities.
    case f8E4M3 = "F8_E4M3"
    /// A power of two in 8 bits.
    case f8E8M0 = "F8_E8M0"
    /// 8-bit float, 4 bits of exponent, neither infinities nor negative zero.
    case f8E4M3FNUZ = "F8_E4M3FNUZ"
    /// 8-bit float, 5 bits of exponent, neither infinities nor negative zero.
    case f8E5M2FNUZ = "F8_E5M2FNUZ"
    /// 16-bit integer.
    case i16 = "I16"
    /// 16-bit unsigned integer.
    case u16 = "U16"
    /// 16-bit IEEE float.
    case f16 = "F16"
    /// Brain float, the upper half of a 32-bit one.
    case bf16 = "BF16"
    /// 32-bit integer.
    case i32 = "I32"
    /// 32-bit unsigned integer.
    case u32 = "U32"
    /// 32-bit float.
    case f32 = "F32"
    /// Two 32-bit floats.
    case c64 = "C64"
    /// 64-bit float.
    case f64 = "F64"
    /// 64-bit integer.
    case i64 = "I64"
    /// 64-bit unsigned integer.
    case u64 = "U64"

    /// Bits of an element.
    public var bits: Int {
        switch self {
        case .f4: 4
        case .f6E2M3, .f6E3M2: 6
        case .bool, .u8, .i8, .f8E5M2, .f8E4M3, .f8E8M0, .f8E4M3FNUZ, .f8E5M2FNUZ: 8
        case .i16, .u16, .f16, .bf16: 16
        case .i32, .u32, .f32: 32
        case .c64, .f64, .i64, .u64: 64
        }
    }

    /// Bytes of a tensor of this type; nil when it overflows or is no whole number of bytes.
    public func bytes(ofShape shape: [Int]) -> Int? {
        guard shape.allSatisfy({ $0 >= 0 }), let bits = product(of: [bits] + shape), bits % 8 == 0 else { return nil }
        return bits / 8
    }

    /// Place in the order of the reference writer.
    var rank: Int { Self.ranks[self] ?? 0 }

    private static let ranks = Dictionary(uniqueKeysWithValues: zip(allCases, allCases.indices))
}

/// What a file says about one tensor.
public struct SafetensorsInfo: Sendable, Equatable {
    /// Element type.
    public var type: SafetensorsType
    /// Sizes, row-major; empty for a scalar.
    public var shape: [Int]

    /// Describes a tensor.
    public init(type: SafetensorsType, shape: [Int]) {
        self.type = type
        self.shape = shape
    }
}
