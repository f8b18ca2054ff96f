// How matrices are laid out as right factors of products by oneDNN's tiles.
//
// Such a product wants its right factor `[K, N]` in rows; in bf16 as pairs of rows, `[K / 2, N, 2]`.
#pragma once

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CPUAllocator.h>

#include <exception>

#include "Vectors.h"

namespace graft {

/// Rows `[count, size]`, `stride` elements apart; the elements of a row lie side by side.
template <class Item>
struct MatrixRows {
    Item *data;
    int64_t stride, count, size;

    Item *row(int64_t index) const { return data + index * stride; }
};

/// `[count, size]` to contiguous rows `[padded, size]`, zeros below.
template <class Item>
GRAFT_INLINE void copyRows(const MatrixRows<const Item> &rows, Item *result, int64_t padded) {
    for (int64_t t = 0; t < rows.count; ++t) std::memcpy(result + t * rows.size, rows.row(t), rows.size * sizeof(Item));
    std::memset(static_cast<void *>(result + rows.count * rows.size), 0,
                (padded - rows.count) * rows.size * sizeof(Item));
}

/// Sixteen 32-bit words of any items; rows begin anywhere.
typedef uint32_t Words __attribute__((vector_size(64), aligned(2), may_alias));
/// Thirty-two 16-bit ones.
typedef uint16_t Halves __attribute__((vector_size(64), aligned(2), may_alias));

// One of four steps of a transposition: rows `distance` apart exchange the blocks of `distance` columns off the diagonal.
#define GRAFT_LOWER(distance, lane) ((lane) & (distance) ? 16 + (lane) - (distance) : (lane))
#define GRAFT_UPPER(distance, lane) ((lane) & (distance) ? 16 + (lane) : (lane) + (distance))
#define GRAFT_LANES(of, d)                                                                                           \
    of(d, 0), of(d, 1), of(d, 2), of(d, 3), of(d, 4), of(d, 5), of(d, 6), of(d, 7), of(d, 8), of(d, 9), of(d, 10),   \
        of(d, 11), of(d, 12), of(d, 13), of(d, 14), of(d, 15)
template <int distance>
GRAFT_INLINE void exchange(Words *rows) {
    for (int i = 0; i < 16; ++i) {
        if (i & distance) continue;
        const Words upper = rows[i], lower = rows[i + distance];
        rows[i] = __builtin_shufflevector(upper, lower, GRAFT_LANES(GRAFT_LOWER, distance));
        rows[i + distance] = __builtin_shufflevector(upper, lower, GRAFT_LANES(GRAFT_UPPER, distance));
    }
}
#undef GRAFT_LANES
#undef GRAFT_UPPER
#undef GRAFT_LOWER

/// 16 x 16 words in registers.
GRAFT_INLINE void transposeWords(const uint32_t *from, int64_t stride, uint32_t *to, int64_t width) {
    Words rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = *reinterpret_cast<const Words *>(from + i * stride);
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
    for (int i = 0; i < 16; ++i) *reinterpret_cast<Words *>(to + i * width) = rows[i];
}

/// `[count, size]` to `[size, padded]` with `padded` a multiple of 16, zeros at the right.
template <class Item>
GRAFT_INLINE void transposeRows(const MatrixRows<const Item> &rows, Item *result, int64_t padded) {
    constexpr int64_t block = 16;
    for (int64_t t = 0; t < padded; t += block) {
        const int64_t length = rows.count - t < block ? (rows.count > t ? rows.count - t : 0) : block;
        int64_t i = 0;
        if (sizeof(Item) == sizeof(uint32_t) && length == block)
            for (; i + block <= rows.size; i += block)
                transposeWords(reinterpret_cast<const uint32_t *>(rows.row(t) + i), rows.stride,
                               reinterpret_cast<uint32_t *>(result + i * padded + t), padded);
        for (; i < rows.size; ++i) {
            Item *column = result + i * padded + t;
            for (int64_t k = 0; k < length; ++k) column[k] = rows.row(t + k)[i];
            for (int64_t k = length; k < block; ++k) column[k] = Item{};
        }
    }
}

/// As a right factor of products over rows: `[padded, size]`.
GRAFT_INLINE void packRows(const MatrixRows<const float> &rows, float *result, int64_t padded) {
    copyRows(rows, result, padded);
}

/// Two rows of `size` items side by side, in pairs.
GRAFT_INLINE void pairRows(const BF16 *first, const BF16 *second, BF16 *result, int64_t size) {
    int64_t i = 0;
    for (constexpr int64_t step = 32; i + step <= size; i += step) {
        const Halves a = *reinterpret_cast<const Halves *>(first + i), b = *reinterpret_cast<const Halves *>(second + i);
#define GRAFT_PAIRS(at) at, 32 + at, at + 1, 33 + at, at + 2, 34 + at, at + 3, 35 + at
        *reinterpret_cast<Halves *>(result + 2 * i) =
            __builtin_shufflevector(a, b, GRAFT_PAIRS(0), GRAFT_PAIRS(4), GRAFT_PAIRS(8), GRAFT_PAIRS(12));
        *reinterpret_cast<Halves *>(result + 2 * i + step) =
            __builtin_shufflevector(a, b, GRAFT_PAIRS(16), GRAFT_PAIRS(20), GRAFT_PAIRS(24), GRAFT_PAIRS(28));
#undef GRAFT_PAIRS
    }
    for (; i < size; ++i) {
        result[2 * i] = first[i];
        result[2 * i + 1] = second[i];
    }
}

GRAFT_INLINE void packRows(const MatrixRows<const BF16> &rows, BF16 *result, int64_t padded) {
    int64_t t = 0;
    for (; t + 1 < rows.count; t += 2) pairRows(rows.row(t), rows.row(t + 1), result + t * rows.size, rows.size);
    for (; t < padded; t += 2)
        for (int64_t i = 0; i < rows.size; ++i) {
            result[t * rows.size + 2 * i] = t < rows.count ? rows.row(t)[i] : BF16{0};
            result[t * rows.size + 2 * i + 1] = BF16{0};
        }
}

/// As a right factor of products over columns: `[size, padded]`, in bf16 for an even size.
GRAFT_INLINE void packColumns(const MatrixRows<const float> &rows, float *result, int64_t padded) {
    transposeRows(rows, result, padded);
}

GRAFT_INLINE void packColumns(const MatrixRows<const BF16> &rows, BF16 *result, int64_t padded) {
    // Pairs of columns move as one.
    struct Pair {
        BF16 first, second;
    };
    const MatrixRows<const Pair> pairs{reinterpret_cast<const Pair *>(rows.data), rows.stride / 2, rows.count,
                                       rows.size / 2};
    transposeRows(pairs, reinterpret_cast<Pair *>(result), padded);
}

// `C = A B (+ C)` of a tile: A `[M, K]` and C `[M, N]` in rows, B as packRows and packColumns make it.
inline void multiplyTile(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                         float *c, int64_t ldc, bool adds) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, a, b, c, false);
}

