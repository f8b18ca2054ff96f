#include "Product.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "Panels.h"

namespace graft {
namespace {

/// With fewer rows a product is bound by reading the weight, and LibTorch's own way there has less to set up.
constexpr int64_t kFewestRows = 8;

/// oneDNN's products, which LibTorch uses for bf16 only where asked for a plain product: in fp32 it takes MKL's, which
/// run at half the rate on processors that are not Intel's.
struct OneDNN {
    std::optional<c10::OperatorHandle> plain, adding, packing;
    bool hasBFloat16 = false;

    OneDNN() {
        auto &dispatcher = c10::Dispatcher::singleton();
        plain = dispatcher.findSchema({"mkldnn::_linear_pointwise", ""});
        adding = dispatcher.findSchema({"mkldnn::_linear_pointwise", "binary"});
        packing = dispatcher.findSchema({"mkldnn::_reorder_linear_weight", ""});
        hasBFloat16 = at::get_cpu_capability() == "AVX512";
    }

    bool takes(const at::Tensor &x, const at::Tensor &weight) const {
#if defined(__x86_64__)
        return plain && adding && at::globalContext().userEnabledMkldnn() && x.is_cpu() && weight.is_cpu() &&
               x.scalar_type() == weight.scalar_type() && x.size(0) >= kFewestRows && weight.numel() > 0 &&
               (x.scalar_type() == at::kFloat || (x.scalar_type() == at::kBFloat16 && hasBFloat16));
#else
        return false;
#endif
    }
};

at::Tensor call(const c10::OperatorHandle &op, torch::jit::Stack stack) {
    op.callBoxed(&stack);
    return std::move(stack.front()).toTensor();
}

c10::IValue optional(const at::Tensor &tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

const OneDNN &oneDNN() {
    static const OneDNN library;
    return library;
}

/// `x W^T + b + addend`, rounded once where the library adds while it multiplies; the latter two may be undefined.
at::Tensor libraryProduct(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                          const at::Tensor &addend) {
    const OneDNN &library = oneDNN();
    if (!library.takes(x, weight)) {
        auto result = at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
        return addend.defined() ? result.add_(addend) : result;
    }
    if (addend.defined())
        return call(*library.adding, {x, addend, weight, optional(bias), std::string("add")});
    return call(*library.plain, {x, weight, optional(bias), std::string("none"),
                                 c10::List<std::optional<at::Scalar>>(), std::optional<std::string>("")});
}

at::Tensor sumByLibrary(const std::vector<ProductTerm> &terms, const at::Tensor &bias) {
    // The first term is the largest: it is added to in fp32, where the library does that.
    at::Tensor sum;
    for (size_t i = terms.size(); i-- > 0;)
        sum = libraryProduct(terms[i].x, terms[i].weight, i == 0 ? bias : at::Tensor(), sum);
    return sum;
}

bool allHavePanels(const std::vector<ProductTerm> &terms) { return std::all_of(terms.begin(), terms.end(), hasPanels); }

}  // namespace

void sumOfProducts(const at::Tensor &result, const std::vector<ProductTerm> &terms, const at::Tensor &bias) {
    at::AutoDispatchBelowADInplaceOrView unrecorded;
    if (allHavePanels(terms)) sumByPanels(result, terms, bias);
    else result.copy_(sumByLibrary(terms, bias));
}

at::Tensor sumOfProducts(const std::vector<ProductTerm> &terms, const at::Tensor &bias) {
    at::AutoDispatchBelowADInplaceOrView unrecorded;
    if (!allHavePanels(terms)) return sumByLibrary(terms, bias);
    auto result = at::empty({terms[0].x.size(0), terms[0].weight.size(0)}, terms[0].x.options());
    sumByPanels(result, terms, bias);
    return result;
}

namespace {

at::Tensor productOperator(const at::Tensor &x, const at::Tensor &weight, const std::optional<at::Tensor> &bias) {
    TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
                "expected [rows, in] and a weight [out, in]");
    if (!weight.is_mkldnn()) return product(x, weight, bias.value_or(at::Tensor()));
    at::AutoDispatchBelowADInplaceOrView unrecorded;
    return libraryProduct(x, weight, bias.value_or(at::Tensor()), {});
}

/// The weight in the layout that oneDNN itself would choose for products with `rows` vectors; as it is elsewhere.
at::Tensor packedWeight(const at::Tensor &weight, int64_t rows) {
    at::AutoDispatchBelowADInplaceOrView unrecorded;
    const OneDNN &library = oneDNN();
    if (!library.packing || !library.takes(weight.new_empty({rows, weight.size(1)}), weight)) return weight;
    return call(*library.packing, {weight, rows});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("product(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", productOperator);
    library.def("packed_weight(Tensor weight, int rows) -> Tensor", packedWeight);
}

}  // namespace graft
