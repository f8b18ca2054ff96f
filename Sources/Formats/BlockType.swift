import CBlocks

// The cases are spelled as the format spells them.
// swift-format-ignore: AlwaysUseLowerCamelCase
/// How the elements of a GGUF tensor are stored: plain numbers or quantised blocks.
///
/// Raw values are the format's codes.
public enum BlockType: UInt32, Sendable, CaseIterable {
    /// 32-bit float.
    case f32 = 0
    /// 16-bit IEEE float.
    case f16 = 1
    /// 4 bits with a scale.
    case q4_0 = 2
    /// 4 bits with a scale and a minimum.
    case q4_1 = 3
    /// 5 bits with a scale.
    case q5_0 = 6
    /// 5 bits with a scale and a minimum.
    case q5_1 = 7
    /// 8 bits with a scale.
    case q8_0 = 8
    /// 2 bits, super-blocks of 256.
    case q2_k = 10
    /// 3 bits, super-blocks of 256.
    case q3_k = 11
    /// 4 bits, super-blocks of 256.
    case q4_k = 12
    /// 5 bits, super-blocks of 256.
    case q5_k = 13
    /// 6 bits, super-blocks of 256.
    case q6_k = 14
    /// 4 bits through a table of unequal steps.
    case iq4_nl = 20
    /// 4 bits through the same table, super-blocks of 256.
    case iq4_xs = 23
    /// 8-bit integer.
    case i8 = 24
    /// 16-bit integer.
    case i16 = 25
    /// 32-bit integer.
    case i32 = 26
    /// 64-bit integer.
    case i64 = 27
    /// 64-bit float.
    case f64 = 28
    /// Brain float, the upper half of a 32-bit one.
    case bf16 = 30
    /// Ternary, 1.69 bits.
    case tq1_0 = 34
    /// Ternary, 2 bits.
    case tq2_0 = 35
    /// 4-bit floats with a shared power of two.
    case mxfp4 = 39

    /// The format's own name, for example `Q4_K`.
    public var name: String { "\(self)".uppercased() }

    /// Elements in a block (1 for plain numbers).
    public var elementsPerBlock: Int { cblocks_elements(rawValue) }

    /// Bytes of a block.
    public var bytesPerBlock: Int { cblocks_bytes(rawValue) }

    /// True for packed blocks, false for plain numbers.
    public var isQuantised: Bool { elementsPerBlock > 1 }

    /// Bytes of a row of so many elements; nil when it is no whole number of blocks, or overflows.
    public func bytes(ofRow columns: Int) -> Int? {
        guard columns >= 0, columns % elementsPerBlock == 0 else { return nil }
        let (bytes, didOverflow) = (columns / elementsPerBlock).multipliedReportingOverflow(by: bytesPerBlock)
        return didOverflow ? nil : bytes
    }

    /// The name of a code that the format defines, whether it can be read here or not.
    static func name(ofCode code: UInt32) -> String {
        if let type = BlockType(rawValue: code) { return type.name }
        let others: [UInt32: String] = [
            9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
            29: "IQ1_M", 40: "NVFP4", 41: "Q1_0",
        ]
        return others[code] ?? "unknown"
    }
}
