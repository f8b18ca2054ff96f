// Root-mean-square normalisation, with the addition before it, in one pass over the rows.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "Parallel.h"
#include "Vectors.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Rows that one thread takes at least.
constexpr int64_t kGrain = 16;

template <class Item>
struct Forward {
    const Item *input, *delta, *weight;  // delta may be null
    Item *sum, *normed;                  // sum is null without delta
    float *scales;
    int64_t size;
    float epsilon;
};

template <class Item>
GRAFT_INLINE void forwardRows(const Forward<Item> &all, int64_t begin, int64_t end) {
    const int64_t size = all.size;
    const Item *weight = all.weight;
    for (int64_t row = begin; row < end; ++row) {
        const Item *input = all.input + row * size;
        float squares = 0;
        if (all.delta) {
            const Item *delta = all.delta + row * size;
            Item *sum = all.sum + row * size;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < size; ++i) {
                store(sum[i], load(input[i]) + load(delta[i]));
                const float value = load(sum[i]);
                squares += value * value;
            }
            input = sum;
        } else {
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < size; ++i) squares += load(input[i]) * load(input[i]);
        }
        const float scale = 1 / std::sqrt(squares / float(size) + all.epsilon);
        Item *normed = all.normed + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) store(normed[i], load(input[i]) * scale * load(weight[i]));
        all.scales[row] = scale;
    }
}

template <class Item>
struct Backward {
    const Item *sum, *weight;
    const float *scales;
    const Item *normedGradient, *sumGradient;  // sumGradient may be null
    Item *gradient;
    int64_t size;
};

// y = x s w with s = (mean(x^2) + e)^(-1/2): dx = s w dy - x s^3 mean(x w dy).
template <class Item>
GRAFT_INLINE void backwardRows(const Backward<Item> &all, int64_t begin, int64_t end) {
    const int64_t size = all.size;
    const Item *weight = all.weight;
    for (int64_t row = begin; row < end; ++row) {
        const Item *sum = all.sum + row * size, *outer = all.normedGradient + row * size;
        Item *gradient = all.gradient + row * size;
        const float scale = all.scales[row];
        float product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t i = 0; i < size; ++i) product += load(outer[i]) * load(weight[i]) * load(sum[i]);
        const float along = product / float(size) * scale * scale * scale;
        if (all.sumGradient) {
            const Item *other = all.sumGradient + row * size;
#pragma omp simd
            for (int64_t i = 0; i < size; ++i)
                store(gradient[i],
                      load(outer[i]) * load(weight[i]) * scale - load(sum[i]) * along + load(other[i]));
        } else {
#pragma omp simd
            for (int64_t i = 0; i < size; ++i)
                store(gradient[i], load(outer[i]) * load(weight[i]) * scale - load(sum[i]) * along);
        }
    }
}

GRAFT_CLONES void forwardBF16(const Forward<BF16> *all, int64_t begin, int64_t end) { forwardRows(*all, begin, end); }
GRAFT_CLONES void forwardFloat(const Forward<float> *all, int64_t begin, int64_t end) { forwardRows(*all, begin, end); }
GRAFT_CLONES void backwardBF16(const Backward<BF16> *all, int64_t begin, int64_t end) {
    backwardRows(*all, begin, end);
}
GRAFT_CLONES void backwardFloat(const Backward<float> *all, int64_t begin, int64_t end) {
    backwardRows(*all, begin, end);
}

template <class Item>
Item *itemsOrNull(const at::Tensor &tensor) {
    return tensor.defined() ? items<Item>(tensor) : nullptr;
}

template <class Item, class Rows>
void runForward(const at::Tensor &input, const at::Tensor &delta, const at::Tensor &weight, at::Tensor &sum,
                at::Tensor &normed, at::Tensor &scales, double epsilon, Rows rows) {
    const Forward<Item> all{items<Item>(input), itemsOrNull<Item>(delta), items<Item>(weight), itemsOrNull<Item>(sum),
                            items<Item>(normed), scales.data_ptr<float>(), weight.size(0), float(epsilon)};
    inParallel(scales.numel(), kGrain, [&](int64_t begin, int64_t end) { rows(&all, begin, end); });
}

