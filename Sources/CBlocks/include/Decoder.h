// One token through all blocks of a Llama whose weights are packed, on threads that meet at barriers and never sleep
// in between.

#ifndef CBLOCKS_DECODER_H
#define CBLOCKS_DECODER_H

#include <stddef.h>
#include <stdint.h>

#include "Products.h"

/// A projection: a packed matrix, and a bias or NULL.
typedef struct cblocks_linear {
    cblocks_packed weight;
    const float *bias;
} cblocks_linear;

/// One block.
typedef struct cblocks_layer {
    cblocks_linear query, key, value, output, gate, up, down;
    /// `[hidden]`.
    const float *input_norm, *attention_norm;
    /// `[head dimension]`, or NULL.
    const float *query_norm, *key_norm;
    /// How many tokens, itself included, a token sees; 0: all.
    size_t window;
    /// The cache, `[key heads, capacity, head dimension]` each.
    float *keys, *values;
} cblocks_layer;

/// A model without embedding and head.
typedef struct cblocks_decoder {
    size_t hidden, inner, heads, key_heads, dimension, layer_count, capacity;
    float epsilon;
    const float *final_norm;
    cblocks_layer *layers;
} cblocks_decoder;

/// Passes one token through the blocks and the final norm.
///
/// `length` tokens are in the cache, and the new one is added. `cosines` and `sines` are those of its position, half a
/// head of them. `states` holds the embedding, then the result. The result is the same on any number of threads.
/// Returns 0, or -1 when memory is short, the cache is full or the level is unknown.
int cblocks_decode(
    int level, int threads, const cblocks_decoder *decoder, size_t length, const float *cosines, const float *sines,
    float *states);

/// Passes `count` tokens, such as a prompt, through the blocks and the final norm: the same for several tokens, whose
/// `cosines`, `sines` and `states` lie one after the other.
int cblocks_read(
    int level, int threads, const cblocks_decoder *decoder, size_t length, size_t count, const float *cosines,
    const float *sines, float *states);

#endif
