// Rotary position embedding of queries and keys in one pass, from and to any layout of heads.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "Parallel.h"
#include "Vectors.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Heads of single tokens that one thread takes at least.
constexpr int64_t kGrain = 64;

template <class Item>
struct Turn {
    const Item *input;
    Item *result;
    int64_t inputStrides[3], resultStrides[3];  // batch, head, time; a head's features lie side by side
    int64_t heads, time, half;
    const Item *cosines, *sines;  // [batch or 1, time, 2 * half]
    int64_t tableStride;          // from row to row of the batch
    bool isBack;
};

// result[i] = x[i] cos[i] + x[j] sin[i] with j the feature half a head away; the way back has sin[j] for sin[i].
template <class Item>
GRAFT_INLINE void turnHeads(const Turn<Item> &all, int64_t begin, int64_t end) {
    const int64_t half = all.half;
    for (int64_t index = begin; index < end; ++index) {
        const int64_t token = index % all.time, head = index / all.time % all.heads;
        const int64_t row = index / all.time / all.heads;
        const Item *input =
            all.input + row * all.inputStrides[0] + head * all.inputStrides[1] + token * all.inputStrides[2];
        Item *result =
            all.result + row * all.resultStrides[0] + head * all.resultStrides[1] + token * all.resultStrides[2];
        const int64_t place = row * all.tableStride + token * 2 * half;
        const Item *cosines = all.cosines + place, *sines = all.sines + place;
        const Item *first = all.isBack ? sines + half : sines, *second = all.isBack ? sines : sines + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            const float left = load(input[i]), right = load(input[i + half]);
            store(result[i], left * load(cosines[i]) + right * load(first[i]));
            store(result[i + half], right * load(cosines[i + half]) + left * load(second[i]));
        }
    }
}

GRAFT_CLONES void turnBF16(const Turn<BF16> *all, int64_t begin, int64_t end) { turnHeads(*all, begin, end); }
GRAFT_CLONES void turnFloat(const Turn<float> *all, int64_t begin, int64_t end) { turnHeads(*all, begin, end); }

template <class Item, class Part>
void run(const at::Tensor &input, at::Tensor &result, const at::Tensor &cosines, const at::Tensor &sines, bool isBack,
         Part part) {
    const int64_t heads = input.size(1), time = input.size(2), half = input.size(3) / 2;
    Turn<Item> all{items<Item>(input), items<Item>(result), {}, {}, heads, time, half, items<Item>(cosines),
                   items<Item>(sines), cosines.size(0) == 1 ? 0 : time * 2 * half, isBack};
    for (int i = 0; i < 3; ++i) {
        all.inputStrides[i] = input.stride(i);
        all.resultStrides[i] = result.stride(i);
    }
    inParallel(input.size(0) * heads * time, kGrain, [&](int64_t begin, int64_t end) { part(&all, begin, end); });
}

/// Turns `[batch, heads, time, dim]`; the result is contiguous, or, on the way back, `[batch, time, heads, dim]` is.
at::Tensor turned(const at::Tensor &states, const at::Tensor &cosines, const at::Tensor &sines, bool isBack) {
    const auto input = states.stride(3) == 1 ? states : states.contiguous();
    auto result = isBack ? at::empty({input.size(0), input.size(2), input.size(1), input.size(3)}, input.options())
                               .transpose(1, 2)
                         : at::empty(input.sizes(), input.options());
    if (input.scalar_type() == at::kBFloat16) run<BF16>(input, result, cosines, sines, isBack, turnBF16);
    else run<float>(input, result, cosines, sines, isBack, turnFloat);
    return result;
}

struct Rotation : torch::autograd::Function<Rotation> {
    static variable_list forward(AutogradContext *context, const at::Tensor &query, const at::Tensor &key,
                                 const at::Tensor &cosines, const at::Tensor &sines) {
        context->set_materialize_grads(false);
        const auto cos = cosines.contiguous(), sin = sines.contiguous();
        context->save_for_backward({cos, sin});
        return {turned(query, cos, sin, false), turned(key, cos, sin, false)};
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "graft::rotary has no second derivative");
        const auto saved = context->get_saved_variables();
        variable_list results(4);
        for (int i = 0; i < 2; ++i)
            if (gradients[i].defined()) results[i] = turned(gradients[i], saved[0], saved[1], true);
        return results;
    }
};

void check(const at::Tensor &states, const at::Tensor &table) {
    TORCH_CHECK(hasKernels(states) && states.dim() == 4 && states.size(3) % 2 == 0,
                "expected [batch, heads, time, dim] of bfloat16 or float32 on the CPU with an even dim");
    TORCH_CHECK(table.is_cpu() && table.scalar_type() == states.scalar_type() && table.dim() == 4 &&
                    (table.size(0) == 1 || table.size(0) == states.size(0)) && table.size(1) == 1 &&
                    table.size(2) == states.size(2) && table.size(3) == states.size(3),
                "the table of angles does not fit the heads");
}

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor &query, const at::Tensor &key, const at::Tensor &cosines,
                                          const at::Tensor &sines) {
    for (const auto &states : {query, key}) {
        check(states, cosines);
        check(states, sines);
    }
    TORCH_CHECK(cosines.size(0) == sines.size(0), "the tables of angles differ in size");
    const auto results = Rotation::apply(query, key, cosines, sines);
    return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("rotary(Tensor query, Tensor key, Tensor cosines, Tensor sines) -> (Tensor, Tensor)", rotary);
}

}  // namespace graft