template <class Item, class Rows>
void runBackward(const at::Tensor &sum, const at::Tensor &weight, const at::Tensor &scales,
                 const at::Tensor &normedGradient, const at::Tensor &sumGradient, at::Tensor &gradient, Rows rows) {
    const Backward<Item> all{items<Item>(sum), items<Item>(weight), scales.data_ptr<float>(),
                             items<Item>(normedGradient), itemsOrNull<Item>(sumGradient), items<Item>(gradient),
                             weight.size(0)};
    inParallel(scales.numel(), kGrain, [&](int64_t begin, int64_t end) { rows(&all, begin, end); });
}

/// Results: the normalised rows; with a delta also the sum, first.
struct Norm : torch::autograd::Function<Norm> {
    static variable_list forward(AutogradContext *context, const at::Tensor &input,
                                 const std::optional<at::Tensor> &delta, const at::Tensor &weight, double epsilon) {
        context->set_materialize_grads(false);
        const auto rows = input.contiguous();
        const auto added = delta ? delta->contiguous() : at::Tensor();
        const auto factors = weight.contiguous();
        auto sum = delta ? at::empty_like(rows) : at::Tensor();
        auto normed = at::empty_like(rows);
        auto scales = at::empty({rows.numel() / weight.size(0)}, rows.options().dtype(at::kFloat));
        if (input.scalar_type() == at::kBFloat16)
            runForward<BF16>(rows, added, factors, sum, normed, scales, epsilon, forwardBF16);
        else
            runForward<float>(rows, added, factors, sum, normed, scales, epsilon, forwardFloat);
        context->save_for_backward({delta ? sum : rows, factors, scales});
        if (delta) return {sum, normed};
        return {normed};
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "graft::rms_norm has no second derivative");
        const auto saved = context->get_saved_variables();
        const bool hasDelta = gradients.size() == 2;
        const auto outer = gradients.back();
        auto sumGradient = hasDelta ? gradients.front() : at::Tensor();
        at::Tensor gradient = sumGradient;
        if (outer.defined()) {
            const auto contiguous = outer.contiguous();
            if (sumGradient.defined()) sumGradient = sumGradient.contiguous();
            gradient = at::empty_like(saved[0]);
            if (gradient.scalar_type() == at::kBFloat16)
                runBackward<BF16>(saved[0], saved[1], saved[2], contiguous, sumGradient, gradient, backwardBF16);
            else
                runBackward<float>(saved[0], saved[1], saved[2], contiguous, sumGradient, gradient, backwardFloat);
        }
        return {gradient, hasDelta ? gradient : at::Tensor(), at::Tensor(), at::Tensor()};
    }
};

void check(const at::Tensor &input, const at::Tensor &weight) {
    TORCH_CHECK(hasKernels(input) && input.dim() > 0 && weight.dim() == 1 && weight.is_cpu() && weight.size(0) > 0 &&
                    weight.scalar_type() == input.scalar_type() && input.size(-1) == weight.size(0),
                "expected bfloat16 or float32 rows on the CPU and a weight of their size and dtype");
    TORCH_CHECK(!weight.requires_grad(), "the weight gets no gradient here");
}

at::Tensor rmsNorm(const at::Tensor &input, const at::Tensor &weight, double epsilon) {
    check(input, weight);
    return Norm::apply(input, std::optional<at::Tensor>(), weight, epsilon)[0];
}

std::tuple<at::Tensor, at::Tensor> addRMSNorm(const at::Tensor &input, const at::Tensor &delta,
                                              const at::Tensor &weight, double epsilon) {
    check(input, weight);
    TORCH_CHECK(delta.sizes() == input.sizes() && delta.scalar_type() == input.scalar_type() && delta.is_cpu(),
                "what is added has another shape, dtype or device");
    const auto results = Norm::apply(input, std::optional<at::Tensor>(delta), weight, epsilon);
    return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("rms_norm(Tensor input, Tensor weight, float epsilon) -> Tensor", rmsNorm);
    library.def("add_rms_norm(Tensor input, Tensor delta, Tensor weight, float epsilon) -> (Tensor, Tensor)",
                addRMSNorm);
}

}  // namespace graft
