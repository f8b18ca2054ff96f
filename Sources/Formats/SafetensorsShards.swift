/// Writes a checkpoint into a folder: `model.safetensors`, or several shards and their index when it is larger than
/// one file may be.
///
/// Shards are filled in the order of the tensors given. Tensors may be written in any order; a shard's file appears as
/// soon as all of its tensors are there, the index last. Write into a folder of ``AtomicFolder`` where a checkpoint
/// must be there whole or not at all.
public final class SafetensorsShards {
    /// The folder.
    public let folder: String
    /// The files' names.
    public let names: [String]

    private let plans: [KeyedList<SafetensorsInfo>]
    private let metadata: KeyedList<String>
    private var shardOfTensor = KeyedList<Int>()
    private var missing: [Int]
    private var writers: [Int: SafetensorsWriter] = [:]
    private let totalSize: Int

    /// Plans the shards.
    ///
    /// - Parameters:
    ///   - folder: An existing folder.
    ///   - tensors: All tensors that will follow.
    ///   - metadata: Texts under `__metadata__` of every file.
    ///   - maxShardBytes: Data in one file at most; a single tensor may be larger.
    /// - Throws: ``FormatError`` when a shape has no size.
    public init(
        folder: String, tensors: KeyedList<SafetensorsInfo>, metadata: KeyedList<String> = ["format": "pt"],
        maxShardBytes: Int = 5_000_000_000
    ) throws {
        self.folder = folder
        self.metadata = metadata
        var plans = [KeyedList<SafetensorsInfo>()]
        var total = 0
        var size = 0
        for (name, info) in tensors.entries {
            guard let bytes = info.type.bytes(ofShape: info.shape), bytes <= Int.max / 2 - total else {
                throw FormatError(
                    file: folder, place: .key(name),
                    "a tensor of shape \(info.shape) and dtype \(info.type.rawValue) cannot be written")
            }
            if size + bytes > maxShardBytes, !plans[plans.count - 1].isEmpty {
                plans.append(KeyedList())
                size = 0
            }
            plans[plans.count - 1].appendIfNew(key: name, value: info)
            shardOfTensor.appendIfNew(key: name, value: plans.count - 1)
            size += bytes
            total += bytes
        }
        self.plans = plans
        totalSize = total
        missing = plans.map { plan in plan.entries.count { !$0.value.shape.contains(0) } }
        names =
            plans.count == 1 ? [SafetensorsCheckpoint.fileName] : plans.indices.map { Self.name($0, of: plans.count) }
    }

    /// Writes a whole tensor (little endian, row-major).
    ///
    /// - Throws: ``FormatError`` when the tensor is unknown, of another size, or the disk refuses it.
    public func write(_ name: String, _ bytes: UnsafeRawBufferPointer) throws {
        guard let shard = shardOfTensor[name], let info = plans[shard][name] else {
            throw FormatError(file: folder, place: .key(name), "the checkpoint's plan does not name this tensor")
        }
        guard bytes.count == info.type.bytes(ofShape: info.shape) else {
            throw FormatError(
                file: folder, place: .key(name),
                "shape \(info.shape) of dtype \(info.type.rawValue) does not take \(bytes.count) bytes")
        }
        if bytes.isEmpty { return }
        guard missing[shard] > 0 else {
            throw FormatError(file: folder, place: .key(name), "this tensor was written already")
        }
        let writer = try writer(of: shard)
        try writer.write(name, bytes)
        missing[shard] -= 1
        if missing[shard] == 0 {
            try writer.finish()
            writers[shard] = nil
        }
    }

    /// Completes the checkpoint and writes the index if there are several files.
    ///
    /// - Throws: ``FormatError`` when a tensor was not written, or the disk refuses a file.
    public func finish() throws {
        for shard in plans.indices {
            let isOnlyEmptyTensors = plans[shard].entries.allSatisfy { $0.value.shape.contains(0) }
            if missing[shard] > 0 || isOnlyEmptyTensors { try writer(of: shard).finish() }
        }
        writers.removeAll()
        guard plans.count > 1 else { return }
        var weightMap = KeyedList<JSON>()
        for (name, shard) in shardOfTensor.entries { weightMap.appendIfNew(key: name, value: JSON(names[shard])) }
        let index: JSON = ["metadata": ["total_size": JSON(totalSize)], "weight_map": .object(weightMap)]
        let path = joined(folder, SafetensorsCheckpoint.indexName)
        try AtomicFile.write(index.pythonText(indent: 2, sortKeys: true) + "\n", to: path)
    }

    private func writer(of shard: Int) throws -> SafetensorsWriter {
        if let writer = writers[shard] { return writer }
        let writer = try SafetensorsWriter(
            path: joined(folder, names[shard]), tensors: plans[shard], metadata: metadata)
        writers[shard] = writer
        return writer
    }

    private static func name(_ shard: Int, of count: Int) -> String {
        func padded(_ number: Int) -> String {
            let digits = "\(number)"
            return String(repeating: "0", count: max(0, 5 - digits.utf8.count)) + digits
        }
        return "model-\(padded(shard + 1))-of-\(padded(count)).safetensors"
    }
}
