// Products of panels with 8-bit vectors, and what a block of a Llama does besides, included once for each instruction
// set with NAME(x) giving every function its own name. Before that, NAME(dot) and NAME(halves) are defined.
//
// Vectors of 16 lanes, one for each row of a panel; where the machine's are shorter the compiler splits them.

#define INLINE static inline __attribute__((always_inline))

INLINE words NAME(load)(const uint8_t *p) {
    words v;
    memcpy(&v, p, sizeof v);
    return v;
}

/// The codes of a run: word w of every row.
INLINE void NAME(codes)(const int bits, const uint8_t *p, words *w) {
    if (bits == 8) {
        for (int j = 0; j < 8; j++) w[j] = NAME(load)(p + 64 * j);
        return;
    }
    for (int j = 0; j < 4; j++) {
        words both = NAME(load)(p + 64 * j);
        w[j] = both & 0x0F0F0F0F;
        w[j + 4] = both >> 4 & 0x0F0F0F0F;
    }
    if (bits == 5) {
        words high = NAME(load)(p + 256);
        for (int j = 0; j < 8; j++) w[j] |= (j < 4 ? high << (4 - j) : high >> (j - 4)) & 0x10101010;
    } else if (bits == 6) {
        for (int j = 0; j < 8; j++) {
            words high = NAME(load)(p + 256 + 64 * (j / 4));
            w[j] |= (j % 4 < 2 ? high << (4 - 2 * (j % 4)) : high >> (2 * (j % 4) - 4)) & 0x30303030;
        }
    }
}

INLINE floats NAME(scales)(const bool wide, const uint8_t **p) {
    floats v;
    if (wide) {
        memcpy(&v, *p, sizeof v);
        *p += 64;
    } else {
        v = NAME(halves)(*p);
        *p += 32;
    }
    return v;
}

/// Asks for memory that is needed soon; it may lie beyond the end.
INLINE void NAME(fetch)(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/// 16 sums for each of `count` vectors.
INLINE void NAME(panel)(
    const int bits, const int group, const bool wide, const bool minimum, const int shift, const int count,
    const uint8_t *panel, size_t runs, const struct run *vectors, size_t stride, float *sums) {
    const uint8_t *codes = panel, *scales = panel + runs * code_bytes(bits);
    const size_t run_bytes = code_bytes(bits) + scale_bytes(group, wide, minimum);
    floats total[MOST_VECTORS];
    for (int t = 0; t < count; t++) total[t] = (floats){0};
    for (size_t j = 0; j < runs; j++) {
        words w[8];
        if (count == 1) NAME(fetch)(panel + j * run_bytes + FETCHED_AHEAD, run_bytes);
        NAME(codes)(bits, codes, w);
        codes += code_bytes(bits);
        for (int h = 0; h < RUN / group; h++) {
            floats scale = NAME(scales)(wide, &scales), low = {0};
            if (minimum) low = NAME(scales)(wide, &scales);
// Unrolled, the sums stay in registers, and products of several vectors overlap: a third faster.
#pragma clang loop unroll(full)
            for (int t = 0; t < count; t++) {
                const struct run *v = vectors + (size_t)t * stride + j;
                ints dot = {0};
                if (!minimum) dot += (group == RUN ? v->minus : v->half_minus[h]) * (1 << shift);
                for (int i = 0; i < group / CODES_PER_WORD; i++) {
                    int word = h * (group / CODES_PER_WORD) + i;
                    dot = NAME(dot)(bits, dot, w[word], v->codes + CODES_PER_WORD * word);
                }
                total[t] += __builtin_convertvector(dot, floats) * (scale * v->scale);
                if (minimum) total[t] += low * (group == RUN ? v->sum : v->half_sums[h]);
            }
        }
    }
    memcpy(sums, total, (size_t)count * sizeof total[0]);
}

#define PANEL(code, name, bits, group, wide, minimum, shift)                                                      \
    static void NAME(name##_one)(                                                                                 \
        const uint8_t *panel, size_t runs, const struct run *vectors, size_t stride, float *sums) {               \
        NAME(panel)(bits, group, wide, minimum, shift, 1, panel, runs, vectors, stride, sums);                    \
    }                                                                                                             \
    static void NAME(name##_many)(                                                                                \
        const uint8_t *panel, size_t runs, const struct run *vectors, size_t stride, float *sums) {               \
        NAME(panel)(bits, group, wide, minimum, shift, TILE, panel, runs, vectors, stride, sums);                 \
    }
CBLOCKS_PACKED_TYPES(PANEL)
#undef PANEL

/// e^x within 2 ulp for x <= 88, 0 far below.
INLINE float NAME(exponential)(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    // The nearest whole power of two, by adding and taking away a number without room for fractions.
    float power = x * 1.44269504f + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &power, sizeof bits);
    float n = power - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t exponent = ((uint32_t)bits + 127u) << 23;
    float factor;
    memcpy(&factor, &exponent, sizeof factor);
    return p * factor;
}

