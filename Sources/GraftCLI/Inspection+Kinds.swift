import Graft

extension Inspection {
    /// Looks at a path and tells what it is by what is in it, not by its name.
    ///
    /// - Throws: `FormatError` and the like when a file is broken; `InputError` when nothing here is known.
    init(path: String) throws {
        switch PathKind(path) {
        case .folder: self = try Self.folder(path)
        case .file: self = try Self.file(path)
        case .other: throw InputError("\(path) is a device or a pipe; expected a folder or a file")
        case .missing:
            guard ModelCatalog.aliases[path] != nil else { throw InputError("\(path) does not exist") }
            self = try Self.file(ModelCatalog.locate(path).path)
        }
    }

    private static func folder(_ path: String) throws -> Inspection {
        func has(_ name: String) -> Bool { PathKind(joined(path, name)) == .file }
        if has("recipe.yaml") { return try run(path) }
        if has("trainer_state.json") { return try checkpoint(path) }
        if has("adapter_config.json") { return try adapter(path) }
        if has("config.json") { return try model(path) }
        if has(SafetensorsCheckpoint.fileName) || has(SafetensorsCheckpoint.indexName) {
            let checkpoint = try SafetensorsCheckpoint(path: path)
            return Inspection(
                facts: facts("safetensors checkpoint without config.json", path),
                tensors: checkpoint.tensors.map { StoredTensor($0.value) })
        }
        throw InputError(
            "\(path) holds none of config.json (a model), adapter_config.json (an adapter), recipe.yaml (a run) and "
                + "model.safetensors")
    }

    private static func file(_ path: String) throws -> Inspection {
        let file = try MappedFile(path: path)
        let start = try Array(file.slice(offset: 0, count: min(4, file.count)).bytes)
        if start == Array("GGUF".utf8) { return try gguf(path) }
        if path.hasSuffix(".json"), let name = path.split(separator: "/").last, name.hasSuffix(".index.json") {
            let checkpoint = try SafetensorsCheckpoint(path: path)
            return Inspection(
                facts: facts("safetensors index", path), tensors: checkpoint.tensors.map { StoredTensor($0.value) })
        }
        do {
            let contents = try SafetensorsFile(path: path)
            var facts = facts("safetensors file", path)
            for (key, value) in contents.metadata { facts["metadata " + key] = .string(value) }
            return Inspection(facts: facts, tensors: contents.tensors.map { StoredTensor($0.value) })
        } catch  where !path.hasSuffix(".safetensors") {
            throw InputError("\(path) is neither a GGUF nor a safetensors file")
        }
    }

    private static func facts(_ kind: String, _ path: String) -> KeyedList<JSON> {
        ["kind": .string(kind), "path": .string(path)]
    }

    private static func model(_ path: String) throws -> Inspection {
        let checkpoint = try SafetensorsCheckpoint(path: path)
        let file = joined(path, "config.json")
        let configuration = try LlamaConfiguration(JSON.read(path: file), file: file)
        let tensors = checkpoint.tensors.map { StoredTensor($0.value) }
        var facts = facts("model folder", path)
        facts["shards"] = JSON(checkpoint.files.count)
        configuration.add(to: &facts, tensors)
        return Inspection(facts: facts, tensors: tensors)
    }

    private static func gguf(_ path: String) throws -> Inspection {
        let file = try GGUFFile(path: path)
        let tensors = file.tensors.map { StoredTensor($0.value) }
        var facts = facts("GGUF file", path)
        facts["version"] = JSON(file.version)
        facts["name"] = file.metadata["general.name"]?.string.map { .string($0) } ?? .null
        facts["architecture"] = file.metadata["general.architecture"]?.string.map { .string($0) } ?? .null
        facts["license"] = file.metadata["general.license"]?.string.map { .string($0) } ?? .null
        facts["metadata_keys"] = JSON(file.metadata.count)
        // A file of another architecture is still worth a look; loading it as a model says what is wrong.
        if let configuration = try? LlamaConfiguration(gguf: file) { configuration.add(to: &facts, tensors) }
        if let tokenizer = try? Tokenizer(gguf: file) {
            facts["tokenizer"] = .string("\(tokenizer.modelName), \(tokenizer.vocabularySize) tokens")
            facts["chat_template"] = .bool(tokenizer.chatTemplateSource != nil)
        }
        return Inspection(facts: facts, tensors: tensors)
    }

