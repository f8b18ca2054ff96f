// Frozen linear layers that share an input, each with a low-rank update: one step of the record, one saved input.
// Packed weights are unpacked one at a time in the forward pass; in the backward pass those of one input together.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "Conversion.h"
#include "Packed.h"
#include "Product.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What no gradient flows into. Each list has an entry a layer; what a layer lacks is undefined.
struct Layers : torch::CustomClassHolder {
    std::vector<at::Tensor> weights, biases;
    /// Dropout's, of the input's shape: zero, or one over the probability of keeping.
    std::vector<at::Tensor> masks;
    std::vector<double> scales;
    /// Where a layer's two factors are among the factors of all, or -1.
    std::vector<int64_t> places;

    bool isAdapted(size_t layer) const { return places[layer] >= 0; }
    /// Whether the layer's update sees the input as it is, so that it shares a product with others.
    bool shares(size_t layer) const { return isAdapted(layer) && !masks[layer].defined(); }
};

at::Tensor flat(const at::Tensor &tensor) { return tensor.reshape({-1, tensor.size(-1)}).contiguous(); }

/// The dtype that sums of products over rows are kept in.
at::ScalarType wide(const at::Tensor &tensor) {
    return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Down factors `[rank, in]` times their layers' scales on top of each other, `[ranks, in]`; undefined for none.
at::Tensor stacked(const Layers &layers, const std::vector<size_t> &which, at::TensorList factors, at::ScalarType dtype) {
    if (which.empty()) return {};
    const auto down = [&](size_t layer) { return factors[layers.places[layer]]; };
    if (which.size() == 1) return converted(down(which[0]), dtype, layers.scales[which[0]]);
    int64_t ranks = 0, start = 0;
    for (size_t layer : which) ranks += down(layer).size(0);
    auto all = at::empty({ranks, down(which[0]).size(1)}, down(which[0]).options().dtype(dtype));
    for (size_t layer : which) {
        const int64_t rank = down(layer).size(0);
        convert(down(layer), layers.scales[layer], all.narrow(0, start, rank));
        start += rank;
    }
    return all;
}

/// The gradients of the factors and of the input.
///
/// With dt = dy B: dB = dy^T t, dA = s dt^T x, dx = dy W + dt (s A); where dropout masks the input, both x are.
struct Backward {
    const Layers &layers;
    /// The factors, each adapted layer's inner product, and the input.
    const variable_list saved;
    const size_t factorCount;
    const bool trains, wantsInput;
    variable_list factorGradients = variable_list(factorCount);
    at::Tensor gradient{};  // [rows, in]

    void run(const variable_list &outers) {
        std::vector<ProductTerm> terms;  // of the input's gradient
        std::vector<size_t> sharing;
        std::vector<at::Tensor> sharedOuters;
        size_t adapted = 0;
        for (size_t i = 0; i < layers.weights.size(); ++i) {
            const size_t index = layers.isAdapted(i) ? adapted++ : 0;
            if (!outers[i].defined()) continue;
            const auto outer = flat(outers[i]);
            if (wantsInput) terms.push_back({outer, unpacked(layers.weights[i]).t()});
            if (!layers.isAdapted(i) || !(trains || wantsInput)) continue;
            if (trains) addUp(i, outer, saved[factorCount + index]);
            if (layers.shares(i)) {
                sharing.push_back(i);
                sharedOuters.push_back(outer);
            } else {
                addMasked(i, outer);
            }
        }
        if (!sharing.empty()) addShared(sharing, sharedOuters, terms);
        if (terms.empty()) return;
        const auto sum = sumOfProducts(terms);
        gradient = gradient.defined() ? gradient.add_(sum) : sum;
    }

    void addUp(size_t layer, const at::Tensor &outer, const at::Tensor &inner) {
        const int64_t place = layers.places[layer] + 1;
        const auto &up = saved[place];  // [out, rank]
        auto transposed = at::empty({up.size(1), up.size(0)}, up.options().dtype(wide(inner)));
        sumOfProducts(transposed, {{inner.t(), outer.t()}});
        factorGradients[place] = converted(transposed.t(), up.scalar_type());
    }

    /// dt, `[rows, rank]`, written to `result`.
    void multiplyUp(size_t layer, const at::Tensor &outer, const at::Tensor &result) const {
        sumOfProducts(result, {{outer, converted(saved[layers.places[layer] + 1], outer.scalar_type()).t()}});
    }

    void addMasked(size_t layer, const at::Tensor &outer) {
        const auto &down = saved[layers.places[layer]];
        const auto inner = at::empty({outer.size(0), down.size(0)}, outer.options());
        multiplyUp(layer, outer, inner);
        const auto mask = flat(layers.masks[layer]);
        if (trains) addDowns({layer}, inner, saved.back() * mask);
        if (!wantsInput) return;
        const auto through = product(inner, stacked(layers, {layer}, saved, outer.scalar_type()).t()).mul_(mask);
        gradient = gradient.defined() ? gradient.add_(through) : through;
    }

    void addShared(const std::vector<size_t> &sharing, const std::vector<at::Tensor> &outers,
                   std::vector<ProductTerm> &terms) {
        const auto dtype = outers[0].scalar_type();
        int64_t ranks = 0, start = 0;
        for (size_t layer : sharing) ranks += saved[layers.places[layer]].size(0);
        const auto inner = at::empty({outers[0].size(0), ranks}, outers[0].options());
        for (size_t i = 0; i < sharing.size(); ++i) {
            const int64_t rank = saved[layers.places[sharing[i]]].size(0);
            multiplyUp(sharing[i], outers[i], inner.narrow(1, start, rank));
            start += rank;
        }
        if (trains) addDowns(sharing, inner, saved.back());
        if (wantsInput) terms.push_back({inner, stacked(layers, sharing, saved, dtype).t()});
    }

    /// `inner` holds dt of these layers side by side.
    void addDowns(const std::vector<size_t> &which, const at::Tensor &inner, const at::Tensor &x) {
        const auto all = at::empty({inner.size(1), x.size(1)}, x.options().dtype(wide(x)));
        sumOfProducts(all, {{inner.t(), x.t()}});
        int64_t start = 0;
        for (size_t layer : which) {
            const auto &down = saved[layers.places[layer]];
            factorGradients[layers.places[layer]] =
                converted(all.narrow(0, start, down.size(0)), down.scalar_type(), layers.scales[layer]);
            start += down.size(0);
        }
    }
};

// y = x W^T + t B^T with t = s x A^T; s is in A, so that it is applied to the smallest of all matrices.
struct AdaptedLinears : torch::autograd::Function<AdaptedLinears> {
    static variable_list forward(AutogradContext *context, const c10::intrusive_ptr<Layers> &all, const at::Tensor &input,
                                 at::TensorList factors) {
        context->set_materialize_grads(false);
        const auto &layers = *all;
        const auto dtype = input.scalar_type();
        const auto x = flat(input);
        std::vector<size_t> sharing;
        for (size_t i = 0; i < layers.weights.size(); ++i)
            if (layers.shares(i)) sharing.push_back(i);
        const auto shared = sharing.empty() ? at::Tensor() : product(x, stacked(layers, sharing, factors, dtype));
        auto shape = input.sizes().vec();
        variable_list outputs, saved(factors.begin(), factors.end());
        // Factors that are not trained, now or at all, need neither input nor inner product to be kept.
        const bool trains = std::any_of(factors.begin(), factors.end(), [](auto &factor) { return factor.requires_grad(); });
        int64_t start = 0;
        for (size_t i = 0; i < layers.weights.size(); ++i) {
            std::vector<ProductTerm> terms{{x, unpacked(layers.weights[i])}};
            if (layers.isAdapted(i)) {
                const auto up = converted(factors[layers.places[i] + 1], dtype);
                at::Tensor inner;  // [rows, rank]
                if (layers.shares(i)) {
                    inner = shared.narrow(1, start, up.size(1));
                    start += up.size(1);
                } else {
                    inner = product(x * flat(layers.masks[i]), stacked(layers, {i}, factors, dtype));
                }
                if (trains) saved.push_back(inner);
                terms.push_back({std::move(inner), up});
            }
            shape.back() = layers.weights[i].size(0);
            outputs.push_back(sumOfProducts(terms, layers.biases[i]).view(shape));
        }
        if (trains) saved.push_back(x);
        context->saved_data["factors"] = int64_t(factors.size());
        context->saved_data["trains"] = trains;
        context->save_for_backward(std::move(saved));
        context->saved_data["layers"] = c10::IValue::make_capsule(all);
        context->saved_data["shape"] = input.sizes().vec();
        return outputs;
    }

    static variable_list backward(AutogradContext *context, variable_list outers) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "graft::linears has no second derivative");
        const auto all = c10::static_intrusive_pointer_cast<Layers>(context->saved_data["layers"].toCapsule());
        Backward pass{*all, context->get_saved_variables(), size_t(context->saved_data["factors"].toInt()),
                      context->saved_data["trains"].toBool(), context->needs_input_grad(0)};
        pass.run(outers);
        variable_list results(2 + pass.factorCount);
        std::move(pass.factorGradients.begin(), pass.factorGradients.end(), results.begin() + 2);
        if (pass.gradient.defined()) results[1] = pass.gradient.view(context->saved_data["shape"].toIntVector());
        return results;
    }
};

