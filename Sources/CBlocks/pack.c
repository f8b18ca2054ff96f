// Regroups the rows of GGUF blocks as panels.

#include "packed.h"

#include <stdatomic.h>
#include <string.h>

#include "CBlocks.h"
#include "Workers.h"

#define LAYOUT(code, name, bits, group, wide, minimum, shift) [code] = {bits, group, wide, minimum, shift},
const struct layout packed_layouts[PACKED_TYPES] = {CBLOCKS_PACKED_TYPES(LAYOUT)};
#undef LAYOUT

int cblocks_can_pack(uint32_t type, size_t columns) {
    return type < PACKED_TYPES && packed_layouts[type].bits && columns && columns % cblocks_elements(type) == 0;
}

size_t cblocks_packed_bytes(uint32_t type, size_t rows, size_t columns) {
    return panel_count(rows) * panel_bytes(type, columns);
}

/// One run of 32 columns of a row.
struct run_codes {
    uint8_t codes[RUN];
    float scales[2], minima[2];
    uint16_t half_scale, half_minimum;
};

static uint16_t u16(const uint8_t *s) {
    uint16_t v;
    memcpy(&v, s, sizeof v);
    return v;
}

static float half(const uint8_t *s) {
    float v;
    cblocks_to_f32(CBLOCKS_PORTABLE, 1, s, 1, &v);
    return v;
}

static void nibbles(const uint8_t *q, const uint8_t *high, uint8_t *codes) {
    uint32_t bits = 0;
    if (high) memcpy(&bits, high, 4);
    for (int i = 0; i < 16; i++) {
        codes[i] = (uint8_t)((q[i] & 15) | (bits >> i & 1) << 4);
        codes[i + 16] = (uint8_t)(q[i] >> 4 | (bits >> (i + 16) & 1) << 4);
    }
}

static void scale_and_minimum(const uint8_t *p, int j, int *scale, int *min) {
    *scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
    *min = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
}

// The arithmetic of scales is that of kernels.h.
static void read_q2_k(const uint8_t *s, int j, struct run_codes *run) {
    float d = half(s + 80), dmin = half(s + 82);
    const uint8_t *q = s + 16 + 32 * (j / 4);
    for (int h = 0; h < 2; h++) {
        uint8_t packed = s[2 * j + h];
        run->scales[h] = d * (float)(packed & 15);
        run->minima[h] = -(dmin * (float)(packed >> 4));
    }
    for (int i = 0; i < RUN; i++) run->codes[i] = q[i] >> (2 * (j % 4)) & 3;
}

static void read_q3_k(const uint8_t *s, int j, struct run_codes *run) {
    const uint8_t *packed = s + 96, *q = s + 32 + 32 * (j / 4);
    float d = half(s + 108);
    for (int h = 0; h < 2; h++) {
        int g = 2 * j + h;
        int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
        int high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        run->scales[h] = d * (float)((low | high << 4) - 32);
    }
    // The mask's bit says that 4 is not subtracted, and 4 is what the layout subtracts.
    for (int i = 0; i < RUN; i++) {
        run->codes[i] = (uint8_t)((q[i] >> (2 * (j % 4)) & 3) | (s[i] >> j & 1) << 2);
    }
}

static void read_q4_k(const uint8_t *s, int j, struct run_codes *run) {
    int scale, min;
    scale_and_minimum(s + 4, j, &scale, &min);
    run->scales[0] = half(s) * (float)scale;
    run->minima[0] = -(half(s + 2) * (float)min);
    const uint8_t *q = s + 16 + 32 * (j / 2);
    for (int i = 0; i < RUN; i++) run->codes[i] = q[i] >> (4 * (j % 2)) & 15;
}

static void read_q5_k(const uint8_t *s, int j, struct run_codes *run) {
    int scale, min;
    scale_and_minimum(s + 4, j, &scale, &min);
    run->scales[0] = half(s) * (float)scale;
    run->minima[0] = -(half(s + 2) * (float)min);
    const uint8_t *q = s + 48 + 32 * (j / 2);
    for (int i = 0; i < RUN; i++) {
        run->codes[i] = (uint8_t)((q[i] >> (4 * (j % 2)) & 15) | (s[16 + i] >> j & 1) << 4);
    }
}

static void read_q6_k(const uint8_t *s, int j, struct run_codes *run) {
    float d = half(s + 208);
    const uint8_t *low = s + 64 * (j / 4) + 32 * (j % 2), *high = s + 128 + 32 * (j / 4);
    for (int h = 0; h < 2; h++) run->scales[h] = d * (float)(int8_t)s[192 + 2 * j + h];
    for (int i = 0; i < RUN; i++) {
        run->codes[i] = (uint8_t)((low[i] >> (4 * (j / 2 % 2)) & 15) | (high[i] >> (2 * (j % 4)) & 3) << 4);
    }
}

