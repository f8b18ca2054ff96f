import Graft

/// The base model of adapters, for the verbs that need it only sometimes: loaded when it is asked for, once.
final class BaseModel {
    private let name: String?
    private let adapters: [String]
    private var loaded: (any Backbone)?
    private var loadedModel: LanguageModel?

    /// Makes a base model of the name after `--model`, or of what the adapters' settings say.
    init(_ name: String?, adapters: [String]) {
        self.name = name
        self.adapters = adapters
    }

    /// The model in float32.
    ///
    /// - Throws: What is wrong with the model, or a sentence that asks for one.
    func backbone() throws -> any Backbone {
        if let loaded { return loaded }
        let backbone = try Checkpoint(name ?? nameInSettings()).backbone(dtype: .float32)
        loaded = backbone
        return backbone
    }

    /// The same model with its tokenizer, for the verbs that measure it.
    ///
    /// - Throws: As ``backbone()``, and what is wrong with the tokenizer.
    func languageModel() throws -> LanguageModel {
        if let loadedModel { return loadedModel }
        let model = try LanguageModel.load(name ?? nameInSettings(), dtype: .float32, device: .cpu)
        (loadedModel, loaded) = (model, model.backbone)
        return model
    }

    private func nameInSettings() throws -> String {
        for adapter in adapters {
            let settings = try JSON.read(path: joined(adapter, "adapter_config.json"))
            if let name = settings["base_model_name_or_path"]?.string, !name.isEmpty { return name }
        }
        throw PEFTError("this needs the base model's weights, and the adapter does not say which: give --model")
    }
}