using Optionals = c10::List<std::optional<at::Tensor>>;

std::vector<at::Tensor> plain(const Optionals &list) {
    std::vector<at::Tensor> tensors;
    for (size_t i = 0; i < list.size(); ++i) tensors.push_back(list.get(i).value_or(at::Tensor()));
    return tensors;
}

std::vector<at::Tensor> linears(const at::Tensor &input, at::TensorList weights, const Optionals &biases,
                                const Optionals &factors, at::ArrayRef<double> scales, const Optionals &masks) {
    auto layers = c10::make_intrusive<Layers>();
    layers->weights = weights.vec();
    layers->biases = plain(biases);
    layers->masks = plain(masks);
    layers->scales = scales.vec();
    const size_t count = weights.size();
    TORCH_CHECK(count > 0 && biases.size() == count && masks.size() == count && scales.size() == count &&
                    factors.size() == 2 * count && input.dim() > 1,
                "expected an input [..., in], and for each weight a bias, two factors, a scale and a mask");
    std::vector<at::Tensor> present;
    const auto given = plain(factors);
    for (size_t i = 0; i < count; ++i) {
        const auto &down = given[2 * i], &up = given[2 * i + 1];
        const auto &weight = weights[i];
        TORCH_CHECK(weight.dim() == 2 && weight.size(1) == input.size(-1), "weight ", i, " is ", weight.sizes(),
                    ", but the input has ", input.size(-1), " features");
        TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "the dtypes of input and weight differ");
        TORCH_CHECK(!weight.requires_grad() && !(layers->biases[i].defined() && layers->biases[i].requires_grad()),
                    "weights and biases get no gradient here");
        const auto &bias = layers->biases[i];
        TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weight.size(0)), "the bias of layer ", i,
                    " is ", bias.sizes(), ", but its weight has ", weight.size(0), " outputs");
        TORCH_CHECK(down.defined() == up.defined(), "layer ", i, " has one factor; expected two or none");
        layers->places.push_back(down.defined() ? int64_t(present.size()) : -1);
        if (!down.defined()) continue;
        TORCH_CHECK(down.dim() == 2 && up.dim() == 2 && down.size(1) == weight.size(1) && up.size(0) == weight.size(0) &&
                        up.size(1) == down.size(0),
                    "the factors ", down.sizes(), " and ", up.sizes(), " do not fit a weight ", weight.sizes());
        TORCH_CHECK(!layers->masks[i].defined() || layers->masks[i].sizes() == input.sizes(),
                    "the mask of layer ", i, " has another shape than the input");
        present.push_back(down);
        present.push_back(up);
    }
    return AdaptedLinears::apply(layers, input, at::TensorList(present));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def(
        "linears(Tensor input, Tensor[] weights, Tensor?[] biases, Tensor?[] factors, float[] scales, Tensor?[] masks) "
        "-> Tensor[]",
        linears);
}

}  // namespace graft