/// Reads run `j` of a row.
static void read_run(uint32_t type, const uint8_t *row, size_t j, struct run_codes *run) {
    const uint8_t *s = row + j * RUN / cblocks_elements(type) * cblocks_bytes(type);
    int part = (int)(j % (cblocks_elements(type) / RUN));
    switch (type) {
    case 2:
    case 3:
    case 6:
    case 7: {
        bool has_minimum = type % 2, has_high = type >= 6;
        const uint8_t *high = s + (has_minimum ? 4 : 2);
        nibbles(high + (has_high ? 4 : 0), has_high ? high : NULL, run->codes);
        run->half_scale = u16(s);
        run->half_minimum = u16(s + 2);
        break;
    }
    case 8:
        run->half_scale = u16(s);
        for (int i = 0; i < RUN; i++) run->codes[i] = s[2 + i] ^ 0x80;
        break;
    case 10: read_q2_k(s, part, run); break;
    case 11: read_q3_k(s, part, run); break;
    case 12: read_q4_k(s, part, run); break;
    case 13: read_q5_k(s, part, run); break;
    case 14: read_q6_k(s, part, run); break;
    default: break;
    }
}

/// Writes the codes of one row into a run of its panel; word w of a row holds columns 4w to 4w + 3.
static void write_codes(int bits, const uint8_t *codes, int row, uint8_t *out) {
    const size_t vector = PANEL_ROWS * CODES_PER_WORD;
    out += row * CODES_PER_WORD;
    if (bits == 8) {
        for (int w = 0; w < 8; w++) memcpy(out + w * vector, codes + 4 * w, 4);
        return;
    }
    for (int w = 0; w < 4; w++) {
        for (int c = 0; c < 4; c++) {
            out[w * vector + c] = (uint8_t)((codes[4 * w + c] & 15) | (codes[16 + 4 * w + c] & 15) << 4);
        }
    }
    out += 4 * vector;
    if (bits == 5) {
        for (int c = 0; c < 4; c++) {
            uint8_t byte = 0;
            for (int w = 0; w < 8; w++) byte |= (uint8_t)(codes[4 * w + c] >> 4 << w);
            out[c] = byte;
        }
    } else if (bits == 6) {
        for (int c = 0; c < 8; c++) {
            uint8_t byte = 0;
            for (int w = 0; w < 4; w++) byte |= (uint8_t)(codes[c / 4 * 16 + 4 * w + c % 4] >> 4 << (2 * w));
            out[c / 4 * vector + c % 4] = byte;
        }
    }
}

static void write_scales(const struct layout *l, const struct run_codes *run, int row, uint8_t *out) {
    if (!l->has_wide_scales) {
        memcpy(out + row * 2, &run->half_scale, 2);
        if (l->has_minimum) memcpy(out + PANEL_ROWS * 2 + row * 2, &run->half_minimum, 2);
        return;
    }
    for (int h = 0; h < RUN / l->group; h++) {
        memcpy(out + row * 4, &run->scales[h], 4);
        out += PANEL_ROWS * 4;
        if (!l->has_minimum) continue;
        memcpy(out + row * 4, &run->minima[h], 4);
        out += PANEL_ROWS * 4;
    }
}

static void pack_panel(
    uint32_t type, size_t columns, const uint8_t *const *sources, size_t rows, uint8_t *restrict out) {
    const struct layout *l = &packed_layouts[type];
    size_t runs = columns / RUN, codes = code_bytes(l->bits);
    size_t scales = scale_bytes(l->group, l->has_wide_scales, l->has_minimum);
    // Rows beyond the last are zeros: their sums are never read.
    if (rows < PANEL_ROWS) memset(out, 0, panel_bytes(type, columns));
    for (size_t row = 0; row < rows; row++) {
        for (size_t j = 0; j < runs; j++) {
            struct run_codes run;
            read_run(type, sources[row], j, &run);
            write_codes(l->bits, run.codes, (int)row, out + j * codes);
            write_scales(l, &run, (int)row, out + runs * codes + j * scales);
        }
    }
}

struct packing {
    uint32_t type;
    size_t rows, columns;
    const uint8_t *const *sources;
    uint8_t *out;
    atomic_size_t next;
};

static void pack_panels(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct packing *p = context;
    size_t panels = panel_count(p->rows), bytes = panel_bytes(p->type, p->columns);
    for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < panels;) {
        size_t first = i * PANEL_ROWS, rows = p->rows - first < PANEL_ROWS ? p->rows - first : PANEL_ROWS;
        pack_panel(p->type, p->columns, p->sources + first, rows, p->out + i * bytes);
    }
}

void cblocks_pack(
    int threads, uint32_t type, size_t rows, size_t columns, const uint8_t *const *sources, uint8_t *out) {
    struct packing p = {.type = type, .rows = rows, .columns = columns, .sources = sources, .out = out};
    cblocks_run(threads, pack_panels, &p);
}
