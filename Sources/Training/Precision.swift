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
    /// The first NVIDIA accelerator where there is one, else the CPU.
    case auto
    /// The CPU.
    case cpu
    /// The first NVIDIA accelerator.
    case cuda

    /// The device.
    ///
    /// - Throws: ``TrainingError`` when `cuda` is asked for and not there; `TorchError` when the engine cannot be loaded.
    public func device() throws -> Device {
        switch self {
        case .cpu: return .cpu
        case .auto: return try Device.isCUDAAvailable() ? .cuda(0) : .cpu
        case .cuda:
            guard try Device.isCUDAAvailable() else {
                throw TrainingError(
                    "no CUDA device can be used: LibTorch is \(try Machine.libTorchVersion()), and it finds no NVIDIA "
                        + "accelerator; use --device cpu")
            }
            return .cuda(0)
        }
    }
}
