// Frozen matrices that are not held as plain numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include "CTorch.h"

namespace graft {

/// A stand-in for a packed matrix: its shape and the dtype to compute in, with one NaN behind every element, so that
/// whoever takes it for a plain tensor will notice. `unpack` writes runs of rows, on several threads at once.
CTTensor packedMatrix(int64_t rows, int64_t columns, int32_t dtype, CTUnpack unpack, CTRelease release, void *context);

/// The values of a packed matrix in a dtype, float32 or bfloat16, as a tensor of their own; any other tensor as it is.
at::Tensor unpacked(const at::Tensor &matrix, at::ScalarType dtype);

/// The same in the matrix's own dtype.
inline at::Tensor unpacked(const at::Tensor &matrix) { return unpacked(matrix, matrix.scalar_type()); }

}  // namespace graft
