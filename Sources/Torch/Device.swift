/// Where a tensor lives.
public enum Device: Hashable, Sendable, CustomStringConvertible {
    /// Main memory.
    case cpu
    /// An NVIDIA accelerator by its index.
    case cuda(Int)

    /// `cpu` or `cuda:0`.
    public var description: String {
        switch self {
        case .cpu: "cpu"
        case .cuda(let index): "cuda:\(index)"
        }
    }

    /// The shim's code: LibTorch's device type times 256, plus the index plus one.
    var code: Int32 {
        switch self {
        case .cpu: 0
        // LibTorch counts devices in a signed byte; it refuses the last one with a clear error.
        case .cuda(let index): 256 + Int32(index < 0 ? 127 : min(index, 127)) + 1
        }
    }

    init(code: Int32) {
        self = code / 256 == 1 ? .cuda(max(0, Int(code % 256) - 1)) : .cpu
    }

    /// Whether an NVIDIA accelerator can be used: LibTorch's CUDA library lies beside it and a device answers.
    ///
    /// - Throws: `TorchError` when the CUDA library is there but cannot be loaded.
    public static func isCUDAAvailable() throws -> Bool {
        let api = try Engine.api()
        let status = api.loadCUDA()
        try Engine.check(status)
        return status == 1 && api.cudaDeviceCount() > 0
    }

    /// How many NVIDIA accelerators this process sees.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded, or the accelerators do not answer.
    public static func cudaCount() throws -> Int {
        let count = try Engine.api().cudaDeviceCount()
        try Engine.check(count)
        return Int(count)
    }

    /// Waits until the work queued on this device is done.
    ///
    /// - Throws: `TorchError` with the first failure of the queued work.
    public func synchronize() throws {
        if self != .cpu { try Engine.check(Engine.api().synchronize(code)) }
    }
}
