import Backbones
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
    /// The fields of the selection that the type has in other programs, nil for all; any other is written only where
    /// it selects something.
    public var selection: Set<String>?
    /// Fields that follow from the model alone: written for it, and compared with it when a folder is loaded.
    public var model: @Sendable (LlamaConfiguration) -> KeyedList<JSON>

    /// Makes a description; by default the method's own fields are all there is.
    public init(
        neutral: KeyedList<JSON> = [:], inert: Set<String> = [], own: Set<String> = [],
        decimals: Set<String> = [], adaptedBiases: String = Selection.Bias.adapted.rawValue,
        selection: Set<String>? = nil, model: @escaping @Sendable (LlamaConfiguration) -> KeyedList<JSON> = { _ in [:] }
    ) {
        self.neutral = neutral
        self.inert = inert
        self.own = own
        self.decimals = decimals
        self.adaptedBiases = adaptedBiases
        self.selection = selection
        self.model = model
    }

    /// Refuses a folder whose fields on the model are another model's.
    ///
    /// - Throws: `PEFTError` naming the field.
    func requireModel(_ configuration: LlamaConfiguration, in fields: KeyedList<JSON>) throws {
        for (key, value) in model(configuration) {
            guard let found = fields[key], !found.isNull, found != value else { continue }
            throw PEFTError(
                "\(key): the adapter is for a model with \(found.compact), this one has \(value.compact); load it onto "
                    + "the model that it was trained on")
        }
    }
}

extension FolderFields {
    /// What peft writes for every type that learns virtual tokens.
    ///
    /// - Parameters:
    ///   - width: The size of what one token has in one place of the model: `token_dim`.
    ///   - heads: The heads that it is divided into: `num_attention_heads`.
    static func virtualTokens(
        neutral: KeyedList<JSON> = [:], inert: Set<String> = [], own: Set<String> = [], decimals: Set<String> = [],
        width: @escaping @Sendable (LlamaConfiguration) -> Int, heads: @escaping @Sendable (LlamaConfiguration) -> Int
    ) -> FolderFields {
        FolderFields(
            neutral: neutral, inert: inert, own: own, decimals: decimals, selection: ["modules_to_save"],
            model: { model in
                [
                    "num_transformer_submodules": 1, "token_dim": JSON(width(model)),
                    "num_attention_heads": JSON(heads(model)), "num_layers": JSON(model.numHiddenLayers),
                ]
            })
    }
}
