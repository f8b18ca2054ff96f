// The machine under the engine: versions, threads, accelerators, random generators.
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#include <torch/version.h>

#include "Shim.h"

namespace graft {

const char *version() { return TORCH_VERSION; }

const char *cpuCapability() {
    static const std::string text = at::get_cpu_capability();
    return text.c_str();
}

const char *libraryPath() {
    static const std::string path = [] {
        Dl_info info;
        auto symbol = reinterpret_cast<void *>(static_cast<int (*)()>(&at::get_num_threads));
        return std::string(dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : "");
    }();
    return path.c_str();
}

int32_t threads() { return at::get_num_threads(); }

void setThreads(int32_t count) { at::set_num_threads(count); }

namespace {

/// 1: loaded, 0: not there; throws where it is there and cannot be loaded.
int32_t requireCUDALibrary() {
    static const std::string failure = [] {
        std::string path = libraryPath();
        auto slash = path.rfind('/');
        std::string cuda = (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "libtorch_cuda.so";
        if (dlopen(cuda.c_str(), RTLD_NOW | RTLD_GLOBAL)) return std::string();
        std::string reason = dlerror();
        return reason.find("No such file") != std::string::npos && reason.find(cuda + ":") == 0 ? "absent" : reason;
    }();
    if (failure == "absent") return 0;
    TORCH_CHECK(failure.empty(), "LibTorch's CUDA library cannot be loaded: ", failure);
    return at::hasCUDA() ? 1 : 0;
}

}  // namespace

int32_t loadCUDA() { return guarded<int32_t>(-1, requireCUDALibrary); }

c10::Device usableDevice(int64_t code) {
    auto device = decodeDevice(code);
    if (device.is_cpu()) return device;
    TORCH_CHECK(requireCUDALibrary() == 1, device.str(), " cannot be used: LibTorch ", TORCH_VERSION, " in ",
                libraryPath(), " was built without CUDA; use the CPU or set up a LibTorch with CUDA");
    auto count = at::accelerator::deviceCount();
    TORCH_CHECK(device.index() < count, device.str(), " cannot be used: this machine has ", static_cast<int>(count),
                " CUDA devices");
    return device;
}

int32_t cudaDeviceCount() {
    return guarded<int32_t>(-1, [&]() -> int32_t {
        return at::hasCUDA() ? static_cast<int32_t>(at::accelerator::deviceCount()) : 0;
    });
}

int32_t synchronize(int32_t device) {
    return guarded<int32_t>(-1, [&] {
        auto where = usableDevice(device);
        if (where.type() != at::kCPU) at::accelerator::synchronizeDevice(where.index());
        return 0;
    });
}

int32_t deviceMemory(int32_t device, int64_t *allocated, int64_t *peak) {
    return guarded<int32_t>(-1, [&] {
        auto where = usableDevice(device);
        auto stats = c10::getDeviceAllocator(where.type())->getDeviceStats(where.index());
        *allocated = stats.allocated_bytes[0].current;
        *peak = stats.allocated_bytes[0].peak;
        return 0;
    });
}

int32_t resetDevicePeak(int32_t device) {
    return guarded<int32_t>(-1, [&] {
        auto where = usableDevice(device);
        c10::getDeviceAllocator(where.type())->resetPeakStats(where.index());
        return 0;
    });
}

CTGenerator makeGenerator(int32_t device, uint64_t seed) {
    return guarded<CTGenerator>(nullptr, [&] {
        auto generator = at::globalContext().defaultGenerator(usableDevice(device)).clone();
        generator.set_current_seed(seed);
        return reinterpret_cast<CTGenerator>(new at::Generator(std::move(generator)));
    });
}

void freeGenerator(CTGenerator generator) { delete reinterpret_cast<at::Generator *>(generator); }

}  // namespace graft
