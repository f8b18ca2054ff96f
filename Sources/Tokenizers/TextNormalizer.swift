/// A stage that changes text before it is cut into pieces.
///
/// A new kind of normalizer is one file with a type that conforms, and a line in ``TokenizerJSONReader``.
protocol TextNormalizer: Sendable {
    /// Changes the text; use ``NormalizedText/transform(_:)``, which keeps count of places.
    func normalize(_ text: inout NormalizedText)
}
