// Cross-entropy of rows of logits, with its gradient written over them.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "Parallel.h"
#include "Vectors.h"

namespace graft {
namespace {

template <class Item>
struct Rows {
    Item *logits;
    const int64_t *targets;
    float *losses;
    int64_t size;
    bool makesGradient;
};

template <class Item>
GRAFT_INLINE float largestOf(const Item *values, int64_t count) {
    // Side by side, since compilers leave a maximum that runs through all values alone.
    constexpr int64_t width = 64;
    float lanes[width];
    for (int64_t k = 0; k < width; ++k) lanes[k] = -std::numeric_limits<float>::infinity();
    int64_t i = 0;
    for (; i + width <= count; i += width)
        for (int64_t k = 0; k < width; ++k) {
            const float value = load(values[i + k]);
            lanes[k] = value > lanes[k] ? value : lanes[k];
        }
    for (; i < count; ++i) lanes[0] = load(values[i]) > lanes[0] ? load(values[i]) : lanes[0];
    for (int64_t k = 1; k < width; ++k) lanes[0] = lanes[k] > lanes[0] ? lanes[k] : lanes[0];
    return lanes[0];
}

template <class Item>
GRAFT_INLINE void lossOfRows(const Rows<Item> &all, int64_t begin, int64_t end) {
    const int64_t size = all.size;
    for (int64_t row = begin; row < end; ++row) {
        Item *logits = all.logits + row * size;
        const float largest = largestOf(logits, size);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += exponential(load(logits[i]) - largest);
        const int64_t target = all.targets[row];
        all.losses[row] = std::log(sum) + largest - load(logits[target]);
        if (!all.makesGradient) continue;
        // d loss / d logits = softmax - one-hot
        const float factor = 1 / sum;
        const float ofTarget = exponential(load(logits[target]) - largest) * factor - 1;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) store(logits[i], exponential(load(logits[i]) - largest) * factor);
        store(logits[target], ofTarget);
    }
}

GRAFT_CLONES void lossBF16(const Rows<BF16> *all, int64_t begin, int64_t end) { lossOfRows(*all, begin, end); }
GRAFT_CLONES void lossFloat(const Rows<float> *all, int64_t begin, int64_t end) { lossOfRows(*all, begin, end); }

template <class Item, class Part>
void run(at::Tensor &logits, const at::Tensor &targets, at::Tensor &losses, bool makesGradient, Part part) {
    const Rows<Item> all{items<Item>(logits), targets.data_ptr<int64_t>(), losses.data_ptr<float>(), logits.size(1),
                         makesGradient};
    inParallel(logits.size(0), 1, [&](int64_t begin, int64_t end) { part(&all, begin, end); });
}

at::Tensor crossEntropy(at::Tensor &logits, const at::Tensor &targets, bool makesGradient) {
    TORCH_CHECK(hasKernels(logits) && logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0,
                "expected contiguous [rows, vocabulary] of bfloat16 or float32 on the CPU");
    TORCH_CHECK(targets.is_cpu() && targets.dim() == 1 && targets.scalar_type() == at::kLong &&
                    targets.size(0) == logits.size(0),
                "expected one int64 target for each row");
    const auto places = targets.contiguous();
    for (int64_t i = 0; i < places.size(0); ++i) {
        const int64_t target = places.data_ptr<int64_t>()[i];
        TORCH_CHECK(target >= 0 && target < logits.size(1), "target ", target, " of row ", i,
                    " is no entry of a vocabulary of ", logits.size(1));
    }
    auto losses = at::empty({logits.size(0)}, logits.options().dtype(at::kFloat));
    if (logits.scalar_type() == at::kBFloat16) run<BF16>(logits, places, losses, makesGradient, lossBF16);
    else run<float>(logits, places, losses, makesGradient, lossFloat);
    return losses;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("cross_entropy_(Tensor(a!) logits, Tensor targets, bool makes_gradient) -> Tensor",
                torch::dispatch(c10::DispatchKey::CPU, crossEntropy));
}

}  // namespace graft
