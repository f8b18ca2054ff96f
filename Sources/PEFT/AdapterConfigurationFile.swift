import Backbones
import Formats

/// `adapter_config.json`: the settings of an adapter as Hugging Face peft writes and reads them.
enum AdapterConfigurationFile {
    static let name = "adapter_config.json"

    /// Keys whose values depend on the program that writes, not on the adapter.
    private static let writerKeys: Set<String> = ["inference_mode", "peft_type", "peft_version", "runtime_config"]

    /// The file's text: sorted keys, two spaces a level, no newline at the end.
    static func text(of configuration: AdapterConfiguration, for model: LlamaConfiguration?) -> String {
        var json: KeyedList<JSON> = [
            "auto_mapping": nil, "base_model_name_or_path": nil, "revision": nil, "task_type": "CAUSAL_LM",
        ]
        let fields = type(of: configuration.method).folderFields
        for (key, value) in fields.neutral { json[key] = value }
        for (key, value) in configuration.remaining { json[key] = value }
        json["inference_mode"] = true
        json["peft_type"] = .string(type(of: configuration.method).peftType)
        json["peft_version"] = "0.21.2"
        let defaults = type(of: configuration.method).init().settings
        for (key, value) in configuration.method.settings
        where !fields.own.contains(key) || value != defaults[key] {
            json[key] = fields.decimals.contains(key) ? value.double.map(JSON.number) ?? value : value
        }
        if let model { for (key, value) in fields.model(model) { json[key] = value } }
        writeSelection(configuration.selection, fields, into: &json)
        return JSON.object(json).pythonText(indent: 2, sortKeys: true)
    }

    private static func writeSelection(
        _ selection: Selection, _ fields: FolderFields, into json: inout KeyedList<JSON>
    ) {
        let nothing = Selection()
        for field in Selection.fields {
            let value = field.read(selection)
            if let known = fields.selection, !known.contains(field.name), value == field.read(nothing) { continue }
            json[field.name] = value
        }
        if selection.bias == .adapted { json["bias"] = .string(fields.adaptedBiases) }
    }

    /// Reads the settings of a folder.
    ///
    /// Missing fields have their defaults. Unknown ones are kept, to be written back.
    ///
    /// - Throws: `FormatError` when the file is missing or no JSON; `PEFTError` for a type that cannot be read, a value
    ///   of another form, or a feature that changes the mathematics and is not supported, by its name.
    static func read(folder: String) throws -> AdapterConfiguration {
        let path = joined(folder, name)
        let json = try JSON.read(path: path)
        do {
            guard let object = json.object else { throw PEFTError("expected an object, found \(json.kind)") }
            return try configuration(object)
        } catch let error as PEFTError {
            throw PEFTError("\(path): \(error)")
        }
    }

    private static func configuration(_ json: KeyedList<JSON>) throws -> AdapterConfiguration {
        guard let peftType = json["peft_type"]?.string else {
            throw PEFTError("the key \"peft_type\" is missing or no string; this is no adapter's configuration")
        }
        let type = try MethodRegistry.type(peftType: peftType)
        if let task = json["task_type"], !task.isNull, task != "CAUSAL_LM", task != "SEQ_CLS" {
            throw PEFTError(
                "task_type: adapters for \(task.compact) cannot be loaded; expected \"CAUSAL_LM\" or \"SEQ_CLS\"")
        }
        var configuration = AdapterConfiguration(type.init())
        let known = configuration.keys
        for (key, value) in json where !writerKeys.contains(key) {
            if known.contains(key) {
                try configuration.set(key, to: type.readable(key, value))
            } else {
                try requireNeutral(key, value, type.folderFields)
                configuration.remaining.appendIfNew(key: key, value: value)
            }
        }
        try configuration.method.validate()
        return configuration
    }

    /// Refuses a feature that is in use and that Graft does not compute.
    private static func requireNeutral(_ key: String, _ value: JSON, _ fields: FolderFields) throws {
        // Files from before peft 0.4 name the parts of a fused projection here.
        let neutral = key == "enable_lora" ? JSON.null : fields.neutral[key]
        guard let neutral, !fields.inert.contains(key), !value.isNull, value != neutral else { return }
        // An empty list or object switches nothing on.
        if value.array?.isEmpty == true || value.object?.isEmpty == true { return }
        throw PEFTError(
            "\(key): the feature behind the value \(value.compact) is not supported; expected \(neutral.compact)")
    }
}
