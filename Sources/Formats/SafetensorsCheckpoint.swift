/// The tensors of a model in safetensors format: one file, or the shards that an index names.
public struct SafetensorsCheckpoint: Sendable {
    /// The file, or the index of the shards.
    public let path: String
    /// The files that were opened, in the index's order.
    public let files: [SafetensorsFile]
    /// All tensors by name.
    public let tensors: KeyedList<SafetensorsTensor>

    /// The name of a checkpoint in one file.
    public static let fileName = "model.safetensors"
    /// The name of the index of a checkpoint in several files.
    public static let indexName = "model.safetensors.index.json"

    /// Opens a file, an index, or a folder that holds `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// - Throws: ``FormatError`` when something is missing or broken, or when index and shards do not agree.
    public init(path: String) throws {
        self.path = try Self.located(path)
        guard self.path.hasSuffix(".json") else {
            let file = try SafetensorsFile(path: self.path)
            files = [file]
            tensors = file.tensors
            return
        }
        let index = try SafetensorsIndex(path: self.path)
        files = try index.shards.map { try SafetensorsFile(path: joined(parentFolder(of: index.path), $0)) }
        tensors = try index.merged(files)
    }

    /// A tensor that must be there.
    ///
    /// - Throws: ``FormatError`` naming it.
    public func tensor(_ name: String) throws -> SafetensorsTensor {
        guard let tensor = tensors[name] else {
            throw FormatError(file: path, place: .key(name), "the checkpoint lacks this tensor")
        }
        return tensor
    }

    private static func located(_ path: String) throws -> String {
        guard PathKind(path) == .folder else { return path }
        let names = [fileName, indexName]
        guard let name = names.first(where: { PathKind(joined(path, $0)) == .file }) else {
            throw FormatError(file: path, "the folder holds neither \(names[0]) nor \(names[1])")
        }
        return joined(path, name)
    }
}

/// The index of a checkpoint in several files: which tensor is in which.
public struct SafetensorsIndex: Sendable {
    /// The index file.
    public let path: String
    /// File name by tensor name.
    public let weightMap: KeyedList<String>
    /// The file names, each once, in the order of their first mention.
    public let shards: [String]

    /// Reads an index.
    ///
    /// - Throws: ``FormatError`` when it is no index, or names a file outside its own folder.
    public init(path: String) throws {
        self.path = path
        guard let pairs = try JSON.read(path: path)["weight_map"]?.object else {
            throw FormatError(file: path, "expected an object under \"weight_map\"; this is no index of shards")
        }
        var weightMap = KeyedList<String>()
        var shards = KeyedList<Bool>()
        for (name, value) in pairs.entries {
            guard let shard = value.string, isPlainFileName(shard) else {
                throw FormatError(file: path, place: .key(name), "expected the name of a file in the same folder")
            }
            weightMap.appendIfNew(key: name, value: shard)
            shards.appendIfNew(key: shard, value: true)
        }
        self.weightMap = weightMap
        self.shards = shards.keys
    }

    /// The tensors of all shards, which were opened in the order of ``shards``.
    fileprivate func merged(_ files: [SafetensorsFile]) throws -> KeyedList<SafetensorsTensor> {
        var result = KeyedList<SafetensorsTensor>()
        for (shard, file) in zip(shards, files) {
            for (name, tensor) in file.tensors.entries {
                guard let expected = weightMap[name], hasSameBytes(expected, shard) else {
                    throw FormatError(
                        file: path, place: .key(name),
                        "the shard \(shard) holds this tensor, but the index does not name it there")
                }
                result.appendIfNew(key: name, value: tensor)
            }
        }
        for (name, shard) in weightMap.entries where result.position(of: name) == nil {
            throw FormatError(file: path, place: .key(name), "the index names this tensor in \(shard), which lacks it")
        }
        return result
    }
}
