// Frozen linear layers that share an input, each with a low-rank update: one step of the record, one saved input.
// Packed weights are unpacked one at a time, in the forward pass and again in the backward pass.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

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

/// The down factors `[rank, in]` of the layers that share the input, on top of each other.
at::Tensor sharedDown(const Layers &layers, at::TensorList factors, at::ScalarType dtype) {
    std::vector<at::Tensor> downs;
    for (size_t i = 0; i < layers.weights.size(); ++i)
        if (layers.shares(i)) downs.push_back(factors[layers.places[i]]);
    return downs.empty() ? at::Tensor() : (downs.size() == 1 ? downs[0] : at::cat(downs)).to(dtype);
}

struct AdaptedLinears : torch::autograd::Function<AdaptedLinears> {
    static variable_list forward(AutogradContext *context, const c10::intrusive_ptr<Layers> &all, const at::Tensor &input,
                                 at::TensorList factors) {
        context->set_materialize_grads(false);
        const auto &layers = *all;
        const auto dtype = input.scalar_type();
        const auto x = flat(input);
        const auto down = sharedDown(layers, factors, dtype);
        const auto shared = down.defined() ? product(x, down) : at::Tensor();  // [rows, ranks]
        auto shape = input.sizes().vec();
        variable_list outputs, saved(factors.begin(), factors.end());
        // Factors that are not trained, now or at all, need neither input nor inner product to be kept.
        const bool trains = std::any_of(factors.begin(), factors.end(), [](auto &factor) { return factor.requires_grad(); });
        int64_t start = 0;
        for (size_t i = 0; i < layers.weights.size(); ++i) {
            at::Tensor update;
            if (layers.isAdapted(i)) {
                const auto up = (factors[layers.places[i] + 1] * layers.scales[i]).to(dtype);
                at::Tensor inner;
                if (layers.shares(i)) {
                    inner = shared.narrow(1, start, up.size(1)).contiguous();
                    start += up.size(1);
                } else {
                    inner = product(x * flat(layers.masks[i]), factors[layers.places[i]].to(dtype));
                }
                update = product(inner, up);
                if (trains) saved.push_back(inner);
            }
            shape.back() = layers.weights[i].size(0);
            outputs.push_back(product(x, unpacked(layers.weights[i]), layers.biases[i], update).view(shape));
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
        const auto &layers = *all;
        const auto saved = context->get_saved_variables();
        const auto factorCount = size_t(context->saved_data["factors"].toInt());
        const bool trains = context->saved_data["trains"].toBool();
        const bool wantsInput = context->needs_input_grad(0);
        variable_list results(2 + factorCount);
        at::Tensor gradient;  // [rows, in]
        std::vector<at::Tensor> inners, downs;
        std::vector<int64_t> places;
        size_t adapted = 0;
        for (size_t i = 0; i < layers.weights.size(); ++i) {
            const size_t index = layers.isAdapted(i) ? adapted++ : 0;
            if (!outers[i].defined()) continue;
            const auto outer = flat(outers[i]);
            if (layers.isAdapted(i)) {
                const auto place = layers.places[i];
                const auto &down = saved[place], &up = saved[place + 1];
                const auto dtype = layers.weights[i].scalar_type();
                // y = (x m) A^T (s B)^T: with dt = dy s B, dB = s dy^T t, dA = dt^T (x m), dx = (dt A) m.
                if (trains) {
                    const auto &inner = saved[factorCount + index];
                    results[2 + place + 1] =
                        product(inner.t(), outer.t()).t().to(up.scalar_type()).mul_(layers.scales[i]);
                } else if (!wantsInput) {
                    continue;
                }
                const auto innerGradient = product(outer, (up * layers.scales[i]).to(dtype).t());
                if (layers.shares(i)) {
                    inners.push_back(innerGradient);
                    downs.push_back(down);
                    places.push_back(place);
                } else {
                    const auto mask = flat(layers.masks[i]);
                    if (trains)
                        results[2 + place] =
                            product(innerGradient.t(), (saved.back() * mask).t()).to(down.scalar_type());
                    if (wantsInput) {
                        auto masked = product(innerGradient, down.to(dtype).t()).mul_(mask);
                        gradient = gradient.defined() ? gradient.add_(masked) : masked;
                    }
                }
            }
            if (wantsInput) gradient = product(outer, unpacked(layers.weights[i]).t(), {}, gradient);
        }
        if (!inners.empty()) {
            const auto dtype = layers.weights[0].scalar_type();
            const auto inner = inners.size() == 1 ? inners[0] : at::cat(inners, 1);
            const auto down = (downs.size() == 1 ? downs[0] : at::cat(downs)).to(dtype);
            if (trains) {
                const auto all = product(inner.t(), saved.back().t());  // [ranks, in]
                int64_t start = 0;
                for (size_t i = 0; i < places.size(); ++i) {
                    const int64_t rank = downs[i].size(0);
                    results[2 + places[i]] = all.narrow(0, start, rank).to(downs[i].scalar_type(), false, true);
                    start += rank;
                }
            }
            if (wantsInput) gradient = product(inner, down.t(), {}, gradient);
        }
        if (gradient.defined()) results[1] = gradient.view(context->saved_data["shape"].toIntVector());
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
