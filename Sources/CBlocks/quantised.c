#include "Quantised.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "Workers.h"

// Products and sums are rounded one by one, as in the reference.
#pragma STDC FP_CONTRACT OFF

#if defined(__x86_64__) && defined(__linux__)
#define VECTORS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define VECTORS
#endif

enum { BLOCK = CBLOCKS_NF4_BLOCK, PIECE = 1 << 16 };

const float cblocks_nf4_levels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static uint16_t bf16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

void cblocks_dynamic_map(float *values) {
    // The parts of [0.1, 1], whose middles are taken, double with each power of ten. The reference forms them in fp32
    // in an order that depends on the machine; these are rounded once.
    static const double powers[7] = {1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1};
    size_t count = 0;
    values[127] = 0;
    for (int e = 0; e < 7; e++) {
        int parts = 1 << e;
        for (int i = 0; i < parts; i++) {
            // 0.1 + 0.9 (i + 1/2) / parts
            float value = (float)((2 * parts + 9 * (2 * i + 1)) / (20.0 * parts * powers[e]));
            values[128 + count] = value;
            values[126 - count] = -value;
            count++;
        }
    }
    values[255] = 1;
}

// Blocks of 64 in NF4.

VECTORS static float largest(const float *values, size_t count) {
    float most = 0;
    for (size_t i = 0; i < count; i++) {
        float size = fabsf(values[i]);
        most = size > most ? size : most;
    }
    return most;
}

/// The codes of one block: how many midpoints of adjacent levels lie below a value.
VECTORS static void block_codes(const float *values, size_t count, float scale, uint8_t *codes) {
    float midpoints[15];
    for (int k = 0; k < 15; k++) midpoints[k] = (cblocks_nf4_levels[k] + cblocks_nf4_levels[k + 1]) / 2;
    float divisor = scale > 1e-38f ? scale : 1e-38f;
    int32_t numbers[BLOCK] = {0};
    float parts[BLOCK] = {0};
    for (size_t i = 0; i < count; i++) parts[i] = values[i] / divisor;
    for (int k = 0; k < 15; k++) {
        for (int i = 0; i < BLOCK; i++) numbers[i] += parts[i] > midpoints[k];
    }
    for (size_t i = 0; i + 1 < count; i += 2) codes[i / 2] = (uint8_t)(numbers[i] << 4 | numbers[i + 1]);
    if (count % 2) codes[count / 2] = (uint8_t)(numbers[count - 1] << 4);
}

struct quantising {
    const float *values;
    size_t count;
    uint8_t *codes;
    float *scales;
    size_t columns;
    int8_t *bytes;
    atomic_size_t next;
};

static void quantise_blocks(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct quantising *p = context;
    for (size_t first; (first = atomic_fetch_add(&p->next, PIECE)) < p->count;) {
        size_t last = smaller(first + PIECE, p->count);
        for (size_t i = first; i < last; i += BLOCK) {
            size_t count = smaller(BLOCK, p->count - i);
            float scale = largest(p->values + i, count);
            p->scales[i / BLOCK] = scale;
            block_codes(p->values + i, count, scale, p->codes + i / 2);
        }
    }
}

void cblocks_nf4_quantise(int threads, const float *values, size_t count, uint8_t *codes, float *scales) {
    struct quantising p = {.values = values, .count = count, .codes = codes, .scales = scales};
    cblocks_run(threads, quantise_blocks, &p);
}

/// How many midpoints of adjacent values of the map lie below a value.
static uint8_t nearest(const float *map, float value) {
    size_t low = 0, high = 255;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (value > (map[middle] + map[middle + 1]) / 2) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return (uint8_t)low;
}

void cblocks_quantise_scales(const float *scales, size_t count, uint8_t *codes, float *scale_scales, float *offset) {
    float map[256];
    cblocks_dynamic_map(map);
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += scales[i];
    *offset = count ? (float)(sum / (double)count) : 0;
    for (size_t first = 0; first < count; first += CBLOCKS_SCALE_BLOCK) {
        size_t last = smaller(first + CBLOCKS_SCALE_BLOCK, count);
        float most = 0;
        for (size_t i = first; i < last; i++) most = fmaxf(most, fabsf(scales[i] - *offset));
        scale_scales[first / CBLOCKS_SCALE_BLOCK] = most;
        for (size_t i = first; i < last; i++) codes[i] = nearest(map, (scales[i] - *offset) / fmaxf(most, 1e-38f));
    }
}

static float scale_of(const cblocks_nf4 *m, const float *map, size_t block) {
    if (m->scales) return m->scales[block];
    return map[m->scale_codes[block]] * m->scale_scales[block / CBLOCKS_SCALE_BLOCK] + m->offset;
}

