import Formats

/// What `adapter_config.json` of a type holds beside the method's own fields, so that other programs read the folder.
public struct FolderFields: Sendable {
    /// Fields that are always written, with the value that says that the feature is not used.
    ///
    /// Another value is refused when a folder is read, because it would change what the adapter computes.
    public var neutral: KeyedList<JSON>
    /// Those of `neutral` whose value has no influence on a trained adapter; any value is read and written back.
    public var inert: Set<String>
    /// The method's own fields that other programs do not know: written only where they differ from the default.
    public var own: Set<String>
    /// Fields that are written with a fraction also where the number is whole.
    public var decimals: Set<String>
    /// What `bias` calls the biases of adapted layers.
    public var adaptedBiases: String

    /// Makes a description; by default the method's own fields are all there is.
    public init(
        neutral: KeyedList<JSON> = [:], inert: Set<String> = [], own: Set<String> = [],
        decimals: Set<String> = [], adaptedBiases: String = Selection.Bias.adapted.rawValue
    ) {
        self.neutral = neutral
        self.inert = inert
        self.own = own
        self.decimals = decimals
        self.adaptedBiases = adaptedBiases
    }
}
