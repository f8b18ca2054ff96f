// The kernels, included once for each instruction set with NAME(x) giving every function its own name.
// Plain loops of fixed length: the compiler turns them into the vectors of the set in force.
// `s` is one block's bytes, `o` its elements.

#define INLINE static inline __attribute__((always_inline))

INLINE uint16_t NAME(u16)(const uint8_t *s) {
    uint16_t v;
    memcpy(&v, s, sizeof v);
    return v;
}

INLINE float NAME(from_bits)(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

// The 15 low bits of an IEEE half, moved to a float's place, are the value times 2^-112, subnormals included.
INLINE float NAME(half)(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7FFF) << 13;
    uint32_t bits;
    float scaled = NAME(from_bits)(magnitude) * 0x1p112f;
    memcpy(&bits, &scaled, sizeof bits);
    bits = magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : bits;
    return NAME(from_bits)(bits | (uint32_t)(h & 0x8000) << 16);
}

INLINE uint16_t NAME(bf16)(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    uint32_t nan = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

INLINE void NAME(q4_0)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s));
    for (int i = 0; i < 16; i++) {
        o[i] = d * (float)((s[2 + i] & 15) - 8);
        o[i + 16] = d * (float)((s[2 + i] >> 4) - 8);
    }
}

INLINE void NAME(q4_1)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s)), m = NAME(half)(NAME(u16)(s + 2));
    for (int i = 0; i < 16; i++) {
        o[i] = d * (float)(s[4 + i] & 15) + m;
        o[i + 16] = d * (float)(s[4 + i] >> 4) + m;
    }
}

INLINE void NAME(q5_0)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s));
    uint32_t high;
    memcpy(&high, s + 2, 4);
    for (int i = 0; i < 16; i++) {
        o[i] = d * (float)((int)((s[6 + i] & 15) | (high >> i & 1) << 4) - 16);
        o[i + 16] = d * (float)((int)((s[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
    }
}

INLINE void NAME(q5_1)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s)), m = NAME(half)(NAME(u16)(s + 2));
    uint32_t high;
    memcpy(&high, s + 4, 4);
    for (int i = 0; i < 16; i++) {
        o[i] = d * (float)(int)((s[8 + i] & 15) | (high >> i & 1) << 4) + m;
        o[i + 16] = d * (float)(int)((s[8 + i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
    }
}

INLINE void NAME(q8_0)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s));
    for (int i = 0; i < 32; i++) o[i] = d * (float)(int8_t)s[2 + i];
}

// scales[16], qs[64], d, dmin; in each half of 128, 32 bytes hold 4 x 32 two-bit values.
INLINE void NAME(q2_k)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s + 80)), dmin = NAME(half)(NAME(u16)(s + 82));
    for (int g = 0; g < 16; g++) {
        const uint8_t *q = s + 16 + 32 * (g / 8) + 16 * (g % 2);
        int shift = 2 * (g / 2 % 4);
        float scale = d * (float)(s[g] & 15), low = dmin * (float)(s[g] >> 4);
        for (int i = 0; i < 16; i++) o[16 * g + i] = scale * (float)(q[i] >> shift & 3) - low;
    }
}

// hmask[32], qs[64], scales[12], d; the low 4 bits of the 16 scales come first, then their high 2 bits.
INLINE void NAME(q3_k)(const uint8_t *s, float *o) {
    const uint8_t *packed = s + 96;
    float d = NAME(half)(NAME(u16)(s + 108));
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
        int high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        const uint8_t *q = s + 32 + 32 * (g / 8) + 16 * (g % 2), *mask = s + 16 * (g % 2);
        int shift = 2 * (g / 2 % 4), bit = g / 2;
        for (int i = 0; i < 16; i++) {
            int value = (q[i] >> shift & 3) - 4 * (1 - (mask[i] >> bit & 1));
            o[16 * g + i] = scale * (float)value;
        }
    }
}

// Scale and minimum of sub-block j: 6 bits each, packed in 12 bytes (q4_k and q5_k).
INLINE void NAME(scale_min)(const uint8_t *p, int j, int *scale, int *min) {
    *scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
    *min = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
}

INLINE void NAME(q4_k)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s)), dmin = NAME(half)(NAME(u16)(s + 2));
    for (int j = 0; j < 8; j++) {
        int sc, m;
        NAME(scale_min)(s + 4, j, &sc, &m);
        float scale = d * (float)sc, low = dmin * (float)m;
        const uint8_t *q = s + 16 + 32 * (j / 2);
        int shift = 4 * (j % 2);
        for (int i = 0; i < 32; i++) o[32 * j + i] = scale * (float)(q[i] >> shift & 15) - low;
    }
}

INLINE void NAME(q5_k)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s)), dmin = NAME(half)(NAME(u16)(s + 2));
    const uint8_t *high = s + 16;
    for (int j = 0; j < 8; j++) {
        int sc, m;
        NAME(scale_min)(s + 4, j, &sc, &m);
        float scale = d * (float)sc, low = dmin * (float)m;
        const uint8_t *q = s + 48 + 32 * (j / 2);
        int shift = 4 * (j % 2);
        for (int i = 0; i < 32; i++) {
            int value = (q[i] >> shift & 15) | (high[i] >> j & 1) << 4;
            o[32 * j + i] = scale * (float)value - low;
        }
    }
}

