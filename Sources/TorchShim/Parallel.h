// Loops on LibTorch's own threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

// LibTorch's OpenMP is GNU's (or answers to its names). clang's `#pragma omp` would bring a second runtime with threads
// of its own, so its entry points are named here; where they are missing, loops run on one thread.
extern "C" {
void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) __attribute__((weak));
int omp_get_thread_num(void) __attribute__((weak));
int omp_get_num_threads(void) __attribute__((weak));
}

namespace graft {

/// Calls `body(begin, end)` for parts that make up `0..<count`, each of at least `grain` items, on all threads.
///
/// The parts depend on the number of threads alone. `body` must not throw.
template <class Body>
void inParallel(int64_t count, int64_t grain, const Body &body) {
    const bool isAlone = !GOMP_parallel || !omp_get_thread_num || !omp_get_num_threads;
    if (count <= grain || isAlone || at::get_num_threads() <= 1 || at::in_parallel_region()) {
        if (count > 0) body(int64_t(0), count);
        return;
    }
    struct Loop {
        const Body &body;
        int64_t count, grain;
    } loop{body, count, grain};
    const unsigned asManyAsThereAre = 0;  // asking for fewer would make the runtime start its threads anew
    GOMP_parallel(
        [](void *data) {
            const auto &loop = *static_cast<Loop *>(data);
            const int64_t most = (loop.count + loop.grain - 1) / loop.grain;
            const int64_t parts = std::min<int64_t>(omp_get_num_threads(), most);
            const int64_t size = (loop.count + parts - 1) / parts;
            const int64_t begin = omp_get_thread_num() * size;
            if (begin < loop.count) loop.body(begin, std::min(begin + size, loop.count));
        },
        &loop, asManyAsThereAre, 0);
}

}  // namespace graft
