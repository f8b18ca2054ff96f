// How the panels of each type lie in memory, and 8-bit vectors; see Products.h.

#ifndef CBLOCKS_PACKED_H
#define CBLOCKS_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "Products.h"

enum { PANEL_ROWS = 16, RUN = 32, CODES_PER_WORD = 4, MOST_VECTORS = 6 };

/// Products with one vector wait for memory, and the processor's own prefetching ends at each page.
enum { FETCHED_AHEAD = 4096 };

// Type code, name, bits of a code, columns that share a scale, whether scales are fp32 (else fp16), whether there is a
// minimum, and the logarithm of what is subtracted from each code. A code is never negative.
//   value = scale * (code - 2^shift)      without a minimum
//   value = scale * code + minimum        with one
#define CBLOCKS_PACKED_TYPES(X)                                                                      \
    X(2, q4_0, 4, 32, 0, 0, 3) X(3, q4_1, 4, 32, 0, 1, 0) X(6, q5_0, 5, 32, 0, 0, 4)                 \
    X(7, q5_1, 5, 32, 0, 1, 0) X(8, q8_0, 8, 32, 0, 0, 7) X(10, q2_k, 4, 16, 1, 1, 0)                \
    X(11, q3_k, 4, 16, 1, 0, 2) X(12, q4_k, 4, 32, 1, 1, 0) X(13, q5_k, 5, 32, 1, 1, 0)              \
    X(14, q6_k, 6, 16, 1, 0, 5)

enum { PACKED_TYPES = 15 };

struct layout {
    uint8_t bits, group;
    bool has_wide_scales, has_minimum;
    uint8_t shift;
};

extern const struct layout packed_layouts[PACKED_TYPES];

/// Bytes of the codes of 16 rows and 32 columns: the low four bits of all, then what is above them.
static inline size_t code_bytes(int bits) { return (size_t)bits * PANEL_ROWS * RUN / 8; }

/// Bytes of the scales (and minima) of 16 rows and 32 columns.
static inline size_t scale_bytes(int group, bool has_wide_scales, bool has_minimum) {
    return (size_t)(RUN / group) * PANEL_ROWS * (has_wide_scales ? 4 : 2) * (has_minimum ? 2 : 1);
}

/// Bytes of one panel: the codes of all runs of columns, then their scales.
static inline size_t panel_bytes(uint32_t type, size_t columns) {
    const struct layout *l = &packed_layouts[type];
    return columns / RUN * (code_bytes(l->bits) + scale_bytes(l->group, l->has_wide_scales, l->has_minimum));
}

static inline size_t panel_count(size_t rows) { return (rows + PANEL_ROWS - 1) / PANEL_ROWS; }

/// 32 values of a vector in 8 bits: `scale * codes`. One cache line.
struct run {
    int8_t codes[RUN];
    float scale;
    /// Sums of the values: of all, of the first and of the second half.
    float sum, half_sums[2];
    /// The same sums of the codes, negated.
    int32_t minus, half_minus[2];
    int32_t unused;
};

/// Kernels of one instruction set.
struct product_kernels {
    /// Rounds `count` values, a multiple of 32, to runs.
    void (*quantise)(const float *values, size_t count, struct run *runs);
    /// Multiplies a panel of `runs` runs of columns with 1 or `tile` vectors, `stride` runs apart: 16 sums a vector.
    void (*one[PACKED_TYPES])(
        const uint8_t *panel, size_t runs, const struct run *vectors, size_t stride, float *sums);
    void (*many[PACKED_TYPES])(
        const uint8_t *panel, size_t runs, const struct run *vectors, size_t stride, float *sums);
    size_t tile;
    void (*normalise)(const float *x, const float *weight, size_t count, float epsilon, float *out);
    void (*gate)(float *gate, const float *up, size_t count);
    void (*attend)(
        const float *query, const float *keys, const float *values, size_t count, size_t dimension, float scale,
        float *scores, float *out);
    void (*attend_many)(
        const float *const *queries, const float *keys, size_t stride, const float *values, size_t count,
        const size_t *first, const size_t *last, size_t dimension, float scale, float *scores, float *const *outputs);
};

/// The kernels of a level that this machine runs, or NULL.
const struct product_kernels *product_kernels(int level);

#endif
