// Products with weights, by the fastest library that LibTorch carries.
#pragma once

#include <ATen/core/Tensor.h>

namespace graft {

/// `x W^T + b + addend`, rounded once where the library adds while it multiplies; nothing is recorded for gradients.
///
/// `x` is `[rows, in]` and `W` `[out, in]`, both in any layout; `b` `[out]` and `addend` `[rows, out]` may be undefined.
at::Tensor product(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias = {},
                   const at::Tensor &addend = {});

}  // namespace graft
