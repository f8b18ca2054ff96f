// What attention does between its matrix products: softmax, and the gradient of scores.
#pragma once

#include <cmath>
#include <limits>

#include "RightFactor.h"

namespace graft {

/// Which keys a query sees: its own and earlier ones, less than `window` behind it.
struct Sight {
    int64_t count, window;

    int64_t firstKey(int64_t query) const { return query - window + 1 > 0 ? query - window + 1 : 0; }
};

/// Softmax of a block of scores `[queries, keys]` from the query and key given: probabilities, and the logarithm of
/// each row's sum.
template <class Item>
GRAFT_INLINE void softmaxBlock(float *scores, Item *probabilities, int64_t width, int64_t rows, int64_t query,
                               int64_t key, const Sight &sight, float scale, float *logSums) {
    for (int64_t r = 0; r < rows; ++r) {
        float *row = scores + r * width;
        Item *result = probabilities + r * width;
        const int64_t begin = sight.firstKey(query + r) - key, end = query + r + 1 - key;
        float largest = -std::numeric_limits<float>::infinity();
        constexpr int64_t side = 32;
        float lanes[side];
        for (int64_t k = 0; k < side; ++k) lanes[k] = largest;
        int64_t i = begin;
        for (; i + side <= end; i += side)
            for (int64_t k = 0; k < side; ++k) lanes[k] = row[i + k] > lanes[k] ? row[i + k] : lanes[k];
        for (; i < end; ++i) lanes[0] = row[i] > lanes[0] ? row[i] : lanes[0];
        for (int64_t k = 0; k < side; ++k) largest = lanes[k] > largest ? lanes[k] : largest;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = begin; k < end; ++k) {
            row[k] = exponential((row[k] - largest) * scale);
            sum += row[k];
        }
        const float factor = 1 / sum;
        for (int64_t k = 0; k < begin; ++k) store(result[k], 0);
#pragma omp simd
        for (int64_t k = begin; k < end; ++k) store(result[k], row[k] * factor);
        for (int64_t k = end; k < width; ++k) store(result[k], 0);
        logSums[r] = largest * scale + std::log(sum);
    }
}

/// What the gradient of a tile of scores is made of and makes: `[keys, queries]`, `width` queries a row.
template <class Item>
struct ScoreTile {
    const float *scores, *outer;     // k q^T, and v do^T
    const float *logSums, *deltas;   // of the tile's queries
    Item *probabilities, *gradient;
    int64_t width, rows, key, query;
    float scale;
};

// p = exp(s - l), ds = p (dp - delta) scale.
template <class Item>
GRAFT_INLINE void differentiateTile(const ScoreTile<Item> &tile, const Sight &sight) {
    const int64_t width = tile.width;
    const float *logSums = tile.logSums, *deltas = tile.deltas;
    const float scale = tile.scale;
    for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t key = tile.key + r;
        const float *scores = tile.scores + r * width, *outer = tile.outer + r * width;
        Item *probabilities = tile.probabilities + r * width, *gradient = tile.gradient + r * width;
        int64_t begin = key - tile.query, end = key + sight.window - tile.query;
        const int64_t last = sight.count - tile.query < width ? sight.count - tile.query : width;
        begin = begin < 0 ? 0 : begin;
        end = end > last ? last : end;
        if (key >= sight.count || begin > end) begin = end = 0;
        for (int64_t q = 0; q < begin; ++q) {
            store(probabilities[q], 0);
            store(gradient[q], 0);
        }
#pragma omp simd
        for (int64_t q = begin; q < end; ++q) {
            const float probability = exponential(scores[q] * scale - logSums[q]);
            store(probabilities[q], probability);
            store(gradient[q], probability * (outer[q] - deltas[q]) * scale);
        }
        for (int64_t q = end; q < width; ++q) {
            store(probabilities[q], 0);
            store(gradient[q], 0);
        }
    }
}

/// The sums of products of rows, `sum over i of a[t, i] b[t, i]`.
template <class Item>
GRAFT_INLINE void multiplyRows(const MatrixRows<const Item> &left, const MatrixRows<const Item> &right, float *sums) {
    for (int64_t t = 0; t < left.count; ++t) {
        const Item *a = left.row(t), *b = right.row(t);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < left.size; ++i) sum += load(a[i]) * load(b[i]);
        sums[t] = sum;
    }
}

/// fp32 rows `[count, size]` to rows of a head.
template <class Item>
GRAFT_INLINE void writeRows(const float *values, const MatrixRows<Item> &rows) {
    for (int64_t t = 0; t < rows.count; ++t) {
        Item *row = rows.row(t);
        const float *from = values + t * rows.size;
#pragma omp simd
        for (int64_t i = 0; i < rows.size; ++i) store(row[i], from[i]);
    }
}

/// fp32 columns `[size, padded]` to rows of a head; sizes and `padded` are multiples of 16.
template <class Item>
GRAFT_INLINE void writeColumns(const float *values, int64_t padded, const MatrixRows<Item> &rows) {
    constexpr int64_t side = 16;
    float turned[side * side];
    for (int64_t t = 0; t < rows.count; t += side) {
        const int64_t count = rows.count - t < side ? rows.count - t : side;
        for (int64_t i = 0; i < rows.size; i += side) {
            transposeWords(reinterpret_cast<const uint32_t *>(values + i * padded + t), padded,
                           reinterpret_cast<uint32_t *>(turned), side);
            for (int64_t k = 0; k < count; ++k) {
                Item *row = rows.row(t + k) + i;
#pragma omp simd
                for (int64_t l = 0; l < side; ++l) store(row[l], turned[k * side + l]);
            }
        }
    }
}

}  // namespace graft
