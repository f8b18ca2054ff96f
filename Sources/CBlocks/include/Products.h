// Products of quantised matrices with vectors, without unpacking the matrix.
//
// A packed matrix holds the rows of a GGUF tensor in panels of 16 rows: for each 32 columns the codes of the 16 rows
// lie together, four columns of a row in one 32-bit word, so that one instruction multiplies all 16 rows with four
// values of the vector. Nothing is rounded: codes and scales are those of the file. Vectors are rounded to 8 bits in
// runs of 32 with a scale of their own.

#ifndef CBLOCKS_PRODUCTS_H
#define CBLOCKS_PRODUCTS_H

#include <stddef.h>
#include <stdint.h>

/// Instruction sets that products are compiled for.
enum {
    CBLOCKS_PRODUCTS_PORTABLE = 0,
    CBLOCKS_PRODUCTS_AVX2 = 1,
    CBLOCKS_PRODUCTS_AVX_VNNI = 2,
    CBLOCKS_PRODUCTS_AVX512_VNNI = 3,
    CBLOCKS_PRODUCTS_NEON = 4,
    CBLOCKS_PRODUCTS_LEVELS = 5,
};

/// Whether this machine runs a level.
int cblocks_products_run(int level);

/// The best level that this machine runs.
int cblocks_best_products(void);

/// A matrix in panels.
typedef struct cblocks_packed {
    uint32_t type;
    size_t rows, columns;
    const uint8_t *panels;
} cblocks_packed;

/// Whether matrices of a GGUF type code with so many columns can be packed.
int cblocks_can_pack(uint32_t type, size_t columns);

/// Bytes of all panels of a matrix that can be packed.
size_t cblocks_packed_bytes(uint32_t type, size_t rows, size_t columns);

/// Writes the panels of a matrix. `sources[r]` are the blocks of row r; `out` is 64-byte aligned.
void cblocks_pack(
    int threads, uint32_t type, size_t rows, size_t columns, const uint8_t *const *sources, uint8_t *out);

/// `y[t][r] = sum over c of W[r][c] x[t][c]`, fp32, for `count` vectors; the same on any number of threads.
/// Returns 0, or -1 when memory is short or the level is unknown.
int cblocks_multiply(int level, int threads, const cblocks_packed *matrix, const float *x, size_t count, float *y);

#endif
