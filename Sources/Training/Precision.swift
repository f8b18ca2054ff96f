import PEFT
import Torch

/// The dtype of the frozen weights and of the activations; adapters and optimiser state are always fp32.
public enum Precision: String, FieldValue, CaseIterable {
    /// `bfloat16` where the device has units for it (CUDA; processors with AMX, AVX-512 bf16 or arm64 bf16), else
    /// `float32`.
    case auto
    /// Single precision.
    case float32
    /// Half the memory, 8 bits of precision.
    case bfloat16

    /// The dtype on a device.
    public func dtype(on device: Device) -> DType {
        switch self {
        case .float32: .float32
        case .bfloat16: .bfloat16
        case .auto: device != .cpu || Machine.hasFastBFloat16 ? .bfloat16 : .float32
        }
    }
}

/// Where a model runs, as users choose it.
public enum DeviceChoice: String, FieldValue, CaseIterable {
    /// An NVIDIA accelerator where there is one (the first, or by `LOCAL_RANK`), else the CPU.
    case auto
    /// The CPU.
    case cpu
    /// An NVIDIA accelerator: the first, or by `LOCAL_RANK`.
    case cuda

    /// The device.
    ///
    /// - Throws: ``TrainingError`` when `cuda` is asked for and not there; `TorchError` when the engine cannot be loaded.
    public func device() throws -> Device {
        switch self {
        case .cpu: return .cpu
        case .auto: return try Device.isCUDAAvailable() ? Self.ownCUDA() : .cpu
        case .cuda:
            guard try Device.isCUDAAvailable() else {
                throw TrainingError(
                    "no CUDA device can be used: LibTorch is \(try Machine.libTorchVersion()), and it finds no NVIDIA "
                        + "accelerator; use --device cpu")
            }
            return try Self.ownCUDA()
        }
    }

    /// The accelerator of this process: of several on a machine each has its own, as far as there are enough.
    private static func ownCUDA() throws -> Device {
        .cuda(try (LaunchEnvironment.current()?.localRank ?? 0) % max(1, Device.cudaCount()))
    }
}
