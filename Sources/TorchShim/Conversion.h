// Small matrices in another dtype or layout, in one pass each.
#pragma once

#include <ATen/core/Tensor.h>

namespace graft {

/// `scale` times a matrix in any layout, contiguous; the matrix itself where nothing would change.
at::Tensor converted(const at::Tensor &matrix, at::ScalarType dtype, double scale = 1);

/// The same, written to a matrix `result` of the same sizes, whose rows are dense.
void convert(const at::Tensor &matrix, double scale, const at::Tensor &result);

}  // namespace graft
