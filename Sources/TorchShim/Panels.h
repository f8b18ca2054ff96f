// Sums of matrix products by tiles, on processors that multiply tiles well.
#pragma once

#include "Product.h"

namespace graft {

/// Whether `sumByPanels` takes a term.
bool hasPanels(const ProductTerm &term);

/// `x1 W1^T + x2 W2^T + ... + b`, written to `result [rows, out]` of dense rows, of the terms' dtype or fp32.
void sumByPanels(const at::Tensor &result, const std::vector<ProductTerm> &terms, const at::Tensor &bias);

}  // namespace graft
