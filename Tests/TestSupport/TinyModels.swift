import Formats

/// Tiny random model folders made by transformers, each made once a test run.
public actor TinyModels {
    /// The models of this test run.
    public static let shared = TinyModels()

    private var folders: [String: Task<String, any Error>] = [:]

    /// The folder of a random model of a kind, such as "llama" or "qwen3-tied" (`KINDS` in `models_oracle.py`).
    ///
    /// - Parameters:
    ///   - dtype: the stored element type by PyTorch's name.
    ///   - options: further arguments of `models.make_model`: `overrides`, `legacy_config`, `max_shard_size`.
    public func folder(
        _ kind: String, seed: Int = 1, dtype: String = "float32", options: KeyedList<JSON> = [:]
    ) async throws -> String {
        let key = "\(kind) \(seed) \(dtype) \(JSON.object(options).compact)"
        if let known = folders[key] { return try await known.value }
        let task = Task {
            let folder = try TemporaryFolder.lasting(kind).path
            var arguments = options
            arguments["kind"] = JSON(kind)
            arguments["seed"] = JSON(seed)
            arguments["dtype"] = JSON(dtype)
            arguments["folder"] = JSON(folder)
            _ = try await Oracle.shared.call("models.make_model", arguments)
            return folder
        }
        folders[key] = task
        return try await task.value
    }
}
