#include "CBlocks.h"

#include <string.h>

// Products and sums are rounded one by one, as in the reference.
#pragma STDC FP_CONTRACT OFF

// Code, name, bytes and elements of a block.
#define CBLOCKS_QUANTISED(X)                                                                             \
    X(2, q4_0, 18, 32) X(3, q4_1, 20, 32) X(6, q5_0, 22, 32) X(7, q5_1, 24, 32) X(8, q8_0, 34, 32)       \
    X(10, q2_k, 84, 256) X(11, q3_k, 110, 256) X(12, q4_k, 144, 256) X(13, q5_k, 176, 256)               \
    X(14, q6_k, 210, 256) X(20, iq4_nl, 18, 32) X(23, iq4_xs, 136, 256) X(34, tq1_0, 54, 256)            \
    X(35, tq2_0, 66, 256) X(39, mxfp4, 17, 32)

#define CBLOCKS_PLAIN(X)                                                                                 \
    X(0, f32, 4, 1) X(1, f16, 2, 1) X(24, i8, 1, 1) X(25, i16, 2, 1) X(26, i32, 4, 1) X(27, i64, 8, 1)   \
    X(28, f64, 8, 1) X(30, bf16_values, 2, 1)

enum { CBLOCKS_TYPES = 40, CBLOCKS_BF16 = 30 };

struct kernel {
    void (*f32)(const uint8_t *, size_t, float *);
    void (*bf16)(const uint8_t *, size_t, uint16_t *);
};

static const float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#define NAME(x) x##_portable
#include "kernels.h"
#undef NAME

#if defined(__x86_64__)
#define NAME(x) x##_avx2
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#include "kernels.h"
#pragma clang attribute pop
#undef NAME

#define NAME(x) x##_avx512
#pragma clang attribute push(                                                                            \
    __attribute__((target("avx,avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#include "kernels.h"
#pragma clang attribute pop
#undef NAME
#endif

static const struct kernel *kernels(int level) {
    switch (level) {
    case CBLOCKS_PORTABLE: return kernels_portable;
#if defined(__x86_64__)
    case CBLOCKS_AVX2: return kernels_avx2;
    case CBLOCKS_AVX512: return kernels_avx512;
#endif
    default: return NULL;
    }
}

int cblocks_best_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("fma"))
        return CBLOCKS_PORTABLE;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return CBLOCKS_AVX512;
    return CBLOCKS_AVX2;
#else
    return CBLOCKS_PORTABLE;
#endif
}

static const struct {
    uint16_t bytes, elements;
} sizes[CBLOCKS_TYPES] = {
#define SIZES(code, type, bytes, elements) [code] = {bytes, elements},
    CBLOCKS_QUANTISED(SIZES) CBLOCKS_PLAIN(SIZES)
#undef SIZES
};

size_t cblocks_elements(uint32_t type) { return type < CBLOCKS_TYPES ? sizes[type].elements : 0; }

size_t cblocks_bytes(uint32_t type) { return type < CBLOCKS_TYPES ? sizes[type].bytes : 0; }

int cblocks_to_f32(int level, uint32_t type, const void *blocks, size_t count, float *out) {
    const struct kernel *table = kernels(level);
    if (!table || !cblocks_elements(type)) return -1;
    table[type].f32(blocks, count, out);
    return 0;
}

int cblocks_to_bf16(int level, uint32_t type, const void *blocks, size_t count, uint16_t *out) {
    const struct kernel *table = kernels(level);
    if (!table || !cblocks_elements(type)) return -1;
    // bf16 stays as it is, with the payload of a NaN.
    if (type == CBLOCKS_BF16) {
        memcpy(out, blocks, count * sizeof *out);
    } else {
        table[type].bf16(blocks, count, out);
    }
    return 0;
}
