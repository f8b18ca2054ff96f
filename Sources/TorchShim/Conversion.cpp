#include "Conversion.h"

#include <ATen/ATen.h>

#include "Parallel.h"
#include "RightFactor.h"

namespace graft {
namespace {

/// Fewer values are converted sooner than threads wake up.
constexpr int64_t kFewestValues = 64 << 10;

template <class From, class To>
struct Pass {
    MatrixRows<const From> from;
    MatrixRows<To> to;
    float scale;
};

template <class From, class To>
GRAFT_INLINE void byRows(const Pass<From, To> &pass, int64_t begin, int64_t end) {
    const float scale = pass.scale;
    for (int64_t i = begin; i < end; ++i) {
        const From *from = pass.from.row(i);
        To *to = pass.to.row(i);
#pragma omp simd
        for (int64_t j = 0; j < pass.to.size; ++j) store(to[j], load(from[j]) * scale);
    }
}

/// From columns: `from` has a row for each column of `to`. By blocks of 16 x 16, which are turned in registers.
template <class From, class To>
GRAFT_INLINE void byColumns(const Pass<From, To> &pass, int64_t begin, int64_t end) {
    constexpr int64_t side = 16;
    float block[side * side] = {}, turned[side * side];
    for (int64_t i = begin; i < end; i += side) {
        const int64_t rows = end - i < side ? end - i : side;
        for (int64_t j = 0; j < pass.to.size; j += side) {
            const int64_t columns = pass.to.size - j < side ? pass.to.size - j : side;
            for (int64_t k = 0; k < columns; ++k) {
                const From *from = pass.from.row(j + k) + i;
                for (int64_t l = 0; l < rows; ++l) block[k * side + l] = load(from[l]) * pass.scale;
            }
            transposeWords(reinterpret_cast<const uint32_t *>(block), side, reinterpret_cast<uint32_t *>(turned), side);
            for (int64_t l = 0; l < rows; ++l) {
                To *to = pass.to.row(i + l) + j;
                for (int64_t k = 0; k < columns; ++k) store(to[k], turned[l * side + k]);
            }
        }
    }
}

#define GRAFT_FOR(From, To)                                                                       \
    GRAFT_CLONES void convertRows(const Pass<From, To> *pass, int64_t begin, int64_t end) {       \
        byRows(*pass, begin, end);                                                                \
    }                                                                                             \
    GRAFT_CLONES void convertColumns(const Pass<From, To> *pass, int64_t begin, int64_t end) {    \
        byColumns(*pass, begin, end);                                                             \
    }
GRAFT_FOR(float, float)
GRAFT_FOR(float, BF16)
GRAFT_FOR(BF16, float)
GRAFT_FOR(BF16, BF16)
#undef GRAFT_FOR

template <class From, class To>
void run(const at::Tensor &matrix, double scale, const at::Tensor &result) {
    const bool isByRows = matrix.stride(1) == 1;
    const Pass<From, To> pass{{items<From>(matrix), matrix.stride(isByRows ? 0 : 1), 0, 0},
                              {items<To>(result), result.stride(0), result.size(0), result.size(1)},
                              float(scale)};
    const int64_t grain = std::max<int64_t>(1, kFewestValues / std::max<int64_t>(1, result.size(1)));
    inParallel(result.size(0), grain, [&](int64_t begin, int64_t end) {
        if (isByRows) convertRows(&pass, begin, end);
        else convertColumns(&pass, begin, end);
    });
}

}  // namespace

void convert(const at::Tensor &matrix, double scale, const at::Tensor &result) {
    const bool isDense = matrix.stride(1) == 1 || matrix.stride(0) == 1;
    if (!hasKernels(matrix) || !hasKernels(result) || !isDense || result.stride(1) != 1) {
        result.copy_(scale == 1 ? matrix : matrix * scale);
        return;
    }
    const bool fromBF16 = matrix.scalar_type() == at::kBFloat16, toBF16 = result.scalar_type() == at::kBFloat16;
    if (fromBF16) toBF16 ? run<BF16, BF16>(matrix, scale, result) : run<BF16, float>(matrix, scale, result);
    else toBF16 ? run<float, BF16>(matrix, scale, result) : run<float, float>(matrix, scale, result);
}

at::Tensor converted(const at::Tensor &matrix, at::ScalarType dtype, double scale) {
    if (matrix.scalar_type() == dtype && scale == 1 && matrix.is_contiguous()) return matrix;
    auto result = at::empty(matrix.sizes(), matrix.options().dtype(dtype));
    convert(matrix, scale, result);
    return result;
}

}  // namespace graft
