// The memory that a piece of work holds: what its thread's tensors took since it began and have not given back. And
// what an accelerator has left.
#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <unordered_map>

#include "Shim.h"

namespace graft {
namespace {

struct Watch {
    std::unordered_map<void *, size_t> blocks;
    int64_t now = 0, peak = 0;
};

thread_local std::unique_ptr<Watch> watch;

/// The bytes held now, and the most that were.
at::Tensor heldBytes() {
    TORCH_CHECK(watch, "nobody watches this thread's memory");
    // Read before the result itself takes memory.
    const int64_t now = watch->now, peak = watch->peak;
    auto result = at::empty({2}, at::kLong);
    result.data_ptr<int64_t>()[0] = now;
    result.data_ptr<int64_t>()[1] = peak;
    return result;
}

void beginWatch() {
    TORCH_CHECK(!watch, "this thread's memory is being watched already");
    watch = std::make_unique<Watch>();
}

void endWatch() { watch.reset(); }

/// The bytes of an accelerator that tensors can still take; -1 where LibTorch does not tell.
at::Tensor availableBytes(at::Device device) {
    int64_t bytes = -1;
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
    auto allocator = c10::getDeviceAllocator(device.type());
    const auto stats = allocator->getDeviceStats(device.index());
    // What the allocator has reserved and does not use serves the next tensors.
    bytes = int64_t(allocator->getMemoryInfo(device.index()).first) + stats.reserved_bytes[0].current -
            stats.allocated_bytes[0].current;
#endif
    return at::scalar_tensor(bytes, at::kLong);
}

}  // namespace

void noteTaken(void *data, size_t bytes) {
    if (!watch || !data) return;
    watch->blocks[data] = bytes;
    watch->now += int64_t(bytes);
    watch->peak = std::max(watch->peak, watch->now);
}

void noteReleased(void *data) {
    if (!watch) return;
    auto found = watch->blocks.find(data);
    if (found == watch->blocks.end()) return;
    watch->now -= int64_t(found->second);
    watch->blocks.erase(found);
}

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("held_begin() -> ()", beginWatch);
    library.def("held_bytes() -> Tensor", heldBytes);
    library.def("held_end() -> ()", endWatch);
    library.def("available_bytes(Device device) -> Tensor", availableBytes);
}

}  // namespace graft
