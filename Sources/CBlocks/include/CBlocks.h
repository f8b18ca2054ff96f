// Dequantisation of GGUF blocks and conversion of plain element types to fp32 and bf16.
//
// Layouts and codes: the GGUF v3 format as written by gguf-py 0.19. The arithmetic follows gguf-py's order of
// operations without fused multiply-add, so that results are equal bit by bit on every machine.

#ifndef CBLOCKS_H
#define CBLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "Decoder.h"
#include "Products.h"
#include "Quantised.h"
#include "Workers.h"

/// Instruction sets that the kernels are compiled for.
enum {
    CBLOCKS_PORTABLE = 0,
    CBLOCKS_AVX2 = 1,
    CBLOCKS_AVX512 = 2,
};

/// The best of the above that this machine runs.
int cblocks_best_level(void);

/// Elements in one block of a GGUF type code; 0 when the code is unknown here.
size_t cblocks_elements(uint32_t type);

/// Bytes of one block of a GGUF type code; 0 when the code is unknown here.
size_t cblocks_bytes(uint32_t type);

/// Writes `count` blocks as fp32. Returns 0, or -1 when the type or the level is unknown.
int cblocks_to_f32(int level, uint32_t type, const void *blocks, size_t count, float *out);

/// Writes `count` blocks as bf16, each value rounded once to the nearest (ties to even). Returns as above.
int cblocks_to_bf16(int level, uint32_t type, const void *blocks, size_t count, uint16_t *out);

#endif