INLINE floats NAME(vector)(const float *p) {
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void NAME(quantise)(const float *values, size_t count, struct run *runs) {
// Rounded step by step, so that every set of instructions gives the same codes.
#pragma clang fp contract(off)
    for (size_t j = 0; j < count / RUN; j++, values += RUN) {
        struct run *run = &runs[j];
        floats halves[2] = {NAME(vector)(values), NAME(vector)(values + 16)};
        // Numbers without sign are ordered as their bits are; infinity and what is no number come last.
        ints sizes = __builtin_elementwise_max((ints)halves[0] & 0x7FFFFFFF, (ints)halves[1] & 0x7FFFFFFF);
        int32_t bits = __builtin_reduce_max(sizes);
        float highest;
        memcpy(&highest, &bits, sizeof highest);
        bool is_finite = bits < 0x7F800000;
        float inverse = is_finite && highest > 0 ? 127.0f / highest : 0.0f;
        // Numbers so small that the inverse overflows count as zero.
        if (inverse > 0x1p126f) inverse = 0;
        int32_t sums[2];
        for (int h = 0; h < 2; h++) {
            floats value = is_finite ? halves[h] : (floats){0};
            ints codes = __builtin_convertvector(value * inverse + 12582912.0f - 12582912.0f, ints);
            sums[h] = __builtin_reduce_add(codes);
            small_codes small = __builtin_convertvector(codes, small_codes);
            memcpy(run->codes + 16 * h, &small, sizeof small);
        }
        // Infinity or no number: the whole run is none, and so is every sum that it is part of.
        run->scale = is_finite ? highest / 127.0f : __builtin_nanf("");
        for (int h = 0; h < 2; h++) {
            run->half_sums[h] = run->scale * (float)sums[h];
            run->half_minus[h] = -sums[h];
        }
        run->sum = run->scale * (float)(sums[0] + sums[1]);
        run->minus = -(sums[0] + sums[1]);
        run->unused = 0;
    }
}

INLINE float NAME(total)(floats v) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += v[i];
    return sum;
}

INLINE float NAME(product)(const float *a, const float *b, size_t count) {
    floats sums[2] = {{0}, {0}};
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        sums[0] += NAME(vector)(a + i) * NAME(vector)(b + i);
        sums[1] += NAME(vector)(a + i + 16) * NAME(vector)(b + i + 16);
    }
    float rest = 0;
    for (; i < count; i++) rest += a[i] * b[i];
    return NAME(total)(sums[0] + sums[1]) + rest;
}

static void NAME(normalise)(const float *x, const float *weight, size_t count, float epsilon, float *out) {
    float scale = 1.0f / __builtin_sqrtf(NAME(product)(x, x, count) / (float)count + epsilon);
    for (size_t i = 0; i < count; i++) out[i] = x[i] * scale * weight[i];
}

static void NAME(gate)(float *gate, const float *up, size_t count) {
    for (size_t i = 0; i < count; i++) gate[i] = gate[i] / (1.0f + NAME(exponential)(-gate[i])) * up[i];
}

static void NAME(attend)(
    const float *query, const float *keys, const float *values, size_t count, size_t dimension, float scale,
    float *scores, float *out) {
    float highest = -__builtin_inff();
    for (size_t i = 0; i < count; i++) {
        scores[i] = NAME(product)(query, keys + i * dimension, dimension) * scale;
        highest = scores[i] > highest ? scores[i] : highest;
    }
    // A score that is no number must not get lost in the clamping of the exponential.
    float sum = 0, broken = 0;
    for (size_t i = 0; i < count; i++) {
        broken += scores[i] * 0.0f;
        scores[i] = NAME(exponential)(scores[i] - highest);
    }
    for (size_t i = 0; i < count; i++) sum += scores[i];
    float factor = 1.0f / sum + broken;
    size_t d = 0;
    for (; d + 64 <= dimension; d += 64) {
        floats sums[4] = {{0}, {0}, {0}, {0}};
        for (size_t i = 0; i < count; i++) {
            const float *value = values + i * dimension + d;
            for (int k = 0; k < 4; k++) sums[k] += scores[i] * NAME(vector)(value + 16 * k);
        }
        for (int k = 0; k < 4; k++) {
            sums[k] *= factor;
            memcpy(out + d + 16 * k, &sums[k], sizeof sums[k]);
        }
    }
    for (; d < dimension; d++) {
        float total = 0;
        for (size_t i = 0; i < count; i++) total += scores[i] * values[i * dimension + d];
        out[d] = total * factor;
    }
}