inline void multiplyTile(int64_t m, int64_t n, int64_t k, const BF16 *a, int64_t lda, const BF16 *b, int64_t ldb,
                         float *c, int64_t ldc, bool adds) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, reinterpret_cast<const at::BFloat16 *>(a),
                                reinterpret_cast<const at::BFloat16 *>(b), c, true);
}

template <class Item>
bool canMultiplyTiles() {
    // oneDNN says so by throwing; who multiplies on several threads has to know before.
    try {
        Item a[16 * 16] = {}, b[16 * 16] = {};
        float c[16 * 16];
        multiplyTile(16, 16, 16, a, 16, b, 16, c, 16, false);
        at::native::cpublas::brgemm_release(sizeof(Item) == 2);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

/// Whether the machine multiplies tiles of a tensor's dtype, and well.
inline bool hasTiles(const at::Tensor &tensor) {
#if defined(__x86_64__) && defined(CPUBLAS_BRGEMM_BF16BF16F32) && defined(CPUBLAS_BRGEMM_F32F32F32)
    if (!hasKernels(tensor) || !at::globalContext().userEnabledMkldnn()) return false;
    static const bool isWide = at::get_cpu_capability() == "AVX512";
    static const bool ofFloats = isWide && canMultiplyTiles<float>(), ofBF16 = isWide && canMultiplyTiles<BF16>();
    return tensor.scalar_type() == at::kFloat ? ofFloats : ofBF16;
#else
    return false;
#endif
}

/// Memory for items that nobody has written yet, from LibTorch's allocator, which keeps large blocks between steps.
template <class Item>
class Block {
 public:
    explicit Block(int64_t count) : memory_(c10::GetCPUAllocator()->allocate(count * sizeof(Item))) {}
    Item *get() const { return static_cast<Item *>(memory_.get()); }

 private:
    at::DataPtr memory_;
};

template <class Item>
Block<Item> block(int64_t count) {
    return Block<Item>(count);
}

}  // namespace graft
