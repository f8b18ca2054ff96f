#include "packed.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "Workers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

// Vectors pass between functions that are all inlined: how they would be passed otherwise does not matter.
#pragma clang diagnostic ignored "-Wpsabi"
// Products may be fused with sums; the order of sums is the one that is written.
#pragma STDC FP_CONTRACT ON

typedef uint32_t words __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));
typedef uint16_t shorts __attribute__((vector_size(32)));
typedef int8_t small_codes __attribute__((vector_size(16)));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE int32_t four_codes(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return four;
}

// MARK: portable

ALWAYS_INLINE ints dot_portable(const int bits, ints sum, words w, const int8_t *codes) {
    (void)bits;
    for (int c = 0; c < CODES_PER_WORD; c++) sum += (ints)(w >> (8 * c) & 255) * codes[c];
    return sum;
}

// The 15 low bits of an IEEE half, moved to a float's place, are the value times 2^-112, subnormals included.
ALWAYS_INLINE floats halves_portable(const uint8_t *p) {
    shorts s;
    memcpy(&s, p, sizeof s);
    words h = __builtin_convertvector(s, words);
    words magnitude = (h & 0x7FFF) << 13;
    words scaled = (words)((floats)magnitude * 0x1p112f);
    words special = (words)(magnitude >= 0x0F800000u);
    return (floats)((special & (magnitude | 0x7F800000u)) | (~special & scaled) | (h & 0x8000) << 16);
}

#define TILE 2
#define NAME(x) x##_portable
#include "product_kernels.h"
#undef NAME
#undef TILE

#if defined(__x86_64__)

// MARK: AVX2

#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)

typedef int32_t half_ints __attribute__((vector_size(32)));
#define LOW(v) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define HIGH(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
#define JOIN(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

// Codes of 8 bits would overflow the 16-bit sums of pairs, so they are multiplied as 16-bit numbers.
ALWAYS_INLINE __m256i half_dot_avx2(const int bits, __m256i sum, __m256i w, __m256i v) {
    if (bits < 8) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, v), _mm256_set1_epi16(1)));
    }
    __m256i even = _mm256_madd_epi16(
        _mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(v, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

ALWAYS_INLINE ints dot_avx2(const int bits, ints sum, words w, const int8_t *codes) {
    __m256i v = _mm256_set1_epi32(four_codes(codes));
    half_ints low = (half_ints)half_dot_avx2(bits, (__m256i)LOW(sum), (__m256i)LOW(w), v);
    half_ints high = (half_ints)half_dot_avx2(bits, (__m256i)HIGH(sum), (__m256i)HIGH(w), v);
    return JOIN(low, high);
}

ALWAYS_INLINE floats halves_avx2(const uint8_t *p) {
    __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)));
    return JOIN(low, high);
}

#define TILE 4
#define NAME(x) x##_avx2
#include "product_kernels.h"
#undef NAME
#pragma clang attribute pop

// MARK: AVX-VNNI

#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,bmi,bmi2,avxvnni"))), apply_to = function)

ALWAYS_INLINE ints dot_avx_vnni(const int bits, ints sum, words w, const int8_t *codes) {
    (void)bits;
    __m256i v = _mm256_set1_epi32(four_codes(codes));
    half_ints low = (half_ints)_mm256_dpbusd_avx_epi32((__m256i)LOW(sum), (__m256i)LOW(w), v);
    half_ints high = (half_ints)_mm256_dpbusd_avx_epi32((__m256i)HIGH(sum), (__m256i)HIGH(w), v);
    return JOIN(low, high);
}

ALWAYS_INLINE floats halves_avx_vnni(const uint8_t *p) { return halves_avx2(p); }

#define NAME(x) x##_avx_vnni
#include "product_kernels.h"
#undef NAME
#undef TILE
#pragma clang attribute pop

// MARK: AVX-512 with VNNI