    private static func adapter(_ path: String, kind: String = "adapter") throws -> Inspection {
        let file = joined(path, "adapter_config.json")
        let settings = try JSON.read(path: file)
        guard let type = settings["peft_type"]?.string else {
            throw InputError("\(file), key \"peft_type\": the key is missing or no string, so the method is unknown")
        }
        let tensors = try adapterTensors(path)
        var facts = facts(kind, path)
        facts["method"] = .string(type)
        facts["rank"] = settings["r"] ?? .null
        facts["base"] = settings["base_model_name_or_path"] ?? .null
        facts["parameters"] = JSON(tensors.reduce(0) { $0 + $1.elements })
        facts["settings"] = .object(shown(settings.object ?? [:], type: type))
        return Inspection(facts: facts, tensors: tensors)
    }

    private static func adapterTensors(_ path: String) throws -> [StoredTensor] {
        let compressed = joined(path, "adapter_model.ternary")
        guard PathKind(compressed) == .file else {
            return try SafetensorsFile(path: joined(path, "adapter_model.safetensors")).tensors
                .map { StoredTensor($0.value) }
        }
        let file = try TernaryFile(path: compressed)
        // The tensors share one run of codes: each has its part of the file by its values.
        let bytesPerValue = Double(try MappedFile(path: compressed).count) / Double(max(1, file.vector.count))
        return file.tensors.map { name, entry in
            let elements = entry.shape.reduce(1, *)
            return StoredTensor(
                name: name, type: "ternary", shape: entry.shape, elements: elements,
                bytes: Int(Double(elements) * bytesPerValue))
        }
    }

    /// The settings of the method and the selection that are not empty; of a type that is unknown here, all of them.
    private static func shown(_ settings: KeyedList<JSON>, type: String) -> KeyedList<JSON> {
        let known = (try? MethodRegistry.type(peftType: type)).map { type in
            type.init().settings.keys + Selection.fields.map(\.name)
        }
        var result = KeyedList<JSON>()
        for key in known ?? settings.keys where key != "r" {
            if let value = settings[key], !isEmpty(value) { result[key] = value }
        }
        return result
    }

    private static func checkpoint(_ path: String) throws -> Inspection {
        let state = try JSON.read(path: joined(path, "trainer_state.json"))
        var found = try adapter(path, kind: "checkpoint of a run")
        for key in ["step", "tokens", "seconds"] { found.facts[key] = state[key] ?? .null }
        return found
    }

    private static func run(_ path: String) throws -> Inspection {
        let layout = RunLayout(path)
        let recipe = try Recipe(path: layout.recipe)
        var facts = facts("run folder", path)
        facts["model"] = .string(recipe.model)
        facts["data"] = .string(recipe.data)
        if PathKind(layout.metrics) == .file {
            let metrics = try MetricsLog.read(path: layout.metrics)
            facts["steps"] = JSON(metrics.map(\.step).max() ?? 0)
            facts["loss"] = metrics.last { $0.loss != nil }?.loss.map { JSON($0) } ?? .null
            facts["eval_loss"] = metrics.last { $0.evalLoss != nil }?.evalLoss.map { JSON($0) } ?? .null
        }
        facts["checkpoints"] = JSON(try layout.checkpoints().map { JSON($0.step) })
        guard PathKind(layout.adapter) == .folder else { return Inspection(facts: facts) }
        let adapter = try adapter(layout.adapter)
        facts["adapter"] = adapter.facts["path"]
        for key in ["method", "rank", "parameters", "settings"] { facts[key] = adapter.facts[key] }
        return Inspection(facts: facts, tensors: adapter.tensors)
    }

    private static func isEmpty(_ value: JSON) -> Bool {
        value.isNull || value == false || value.object?.isEmpty == true || value.array?.isEmpty == true
    }
}

extension Inspection.StoredTensor {
    fileprivate init(_ tensor: SafetensorsTensor) {
        self.init(
            name: tensor.name, type: tensor.type.rawValue, shape: tensor.shape, elements: tensor.elementCount,
            bytes: tensor.bytes.count)
    }

    fileprivate init(_ tensor: GGUFTensor) {
        self.init(
            name: tensor.name, type: tensor.type.name, shape: tensor.shape, elements: tensor.elementCount,
            bytes: tensor.bytes.count)
    }
}

extension LlamaConfiguration {
    fileprivate func add(to facts: inout KeyedList<JSON>, _ tensors: [Inspection.StoredTensor]) {
        facts["model_type"] = .string(modelType)
        facts["parameters"] = JSON(tensors.reduce(0) { $0 + $1.elements })
        facts["layers"] = JSON(numHiddenLayers)
        facts["hidden_size"] = JSON(hiddenSize)
        facts["intermediate_size"] = JSON(intermediateSize)
        facts["attention_heads"] = JSON(numAttentionHeads)
        facts["key_value_heads"] = JSON(numKeyValueHeads)
        facts["head_dim"] = JSON(headDim)
        facts["vocabulary"] = JSON(vocabSize)
        facts["max_positions"] = JSON(maxPositionEmbeddings)
        facts["tied_embeddings"] = .bool(tieWordEmbeddings)
    }
}
