// The gated activation of the MLP, silu(gate) * up, in one pass.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "Parallel.h"
#include "Vectors.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Elements that one thread takes at least.
constexpr int64_t kGrain = 8192;

template <class Item>
GRAFT_INLINE void forwardItems(const Item *gate, const Item *up, Item *result, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const float x = load(gate[i]);
        store(result[i], x * sigmoid(x) * load(up[i]));
    }
}

template <class Item>
GRAFT_INLINE void backwardItems(const Item *gate, const Item *up, const Item *outer, Item *gateGradient,
                                Item *upGradient, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const float x = load(gate[i]), factor = load(outer[i]);
        const float turn = sigmoid(x);
        store(upGradient[i], factor * x * turn);
        store(gateGradient[i], factor * load(up[i]) * turn * (1 + x * (1 - turn)));
    }
}

GRAFT_CLONES void forwardBF16(const BF16 *gate, const BF16 *up, BF16 *result, int64_t begin, int64_t end) {
    forwardItems(gate, up, result, begin, end);
}
GRAFT_CLONES void forwardFloat(const float *gate, const float *up, float *result, int64_t begin, int64_t end) {
    forwardItems(gate, up, result, begin, end);
}
GRAFT_CLONES void backwardBF16(const BF16 *gate, const BF16 *up, const BF16 *outer, BF16 *gateGradient,
                               BF16 *upGradient, int64_t begin, int64_t end) {
    backwardItems(gate, up, outer, gateGradient, upGradient, begin, end);
}
GRAFT_CLONES void backwardFloat(const float *gate, const float *up, const float *outer, float *gateGradient,
                                float *upGradient, int64_t begin, int64_t end) {
    backwardItems(gate, up, outer, gateGradient, upGradient, begin, end);
}

template <class Item, class Part>
void runForward(const at::Tensor &gate, const at::Tensor &up, at::Tensor &result, Part part) {
    inParallel(gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
        part(items<Item>(gate), items<Item>(up), items<Item>(result), begin, end);
    });
}

template <class Item, class Part>
void runBackward(const at::Tensor &gate, const at::Tensor &up, const at::Tensor &outer, at::Tensor &gateGradient,
                 at::Tensor &upGradient, Part part) {
    inParallel(gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
        part(items<Item>(gate), items<Item>(up), items<Item>(outer), items<Item>(gateGradient), items<Item>(upGradient),
             begin, end);
    });
}

struct Activation : torch::autograd::Function<Activation> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &gate, const at::Tensor &up) {
        const auto left = gate.contiguous(), right = up.contiguous();
        auto result = at::empty_like(left);
        if (left.scalar_type() == at::kBFloat16) runForward<BF16>(left, right, result, forwardBF16);
        else runForward<float>(left, right, result, forwardFloat);
        context->save_for_backward({left, right});
        return result;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "graft::swiglu has no second derivative");
        const auto saved = context->get_saved_variables();
        const auto outer = gradients[0].contiguous();
        auto gate = at::empty_like(saved[0]), up = at::empty_like(saved[1]);
        if (outer.scalar_type() == at::kBFloat16)
            runBackward<BF16>(saved[0], saved[1], outer, gate, up, backwardBF16);
        else
            runBackward<float>(saved[0], saved[1], outer, gate, up, backwardFloat);
        return {gate, up};
    }
};

at::Tensor swiglu(const at::Tensor &gate, const at::Tensor &up) {
    TORCH_CHECK(hasKernels(gate) && up.is_cpu() && gate.scalar_type() == up.scalar_type() && gate.sizes() == up.sizes(),
                "expected two tensors of one shape, of bfloat16 or float32 on the CPU");
    return Activation::apply(gate, up);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) { library.def("swiglu(Tensor gate, Tensor up) -> Tensor", swiglu); }

}  // namespace graft
