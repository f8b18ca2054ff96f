// The table that CTorch loads, and the small functions on tensors in it.
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include "Packed.h"
#include "Shim.h"

namespace graft {

std::string &lastError() {
    thread_local std::string message;
    return message;
}

std::string describe(const std::exception &error) {
    auto known = dynamic_cast<const c10::Error *>(&error);
    std::string text = known ? known->what_without_backtrace() : error.what();
    // What follows is for LibTorch's own developers: the back trace, and pages of registered kernels.
    for (auto rest : {"\nException raised from", " This could be because the operator doesn't exist"})
        text.resize(std::min(text.find(rest), text.size()));
    // "[enforce fail at file:line] condition. Message"
    if (auto end = text.find(". "); text.rfind("[enforce fail at", 0) == 0 && end != std::string::npos)
        text.erase(0, end + 2);
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    return text;
}

namespace {

void copy(at::IntArrayRef from, int64_t *to) { std::copy(from.begin(), from.end(), to); }

CTTensor fromBlob(void *data, const int64_t *sizes, int32_t dim, int32_t dtype, CTRelease release, void *owner) {
    return guarded<CTTensor>(nullptr, [&] {
        return own(at::from_blob(data, at::IntArrayRef(sizes, dim), [release, owner](void *) { release(owner); },
                                 at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype))));
    });
}

// Tensors packed for one kernel have no storage and no strides that others can read, and throw when asked.

bool sharesStorage(CTTensor a, CTTensor b) {
    return guarded<bool>(false, [&] {
        return tensor(a).storage().unsafeGetStorageImpl() == tensor(b).storage().unsafeGetStorageImpl();
    });
}

bool isContiguous(CTTensor handle) {
    return guarded<bool>(false, [&] { return tensor(handle).is_contiguous(); });
}

void strides(CTTensor handle, int64_t *out) {
    int32_t status = guarded<int32_t>(-1, [&] {
        copy(tensor(handle).strides(), out);
        return 0;
    });
    if (status < 0) std::fill_n(out, tensor(handle).dim(), 0);
}

int32_t setRequiresGrad(CTTensor handle, bool value) {
    return guarded<int32_t>(-1, [&] {
        tensor(handle).requires_grad_(value);
        return 0;
    });
}

CTTensor grad(CTTensor handle) {
    return guarded<CTTensor>(nullptr, [&]() -> CTTensor {
        const auto &value = tensor(handle).unsafeGetTensorImpl()->grad();  // Tensor::grad warns on standard error
        return value.defined() ? own(value) : nullptr;
    });
}

int32_t setGrad(CTTensor handle, CTTensor value) {
    return guarded<int32_t>(-1, [&] {
        const auto &of = tensor(handle);
        if (value) {
            const auto &grad = tensor(value);
            TORCH_CHECK(grad.sizes() == of.sizes() && grad.scalar_type() == of.scalar_type() &&
                            grad.device() == of.device(),
                        "a gradient ", shapeOf(grad), " does not fit the tensor ", shapeOf(of));
            of.mutable_grad() = grad;
        } else {
            of.mutable_grad().reset();
        }
        return 0;
    });
}

void *dataPointer(CTTensor handle) {
    return guarded<void *>(nullptr, [&] { return tensor(handle).data_ptr(); });
}

const CTorchAPI api = {
    .abiVersion = CTORCH_ABI_VERSION,
    .lastError = [] { return lastError().c_str(); },
    .findOperator = findOperator,
    .call = call,
    .freeList = freeList,
    .fromBlob = fromBlob,
    .packedMatrix = packedMatrix,
    .retain = [](CTTensor handle) { return own(tensor(handle)); },
    .release = [](CTTensor handle) { delete reinterpret_cast<at::Tensor *>(handle); },
    .dim = [](CTTensor handle) { return static_cast<int32_t>(tensor(handle).dim()); },
    .sizes = [](CTTensor handle, int64_t *out) { copy(tensor(handle).sizes(), out); },
    .strides = strides,
    .dtype = [](CTTensor handle) { return static_cast<int32_t>(tensor(handle).scalar_type()); },
    .device = [](CTTensor handle) { return encode(tensor(handle).device()); },
    .isContiguous = isContiguous,
    .sharesStorage = sharesStorage,
    .data = dataPointer,
    .requiresGrad = [](CTTensor handle) { return tensor(handle).requires_grad(); },
    .setRequiresGrad = setRequiresGrad,
    .grad = grad,
    .setGrad = setGrad,
    .gradEnabled = [] { return c10::GradMode::is_enabled(); },
    .setGradEnabled = [](bool value) { c10::GradMode::set_enabled(value); },
    .backward = backward,
    .gradients = gradients,
    .attachFunction = attachFunction,
    .makeGenerator = makeGenerator,
    .freeGenerator = freeGenerator,
    .version = version,
    .cpuCapability = cpuCapability,
    .libraryPath = libraryPath,
    .threads = threads,
    .setThreads = setThreads,
    .loadCUDA = loadCUDA,
    .cudaDeviceCount = cudaDeviceCount,
    .synchronize = synchronize,
    .deviceMemory = deviceMemory,
    .resetDevicePeak = resetDevicePeak,
    .setKeepsBlocks = setKeepsBlocks,
    .groupObstacle = groupObstacle,
    .openGroup = openGroup,
    .groupSum = groupSum,
    .groupBroadcast = groupBroadcast,
    .groupAnnounce = groupAnnounce,
    .groupVerdict = groupVerdict,
    .closeGroup = closeGroup,
};

}  // namespace
}  // namespace graft

extern "C" __attribute__((visibility("default"))) const CTorchAPI *graft_torch_table(void) {
    // LibTorch looks for accelerators once, at the latest in the first backward pass: CUDA has to be there by then.
    // A failure is told to who asks for the accelerator; the CPU works without it.
    graft::loadCUDA();
    return &graft::api;
}
