import Formats

/// How a tokenizer.json asks for long texts to be cut.
///
/// Read and kept for whoever makes batches: ``Tokenizer/encode(_:addSpecialTokens:)`` never cuts.
public struct Truncation: Sendable, Equatable {
    /// The most tokens of a text, with those around it.
    public var maxLength: Int
    /// How many tokens a cut-off part shares with the part before it.
    public var stride: Int
    /// Which of two texts is cut: `LongestFirst`, `OnlyFirst` or `OnlySecond`.
    public var strategy: String
    /// The side at which it is cut: `Right` or `Left`.
    public var direction: String

    init(_ component: JSONComponent) throws {
        maxLength = try component.count("max_length")
        stride = try component.count("stride", default: 0)
        strategy = try component.optionalString("strategy") ?? "LongestFirst"
        direction = try component.optionalString("direction") ?? "Right"
    }
}

/// How a tokenizer.json asks for short texts to be filled up.
///
/// Read and kept for whoever makes batches: ``Tokenizer/encode(_:addSpecialTokens:)`` never fills up.
public struct Padding: Sendable, Equatable {
    /// The length to fill up to; nil for that of the longest text of a batch.
    public var length: Int?
    /// The side at which it is filled: `Right` or `Left`.
    public var direction: String
    /// A number that the length must be a multiple of.
    public var multiple: Int?
    /// The token that fills.
    public var tokenID: Int
    /// The type of the tokens that fill.
    public var typeID: Int

    init(_ component: JSONComponent) throws {
        length = component.json["strategy"]?["Fixed"]?.int
        direction = try component.optionalString("direction") ?? "Right"
        multiple = component.json["pad_to_multiple_of"]?.int
        tokenID = try component.count("pad_id", default: 0)
        typeID = try component.count("pad_type_id", default: 0)
    }
}
