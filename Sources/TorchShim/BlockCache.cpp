// A CPU allocator for training, where every step asks for the same large blocks again.
//
// The C library either keeps such blocks in its heap, where activations that stay and temporaries that go leave gaps
// that hardly ever fit again (half as much memory again), or asks the system for each anew (a sixth more time). Here
// each block is a mapping of its own that is kept for the next request of its size, as long as blocks in use and kept
// ones together need no more than the blocks in use once did.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

#include "Shim.h"

namespace graft {
namespace {

constexpr size_t kPage = 4096;
/// Smaller blocks are the C library's, which is quicker with them.
constexpr size_t kSmallest = 64 << 10;
/// What may be kept beyond the largest use so far, so that short sequences of different sizes find their blocks.
constexpr size_t kSlack = 32 << 20;

/// How many of those who asked for kept blocks still want them.
std::atomic<int> keepers{0};

class BlockCache {
 public:
    void *take(size_t bytes) {
        const size_t size = (bytes + kPage - 1) / kPage * kPage;
        std::lock_guard<std::mutex> guard(mutex_);
        // A block that is a little too large serves too.
        auto found = bySize_.lower_bound(size);
        if (found != bySize_.end() && found->first <= size + size / 8) {
            const Kept block = *found->second;
            forget(found->second);
            return use(block.data, block.size);
        }
        const size_t budget = std::max(peak_, inUse_ + size) + kSlack;
        while (!kept_.empty() && inUse_ + keptBytes_ + size > budget) giveBackOldest();
        void *data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) {
            while (!kept_.empty()) giveBackOldest();
            data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        }
        TORCH_CHECK(data != MAP_FAILED, "there is not enough memory for ", bytes, " bytes");
        return use(data, size);
    }

    /// False where the block is not one of these.
    bool giveUp(void *data) {
        // Every block begins a page; few of the C library's do.
        if (reinterpret_cast<uintptr_t>(data) % kPage != 0) return false;
        std::lock_guard<std::mutex> guard(mutex_);
        auto found = used_.find(data);
        if (found == used_.end()) return false;
        const size_t size = found->second;
        used_.erase(found);
        inUse_ -= size;
        if (keepers == 0) {
            munmap(data, size);
            return true;
        }
        keptBytes_ += size;
        kept_.push_back({data, size});
        kept_.back().place = bySize_.emplace(size, std::prev(kept_.end()));
        return true;
    }

    /// Gives all kept blocks back to the system.
    void clear() {
        std::lock_guard<std::mutex> guard(mutex_);
        while (!kept_.empty()) giveBackOldest();
        peak_ = inUse_;
    }

 private:
    struct Kept;
    using List = std::list<Kept>;
    using Index = std::multimap<size_t, List::iterator>;
    struct Kept {
        void *data;
        size_t size;
        Index::iterator place{};
    };

    void *use(void *data, size_t size) {
        used_.emplace(data, size);
        inUse_ += size;
        peak_ = std::max(peak_, inUse_);
        return data;
    }

    void forget(List::iterator block) {
        keptBytes_ -= block->size;
        bySize_.erase(block->place);
        kept_.erase(block);
    }

    void giveBackOldest() {
        munmap(kept_.front().data, kept_.front().size);
        forget(kept_.begin());
    }

    std::mutex mutex_;
    std::unordered_map<void *, size_t> used_;
    /// Blocks for another use, the longest kept first.
    List kept_;
    Index bySize_;
    size_t inUse_ = 0;
    size_t keptBytes_ = 0;
    size_t peak_ = 0;
};

/// Lives as long as the process: tensors may be released after everything else.
BlockCache &cache() {
    static auto *cache = new BlockCache;
    return *cache;
}

void release(void *data) {
    noteReleased(data);
    if (data && !cache().giveUp(data)) c10::free_cpu(data);
}

class CachingAllocator final : public c10::Allocator {
 public:
    c10::DataPtr allocate(size_t bytes) override {
        noteAllocation(bytes);
        void *data = bytes < kSmallest || keepers == 0 ? c10::alloc_cpu(bytes) : cache().take(bytes);
        noteTaken(data, bytes);
        return {data, data, &release, c10::Device(c10::kCPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void *target, const void *source, size_t bytes) const override {
        default_copy_data(target, source, bytes);
    }
};

}  // namespace

void setKeepsBlocks(bool keeps) {
    // Once in place the allocator stays: the matrix library frees by whatever allocator is in place at that time, and
    // only this one knows both kinds of blocks.
    static const bool isInPlace = [] {
        c10::SetCPUAllocator(new CachingAllocator);
        return true;
    }();
    if (isInPlace && (keepers += keeps ? 1 : -1) == 0) cache().clear();
}

}  // namespace graft