// ql[128], qh[64], int8 scales[16], d; in each half of 128: 4 x 32 values share 64 low and 32 high bytes.
INLINE void NAME(q6_k)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s + 208));
    for (int g = 0; g < 16; g++) {
        int half = g / 8, quarter = g / 2 % 4;
        const uint8_t *low = s + 64 * half + 32 * (quarter % 2) + 16 * (g % 2);
        const uint8_t *high = s + 128 + 32 * half + 16 * (g % 2);
        int low_shift = 4 * (quarter / 2), high_shift = 2 * quarter;
        float scale = d * (float)(int8_t)s[192 + g];
        for (int i = 0; i < 16; i++) {
            int value = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
            o[16 * g + i] = scale * (float)(value - 32);
        }
    }
}

INLINE void NAME(iq4_nl)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s));
    for (int i = 0; i < 16; i++) {
        o[i] = d * iq4_values[s[2 + i] & 15];
        o[i + 16] = d * iq4_values[s[2 + i] >> 4];
    }
}

// d, 8 x 2 high bits, 8 x 4 low bits of the scales, qs[128].
INLINE void NAME(iq4_xs)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s));
    int high = NAME(u16)(s + 2);
    for (int j = 0; j < 8; j++) {
        int scale = (s[4 + j / 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4;
        float dl = d * (float)(scale - 32);
        const uint8_t *q = s + 8 + 16 * j;
        for (int i = 0; i < 16; i++) {
            o[32 * j + i] = dl * iq4_values[q[i] & 15];
            o[32 * j + i + 16] = dl * iq4_values[q[i] >> 4];
        }
    }
}

// Five (qs[48]) or four (qh[4]) ternary digits a byte, then d. The byte is the digits as a fraction of 256, so
// multiplying it by a power of 3 modulo 256 brings the wanted digit to the top.
INLINE void NAME(tq1_digits)(const uint8_t *q, int count, int digits, float d, float *o) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    for (int n = 0; n < digits; n++) {
        for (int i = 0; i < count; i++) {
            uint8_t top = (uint8_t)(q[i] * powers[n]);
            o[n * count + i] = d * (float)((top * 3 >> 8) - 1);
        }
    }
}

INLINE void NAME(tq1_0)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s + 52));
    NAME(tq1_digits)(s, 32, 5, d, o);
    NAME(tq1_digits)(s + 32, 16, 5, d, o + 160);
    NAME(tq1_digits)(s + 48, 4, 4, d, o + 240);
}

INLINE void NAME(tq2_0)(const uint8_t *s, float *o) {
    float d = NAME(half)(NAME(u16)(s + 64));
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = s + 32 * (g / 4);
        for (int i = 0; i < 32; i++) o[32 * g + i] = d * (float)((q[i] >> (2 * (g % 4)) & 3) - 1);
    }
}

// A shared power of two, 2^(e - 128) because the table holds the values doubled; the two smallest are subnormal.
INLINE void NAME(mxfp4)(const uint8_t *s, float *o) {
    float d = NAME(from_bits)(s[0] < 2 ? 0x00200000u << s[0] : (uint32_t)(s[0] - 1) << 23);
    for (int i = 0; i < 16; i++) {
        o[i] = d * mxfp4_values[s[1 + i] & 15];
        o[i + 16] = d * mxfp4_values[s[1 + i] >> 4];
    }
}

#define BLOCK(type, bytes, elements)                                                            \
    static void NAME(type##_f32)(const uint8_t *s, size_t count, float *o) {                    \
        for (size_t b = 0; b < count; b++) NAME(type)(s + b * (bytes), o + b * (elements));     \
    }                                                                                           \
    static void NAME(type##_bf16)(const uint8_t *s, size_t count, uint16_t *o) {                \
        for (size_t b = 0; b < count; b++) {                                                    \
            float values[elements];                                                             \
            NAME(type)(s + b * (bytes), values);                                                \
            for (int i = 0; i < (elements); i++) o[b * (elements) + i] = NAME(bf16)(values[i]); \
        }                                                                                       \
    }

#define ELEMENT(type, stored, value)                                              \
    static void NAME(type##_f32)(const uint8_t *s, size_t count, float *o) {      \
        for (size_t i = 0; i < count; i++) {                                      \
            stored x;                                                             \
            memcpy(&x, s + i * sizeof x, sizeof x);                               \
            o[i] = (value);                                                       \
        }                                                                         \
    }                                                                             \
    static void NAME(type##_bf16)(const uint8_t *s, size_t count, uint16_t *o) {  \
        for (size_t i = 0; i < count; i++) {                                      \
            stored x;                                                             \
            memcpy(&x, s + i * sizeof x, sizeof x);                               \
            o[i] = NAME(bf16)(value);                                             \
        }                                                                         \
    }

#define KERNEL(code, type, bytes, elements) BLOCK(type, bytes, elements)
CBLOCKS_QUANTISED(KERNEL)
#undef KERNEL

ELEMENT(f32, float, x)
ELEMENT(f16, uint16_t, NAME(half)(x))
ELEMENT(bf16_values, uint16_t, NAME(from_bits)((uint32_t)x << 16))
ELEMENT(f64, double, (float)x)
ELEMENT(i8, int8_t, (float)x)
ELEMENT(i16, int16_t, (float)x)
ELEMENT(i32, int32_t, (float)x)
ELEMENT(i64, int64_t, (float)x)

#define KERNEL(code, type, bytes, elements) [code] = {NAME(type##_f32), NAME(type##_bf16)},
static const struct kernel NAME(kernels)[CBLOCKS_TYPES] = {CBLOCKS_QUANTISED(KERNEL) CBLOCKS_PLAIN(KERNEL)};
#undef KERNEL

#undef BLOCK
#undef ELEMENT
#undef INLINE