/// The levels of both codes of a byte.
struct pairs {
    float levels[256][2];
    float map[256];
};

static void fill(struct pairs *pairs) {
    for (int i = 0; i < 256; i++) {
        pairs->levels[i][0] = cblocks_nf4_levels[i >> 4];
        pairs->levels[i][1] = cblocks_nf4_levels[i & 15];
    }
    cblocks_dynamic_map(pairs->map);
}

VECTORS static void scaled(const struct pairs *pairs, const uint8_t *codes, float scale, float *out) {
    float values[BLOCK];
    for (int i = 0; i < BLOCK / 2; i++) memcpy(values + 2 * i, pairs->levels[codes[i]], sizeof pairs->levels[0]);
    for (int i = 0; i < BLOCK; i++) out[i] = values[i] * scale;
}

VECTORS static void rounded(const float *values, size_t count, uint16_t *out) {
    for (size_t i = 0; i < count; i++) out[i] = bf16(values[i]);
}

/// Calls `STORE(values, count, place)` with the values of each block's part in `first..<first + count`.
#define FOR_EACH_BLOCK(matrix, first, total, STORE)                                                        \
    struct pairs pairs;                                                                                    \
    fill(&pairs);                                                                                          \
    for (size_t place = 0, size; place < (total); place += size) {                                         \
        size_t start = (first) + place, skipped = start % BLOCK, block = start / BLOCK;                    \
        size = smaller(BLOCK - skipped, (total) - place);                                                  \
        float values[BLOCK];                                                                               \
        const uint8_t *codes = (matrix)->codes + block * (BLOCK / 2);                                      \
        float scale = scale_of(matrix, pairs.map, block);                                                  \
        if (size == BLOCK) {                                                                               \
            scaled(&pairs, codes, scale, values);                                                          \
        } else {                                                                                           \
            for (size_t i = 0; i < size; i++) {                                                            \
                values[i] = pairs.levels[codes[(skipped + i) / 2]][(skipped + i) % 2] * scale;             \
            }                                                                                              \
        }                                                                                                  \
        STORE(values, size, out + place);                                                                  \
    }

static void copied(const float *values, size_t count, float *out) { memcpy(out, values, count * sizeof *out); }

void cblocks_nf4_to_f32(const cblocks_nf4 *matrix, size_t first, size_t count, float *out) {
    FOR_EACH_BLOCK(matrix, first, count, copied)
}

void cblocks_nf4_to_bf16(const cblocks_nf4 *matrix, size_t first, size_t count, uint16_t *out) {
    FOR_EACH_BLOCK(matrix, first, count, rounded)
}

// Rows of 8-bit integers.

VECTORS static void row_codes(const float *values, size_t count, float scale, int8_t *codes) {
    float factor = scale > 0 ? 127.0f / scale : 0;
    for (size_t i = 0; i < count; i++) {
        // To the nearest, ties to even: what is added leaves no room for a fraction.
        float moved = values[i] * factor + 12582912.0f;
        float whole = moved - 12582912.0f;
        codes[i] = (int8_t)(whole > 127 ? 127 : whole < -127 ? -127 : whole);
    }
}

static void quantise_rows(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct quantising *p = context;
    for (size_t row; (row = atomic_fetch_add(&p->next, 1)) < p->count;) {
        const float *values = p->values + row * p->columns;
        p->scales[row] = largest(values, p->columns);
        row_codes(values, p->columns, p->scales[row], p->bytes + row * p->columns);
    }
}

void cblocks_int8_quantise(int threads, const float *values, size_t rows, size_t columns, int8_t *codes, float *scales) {
    struct quantising p = {.values = values, .count = rows, .columns = columns, .bytes = codes, .scales = scales};
    cblocks_run(threads, quantise_rows, &p);
}

static const float one_127th = 7.874015718698502e-3f;

VECTORS void cblocks_int8_to_f32(const int8_t *codes, const float *scales, size_t rows, size_t columns, float *out) {
    for (size_t row = 0; row < rows; row++, codes += columns, out += columns) {
        for (size_t i = 0; i < columns; i++) out[i] = (float)codes[i] * scales[row] * one_127th;
    }
}

VECTORS void cblocks_int8_to_bf16(
    const int8_t *codes, const float *scales, size_t rows, size_t columns, uint16_t *out) {
    for (size_t row = 0; row < rows; row++, codes += columns, out += columns) {
        for (size_t i = 0; i < columns; i++) out[i] = bf16((float)codes[i] * scales[row] * one_127th);
    }
}
