import CTorch

/// The door to LibTorch: loads the shim on first use and keeps its table.
package enum Engine {
    private static let loaded: Result<Table, TorchError> = {
        var reason: UnsafePointer<CChar>?
        guard let table = ctorch_load(&reason) else {
            return .failure(TorchError(reason.map { String(cString: $0) } ?? "the engine cannot be loaded"))
        }
        return .success(Table(api: table.pointee))
    }()

    /// The shim's functions.
    ///
    /// - Throws: `TorchError` when the shim or LibTorch cannot be loaded.
    static func api() throws -> CTorchAPI {
        try loaded.get().api
    }

    /// The shim's functions where a tensor already proves that they are loaded.
    static let proven: CTorchAPI? = try? loaded.get().api

    /// The error that the last failing call on this thread left.
    static func lastError() -> TorchError {
        guard let api = proven else { return TorchError("the engine is not loaded") }
        return TorchError(String(cString: api.lastError()))
    }

    /// Throws what the last call left where `status` says that it failed.
    static func check(_ status: Int32) throws {
        if status < 0 { throw lastError() }
    }

    /// A table of C functions, immutable for the life of the process.
    private struct Table: @unchecked Sendable {
        let api: CTorchAPI
    }
}
