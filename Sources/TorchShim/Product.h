// Products with weights, by the fastest way that there is on the machine.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace graft {

/// `x W^T`: `x [rows, in]` and `weight [out, in]`, both in any layout.
struct ProductTerm {
    at::Tensor x, weight;
};

/// `x1 W1^T + x2 W2^T + ... + b`, added up in fp32 where the library can, written to `result [rows, out]`, whose rows are
/// dense; nothing is recorded for gradients. There is at least one term; `b [out]` may be undefined.
void sumOfProducts(const at::Tensor &result, const std::vector<ProductTerm> &terms, const at::Tensor &bias = {});

/// The same in the terms' own dtype.
at::Tensor sumOfProducts(const std::vector<ProductTerm> &terms, const at::Tensor &bias = {});

/// `x W^T + b`.
inline at::Tensor product(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias = {}) {
    return sumOfProducts({{x, weight}}, bias);
}

}  // namespace graft
