// Matrices that are quantised when a model is loaded: 4-bit NormalFloat (NF4) in blocks of 64 values, and 8-bit
// integers with a scale a row. The numbers are those of bitsandbytes.

#ifndef CBLOCKS_QUANTISED_H
#define CBLOCKS_QUANTISED_H

#include <stddef.h>
#include <stdint.h>

enum {
    /// Values that share a scale.
    CBLOCKS_NF4_BLOCK = 64,
    /// Scales that share a scale of their own.
    CBLOCKS_SCALE_BLOCK = 256,
};

/// The 16 levels of NF4, ascending.
extern const float cblocks_nf4_levels[16];

/// Writes the 256 values of the signed dynamic 8-bit map, ascending.
void cblocks_dynamic_map(float *values);

/// A matrix in NF4, row after row, whose blocks do not care where rows end.
typedef struct cblocks_nf4 {
    /// Two codes a byte, the first in the high four bits.
    const uint8_t *codes;
    /// The scale of each block, or NULL where scales are quantised, too.
    const float *scales;
    /// The scale of block b: `map[scale_codes[b]] * scale_scales[b / 256] + offset`.
    const uint8_t *scale_codes;
    const float *scale_scales;
    float offset;
} cblocks_nf4;

/// Quantises `count` finite values to codes and scales (`max |v|` of each block of 64, the last of which may be shorter).
void cblocks_nf4_quantise(int threads, const float *values, size_t count, uint8_t *codes, float *scales);

/// Quantises scales: their mean is `offset`, the rest 8-bit codes in blocks of 256.
void cblocks_quantise_scales(const float *scales, size_t count, uint8_t *codes, float *scale_scales, float *offset);

/// Writes values `first` to `first + count` as fp32.
void cblocks_nf4_to_f32(const cblocks_nf4 *matrix, size_t first, size_t count, float *out);

/// Writes values `first` to `first + count` as bf16, each rounded once to the nearest.
void cblocks_nf4_to_bf16(const cblocks_nf4 *matrix, size_t first, size_t count, uint16_t *out);

/// Quantises the finite values of rows to 8 bits, with `max |v|` of each row as its scale.
void cblocks_int8_quantise(int threads, const float *values, size_t rows, size_t columns, int8_t *codes, float *scales);

/// Writes rows as fp32: `code * scale / 127`.
void cblocks_int8_to_f32(const int8_t *codes, const float *scales, size_t rows, size_t columns, float *out);

/// Writes rows as bf16, each value rounded once to the nearest.
void cblocks_int8_to_bf16(const int8_t *codes, const float *scales, size_t rows, size_t columns, uint16_t *out);

#endif