#pragma clang attribute push(                                                                                \
    __attribute__((target("avx,avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)

ALWAYS_INLINE ints dot_avx512_vnni(const int bits, ints sum, words w, const int8_t *codes) {
    (void)bits;
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(four_codes(codes)));
}

ALWAYS_INLINE floats halves_avx512_vnni(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

#define TILE 6
#define NAME(x) x##_avx512_vnni
#include "product_kernels.h"
#undef NAME
#undef TILE
#pragma clang attribute pop

#elif defined(__aarch64__)

// MARK: NEON with dot products

#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)

ALWAYS_INLINE ints dot_neon(const int bits, ints sum, words w, const int8_t *codes) {
    int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four_codes(codes)));
    int32x4_t sums[4];
    int8x16_t parts[4];
    memcpy(sums, &sum, sizeof sum);
    memcpy(parts, &w, sizeof w);
    for (int i = 0; i < 4; i++) {
        // Codes of 8 bits are made signed, which takes 128 away from each; that is given back.
        if (bits == 8) {
            parts[i] = veorq_s8(parts[i], vdupq_n_s8(-128));
            sums[i] = vdotq_s32(sums[i], vdupq_n_s8(64), v);
            sums[i] = vdotq_s32(sums[i], vdupq_n_s8(64), v);
        }
        sums[i] = vdotq_s32(sums[i], parts[i], v);
    }
    memcpy(&sum, sums, sizeof sum);
    return sum;
}

ALWAYS_INLINE floats halves_neon(const uint8_t *p) {
    floats v;
    for (int i = 0; i < 4; i++) {
        uint16x4_t h = vld1_u16((const uint16_t *)(const void *)(p + 8 * i));
        float32x4_t part = vcvt_f32_f16(vreinterpret_f16_u16(h));
        memcpy((uint8_t *)&v + 16 * i, &part, sizeof part);
    }
    return v;
}

#define TILE 4
#define NAME(x) x##_neon
#include "product_kernels.h"
#undef NAME
#undef TILE
#pragma clang attribute pop
#endif

int cblocks_products_run(int level) {
    if (level == CBLOCKS_PRODUCTS_PORTABLE) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
        && __builtin_cpu_supports("f16c");
    switch (level) {
    case CBLOCKS_PRODUCTS_AVX2: return avx2;
    case CBLOCKS_PRODUCTS_AVX_VNNI: return avx2 && __builtin_cpu_supports("avxvnni");
    case CBLOCKS_PRODUCTS_AVX512_VNNI:
        return avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    default: return 0;
    }
#elif defined(__aarch64__) && defined(__linux__)
    // HWCAP_ASIMDDP.
    return level == CBLOCKS_PRODUCTS_NEON && (getauxval(AT_HWCAP) >> 20 & 1);
#elif defined(__aarch64__) && defined(__APPLE__)
    return level == CBLOCKS_PRODUCTS_NEON;
#else
    return 0;
#endif
}

int cblocks_best_products(void) {
    for (int level = CBLOCKS_PRODUCTS_LEVELS - 1; level > 0; level--) {
        if (cblocks_products_run(level)) return level;
    }
    return CBLOCKS_PRODUCTS_PORTABLE;
}

const struct product_kernels *product_kernels(int level) {
    if (!cblocks_products_run(level)) return NULL;
    switch (level) {
#if defined(__x86_64__)
    case CBLOCKS_PRODUCTS_AVX2: return &kernels_avx2;
    case CBLOCKS_PRODUCTS_AVX_VNNI: return &kernels_avx_vnni;
    case CBLOCKS_PRODUCTS_AVX512_VNNI: return &kernels_avx512_vnni;
#elif defined(__aarch64__)
    case CBLOCKS_PRODUCTS_NEON: return &kernels_neon;
#endif
    default: return &kernels_portable;
    }
}

// MARK: whole matrices

struct product {
    const struct product_kernels *kernels;
    const cblocks_packed *matrix;
    const float *x;
    float *y;
    size_t count, runs;
    struct run *vectors;
    cblocks_barrier ready;
    atomic_size_t next;
};

// So many 8-bit vectors stay in the second cache while panels pass by.
enum { VECTORS_AT_ONCE = 128 };

/// Panel `panel` times vectors `first` to `last`.
static void multiply_panel(const struct product *p, size_t panel, size_t first, size_t last) {
    const cblocks_packed *m = p->matrix;
    const uint8_t *codes = m->panels + panel * panel_bytes(m->type, m->columns);
    size_t row = panel * PANEL_ROWS, rows = m->rows - row < PANEL_ROWS ? m->rows - row : PANEL_ROWS;
    _Alignas(64) float sums[MOST_VECTORS * PANEL_ROWS];
    for (size_t t = first; t < last;) {
        bool is_tile = last - t >= p->kernels->tile;
        size_t vectors = is_tile ? p->kernels->tile : 1;
        (is_tile ? p->kernels->many : p->kernels->one)[m->type](
            codes, p->runs, p->vectors + t * p->runs, p->runs, sums);
        for (size_t i = 0; i < vectors; i++) {
            memcpy(p->y + (t + i) * m->rows + row, sums + i * PANEL_ROWS, rows * sizeof(float));
        }
        t += vectors;
    }
}

static void multiply(void *context, int thread, int threads) {
    struct product *p = context;
    size_t columns = p->matrix->columns;
    for (size_t t = (size_t)thread; t < p->count; t += (size_t)threads) {
        p->kernels->quantise(p->x + t * columns, columns, p->vectors + t * p->runs);
    }
    cblocks_wait(&p->ready, threads);
    size_t panels = panel_count(p->matrix->rows), tiles = (p->count + VECTORS_AT_ONCE - 1) / VECTORS_AT_ONCE;
    size_t chunk = panels / ((size_t)threads * 8) + 1, chunks = (panels + chunk - 1) / chunk;
    for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < chunks * tiles;) {
        size_t first = i / chunks * VECTORS_AT_ONCE;
        size_t last = p->count - first < VECTORS_AT_ONCE ? p->count : first + VECTORS_AT_ONCE;
        size_t begin = i % chunks * chunk, end = begin + chunk < panels ? begin + chunk : panels;
        for (size_t panel = begin; panel < end; panel++) multiply_panel(p, panel, first, last);
    }
}

int cblocks_multiply(int level, int threads, const cblocks_packed *matrix, const float *x, size_t count, float *y) {
    struct product p = {.kernels = product_kernels(level), .matrix = matrix, .x = x, .y = y, .count = count};
    p.runs = matrix->columns / RUN;
    if (!p.kernels || !cblocks_can_pack(matrix->type, matrix->columns)) return -1;
    if (count == 0 || matrix->rows == 0) return 0;
    size_t size;
    if (__builtin_mul_overflow(count, p.runs * sizeof(struct run), &size)) return -1;
    p.vectors = aligned_alloc(64, size);
    if (!p.vectors) return -1;
    cblocks_run(threads, multiply, &p);
    free(p.vectors);
    return 0;
}