/// Attention of up to 4 queries. `keys` are transposed, `[dimension, stride]`, zeros behind the last; `values` lie one
/// after the other. Query i sees the keys from `first[i]` below `last[i]`; `scores` has room for 4 x `stride` numbers.
static void NAME(attend_many)(
    const float *const *queries, const float *keys, size_t stride, const float *values, size_t count,
    const size_t *first, const size_t *last, size_t dimension, float scale, float *scores, float *const *outputs) {
    size_t begin = first[0], end = 0;
    for (size_t q = 0; q < count; q++) {
        begin = first[q] < begin ? first[q] : begin;
        end = last[q] > end ? last[q] : end;
    }
    // Four rows are computed always; those that are not asked for repeat the first.
    const float *four[4];
    for (size_t q = 0; q < 4; q++) four[q] = queries[q < count ? q : 0];
    for (size_t k = begin / 16 * 16; k < end; k += 16) {
        floats sums[4] = {{0}, {0}, {0}, {0}};
        for (size_t d = 0; d < dimension; d++) {
            floats key = NAME(vector)(keys + d * stride + k);
            for (int q = 0; q < 4; q++) sums[q] += four[q][d] * key;
        }
        for (size_t q = 0; q < 4; q++) {
            sums[q] *= scale;
            memcpy(scores + q * stride + k, &sums[q], sizeof sums[q]);
        }
    }
    float factors[4] = {0, 0, 0, 0};
    for (size_t q = 0; q < count; q++) {
        float *row = scores + q * stride, highest = -__builtin_inff(), broken = 0;
        for (size_t k = first[q]; k < last[q]; k++) {
            highest = row[k] > highest ? row[k] : highest;
            broken += row[k] * 0.0f;
        }
        for (size_t k = begin; k < end; k++) {
            float weight = NAME(exponential)(row[k] - highest);
            row[k] = k >= first[q] && k < last[q] ? weight : 0;
        }
        floats sum = {0};
        size_t k = begin;
        for (; k + 16 <= end; k += 16) sum += NAME(vector)(row + k);
        float total = NAME(total)(sum);
        for (; k < end; k++) total += row[k];
        factors[q] = 1.0f / total + broken;
    }
    for (size_t q = count; q < 4; q++) memset(scores + q * stride + begin, 0, (end - begin) * sizeof(float));
    size_t d = 0;
    for (; d + 64 <= dimension; d += 64) {
        floats sums[4][4] = {{{0}}};
        for (size_t k = begin; k < end; k++) {
            for (int part = 0; part < 4; part++) {
                floats value = NAME(vector)(values + k * dimension + d + 16 * (size_t)part);
                for (size_t q = 0; q < 4; q++) sums[q][part] += scores[q * stride + k] * value;
            }
        }
        for (size_t q = 0; q < count; q++) {
            for (int part = 0; part < 4; part++) {
                floats out = sums[q][part] * factors[q];
                memcpy(outputs[q] + d + 16 * part, &out, sizeof out);
            }
        }
    }
    for (; d < dimension; d++) {
        float sums[4] = {0, 0, 0, 0};
        for (size_t k = begin; k < end; k++) {
            for (size_t q = 0; q < 4; q++) sums[q] += scores[q * stride + k] * values[k * dimension + d];
        }
        for (size_t q = 0; q < count; q++) outputs[q][d] = sums[q] * factors[q];
    }
}

#define ONE(code, name, bits, group, wide, minimum, shift) [code] = NAME(name##_one),
#define MANY(code, name, bits, group, wide, minimum, shift) [code] = NAME(name##_many),
static const struct product_kernels NAME(kernels) = {
    .quantise = NAME(quantise),
    .one = {CBLOCKS_PACKED_TYPES(ONE)},
    .many = {CBLOCKS_PACKED_TYPES(MANY)},
    .tile = TILE,
    .normalise = NAME(normalise),
    .gate = NAME(gate),
    .attend = NAME(attend),
    .attend_many = NAME(attend_many),
};
#undef ONE
#undef MANY
#undef INLINE
