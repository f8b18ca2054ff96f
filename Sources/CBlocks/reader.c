// Many tokens through all blocks of a packed model at once. The phases are those of decoder.c, with a share of the
// tokens or of the rows for each thread.

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "CBlocks.h"
#include "packed.h"

enum {
    /// Queries that attention takes together.
    QUERIES = 4,
    /// 8-bit vectors that stay in the second cache while panels pass by.
    VECTORS_AT_ONCE = 126,
    PHASES_OF_LAYER = 11,
};

struct reading {
    const struct product_kernels *kernels;
    const cblocks_decoder *decoder;
    /// Tokens in the cache, and new ones.
    size_t length, count;
    const float *cosines, *sines;
    float *states, *query, *key, *value, *attended, *inner;
    /// Keys of one layer, transposed: `[key heads, dimension, stride]`.
    float *transposed;
    size_t stride;
    struct run *runs;
    cblocks_barrier barrier;
    atomic_size_t *next;
    uint8_t *own;
    size_t own_bytes;
};

struct reader {
    struct reading *reading;
    int threads;
    size_t phase;
    float *row, *scores;
};

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static size_t largest(size_t a, size_t b) { return a > b ? a : b; }
static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static size_t next_piece(struct reader *r, size_t count) {
    return atomic_fetch_add_explicit(&r->reading->next[r->phase], count, memory_order_relaxed);
}

static void end_phase(struct reader *r) {
    r->phase++;
    cblocks_wait(&r->reading->barrier, r->threads);
}

/// What becomes of the sums of a projection.
enum use { STORED, ADDED };

/// Some vectors times one panel.
static void panel_sums(
    const struct reading *p, const cblocks_linear *linear, size_t panel, const struct run *vectors, size_t count,
    float *sums) {
    const cblocks_packed *m = &linear->weight;
    size_t runs = m->columns / RUN, row = panel * PANEL_ROWS;
    const uint8_t *codes = m->panels + panel * panel_bytes(m->type, m->columns);
    (count == p->kernels->tile ? p->kernels->many : p->kernels->one)[m->type](codes, runs, vectors, runs, sums);
    for (size_t i = 0; linear->bias && i < count * PANEL_ROWS; i++) {
        if (row + i % PANEL_ROWS < m->rows) sums[i] += linear->bias[row + i % PANEL_ROWS];
    }
}

static void project_panel(
    const struct reading *p, const cblocks_linear *linear, size_t panel, size_t first, size_t last, enum use use,
    float *out) {
    const cblocks_packed *m = &linear->weight;
    size_t row = panel * PANEL_ROWS, rows = m->rows - row < PANEL_ROWS ? m->rows - row : PANEL_ROWS;
    _Alignas(64) float sums[MOST_VECTORS * PANEL_ROWS];
    for (size_t t = first, count; t < last; t += count) {
        count = last - t >= p->kernels->tile ? p->kernels->tile : 1;
        panel_sums(p, linear, panel, p->runs + t * (m->columns / RUN), count, sums);
        for (size_t i = 0; i < count; i++) {
            float *place = out + (t + i) * m->rows + row;
            if (use == STORED) memcpy(place, sums + i * PANEL_ROWS, rows * sizeof(float));
            for (size_t k = 0; use == ADDED && k < rows; k++) place[k] += sums[i * PANEL_ROWS + k];
        }
    }
}

static void expand_panel(
    const struct reading *p, const cblocks_layer *layer, size_t panel, size_t first, size_t last) {
    const cblocks_packed *m = &layer->gate.weight;
    size_t row = panel * PANEL_ROWS, rows = m->rows - row < PANEL_ROWS ? m->rows - row : PANEL_ROWS;
    _Alignas(64) float gate[MOST_VECTORS * PANEL_ROWS], up[MOST_VECTORS * PANEL_ROWS];
    for (size_t t = first, count; t < last; t += count) {
        count = last - t >= p->kernels->tile ? p->kernels->tile : 1;
        const struct run *vectors = p->runs + t * (m->columns / RUN);
        panel_sums(p, &layer->gate, panel, vectors, count, gate);
        panel_sums(p, &layer->up, panel, vectors, count, up);
        p->kernels->gate(gate, up, count * PANEL_ROWS);
        for (size_t i = 0; i < count; i++) {
            memcpy(p->inner + (t + i) * m->rows + row, gate + i * PANEL_ROWS, rows * sizeof(float));
        }
    }
}

/// Hands out panels of some tokens each: calls `body` with panel, first and last token.
#define FOR_EACH_PANEL(r, panels, panel, first, last)                                                     \
    for (size_t chunk = (panels) / ((size_t)(r)->threads * 6) + 1, chunks = ((panels) + chunk - 1) / chunk, \
                tiles = ((r)->reading->count + VECTORS_AT_ONCE - 1) / VECTORS_AT_ONCE, piece;              \
         (piece = next_piece(r, 1)) < chunks * tiles;)                                                     \
        for (size_t first = piece / chunks * VECTORS_AT_ONCE,                                              \
                    last = smaller(first + VECTORS_AT_ONCE, (r)->reading->count),                          \
                    panel = piece % chunks * chunk, end = smaller(panel + chunk, panels);                  \
             panel < end; panel++)

/// Rounds `width` values of every token to runs, after a norm where there is one.
static void quantise(struct reader *r, const float *values, size_t width, const float *norm) {
    struct reading *p = r->reading;
    for (size_t t; (t = next_piece(r, 1)) < p->count;) {
        const float *row = values + t * width;
        if (norm) {
            p->kernels->normalise(row, norm, width, p->decoder->epsilon, r->row);
            row = r->row;
        }
        p->kernels->quantise(row, width, p->runs + t * (width / RUN));
    }
    end_phase(r);
}

/// One head of queries or keys of token `t`, normalised where the model does so, and turned to its position.
static void turn(const struct reader *r, float *head, size_t t, const float *norm, float *out) {
    const struct reading *p = r->reading;
    size_t dimension = p->decoder->dimension, half = dimension / 2;
    const float *source = head, *cosines = p->cosines + t * half, *sines = p->sines + t * half;
    if (norm) {
        p->kernels->normalise(head, norm, dimension, p->decoder->epsilon, r->row);
        source = r->row;
    }
    for (size_t i = 0; i < half; i++) {
        float first = source[i], second = source[i + half];
        out[i] = first * cosines[i] - second * sines[i];
        out[i + half] = second * cosines[i] + first * sines[i];
    }
}

/// Turns queries and keys, and puts keys and values into the cache.
static void remember(struct reader *r, const cblocks_layer *layer) {
    struct reading *p = r->reading;
    const cblocks_decoder *d = p->decoder;
    size_t dimension = d->dimension;
    for (size_t t; (t = next_piece(r, 1)) < p->count;) {
        for (size_t h = 0; h < d->heads; h++) {
            float *head = p->query + (t * d->heads + h) * dimension;
            turn(r, head, t, layer->query_norm, head);
        }
        for (size_t h = 0; h < d->key_heads; h++) {
            size_t source = (t * d->key_heads + h) * dimension;
            size_t place = (h * d->capacity + p->length + t) * dimension;
            turn(r, p->key + source, t, layer->key_norm, layer->keys + place);
            memcpy(layer->values + place, p->value + source, dimension * sizeof(float));
        }
    }
    end_phase(r);
}

/// Writes the keys of all tokens so far with the tokens as columns, 16 columns at a time.
static void transpose_keys(struct reader *r, const cblocks_layer *layer) {
    struct reading *p = r->reading;
    const cblocks_decoder *d = p->decoder;
    size_t dimension = d->dimension, groups = p->stride / 16, seen = p->length + p->count;
    for (size_t i; (i = next_piece(r, 1)) < d->key_heads * groups;) {
        size_t h = i / groups, first = i % groups * 16, last = smaller(first + 16, seen);
        float *out = p->transposed + h * dimension * p->stride;
        for (size_t k = first; k < last; k++) {
            const float *key = layer->keys + (h * d->capacity + k) * dimension;
            for (size_t c = 0; c < dimension; c++) out[c * p->stride + k] = key[c];
        }
    }
    end_phase(r);
}

static void attend(struct reader *r, const cblocks_layer *layer) {
    struct reading *p = r->reading;
    const cblocks_decoder *d = p->decoder;
    size_t dimension = d->dimension, shared = d->heads / d->key_heads, groups = (p->count + QUERIES - 1) / QUERIES;
    for (size_t i; (i = next_piece(r, 1)) < d->heads * groups;) {
        // The longest rows first, so that no thread is left with one at the end.
        size_t h = i % d->heads, t = (groups - 1 - i / d->heads) * QUERIES, count = smaller(QUERIES, p->count - t);
        const float *queries[QUERIES];
        float *outputs[QUERIES];
        size_t first[QUERIES], last[QUERIES];
        for (size_t q = 0; q < count; q++) {
            size_t place = ((t + q) * d->heads + h) * dimension;
            queries[q] = p->query + place;
            outputs[q] = p->attended + place;
            last[q] = p->length + t + q + 1;
            first[q] = layer->window && last[q] > layer->window ? last[q] - layer->window : 0;
        }
        p->kernels->attend_many(
            queries, p->transposed + h / shared * dimension * p->stride, p->stride,
            layer->values + h / shared * d->capacity * dimension, count, first, last, dimension,
            1.0f / sqrtf((float)dimension), r->scores, outputs);
    }
    end_phase(r);
}

static void add_projection(struct reader *r, const cblocks_linear *linear) {
    FOR_EACH_PANEL(r, panel_count(linear->weight.rows), panel, first, last) {
        project_panel(r->reading, linear, panel, first, last, ADDED, r->reading->states);
    }
    end_phase(r);
}

static void run_layer(struct reader *r, const cblocks_layer *layer) {
    struct reading *p = r->reading;
    const cblocks_decoder *d = p->decoder;
    quantise(r, p->states, d->hidden, layer->input_norm);
    size_t queries = panel_count(layer->query.weight.rows), keys = panel_count(layer->key.weight.rows);
    FOR_EACH_PANEL(r, queries + 2 * keys, panel, first, last) {
        if (panel < queries) {
            project_panel(p, &layer->query, panel, first, last, STORED, p->query);
        } else if (panel < queries + keys) {
            project_panel(p, &layer->key, panel - queries, first, last, STORED, p->key);
        } else {
            project_panel(p, &layer->value, panel - queries - keys, first, last, STORED, p->value);
        }
    }
    end_phase(r);
    remember(r, layer);
    transpose_keys(r, layer);
    attend(r, layer);
    quantise(r, p->attended, d->heads * d->dimension, NULL);
    add_projection(r, &layer->output);
    quantise(r, p->states, d->hidden, layer->attention_norm);
    FOR_EACH_PANEL(r, panel_count(layer->gate.weight.rows), panel, first, last) {
        expand_panel(p, layer, panel, first, last);
    }
    end_phase(r);
    quantise(r, p->inner, d->inner, NULL);
    add_projection(r, &layer->down);
}

static void read_tokens(void *context, int thread, int threads) {
    struct reading *p = context;
    const cblocks_decoder *d = p->decoder;
    uint8_t *own = p->own + (size_t)thread * p->own_bytes;
    struct reader r = {.reading = p, .threads = threads, .row = (float *)own};
    r.scores = (float *)(own + rounded(largest(d->hidden, d->dimension) * sizeof(float)));
    for (size_t i = 0; i < d->layer_count; i++) run_layer(&r, &d->layers[i]);
    for (size_t t; (t = next_piece(&r, 1)) < p->count;) {
        p->kernels->normalise(p->states + t * d->hidden, d->final_norm, d->hidden, d->epsilon, r.row);
        memcpy(p->states + t * d->hidden, r.row, d->hidden * sizeof(float));
    }
}

int cblocks_read(
    int level, int threads, const cblocks_decoder *decoder, size_t length, size_t count, const float *cosines,
    const float *sines, float *states) {
    const cblocks_decoder *d = decoder;
    struct reading p = {.kernels = product_kernels(level), .decoder = d, .length = length, .count = count};
    if (!p.kernels || length > d->capacity || count > d->capacity - length || threads < 1) return -1;
    if (count == 0) return 0;
    p.states = states;
    p.cosines = cosines;
    p.sines = sines;
    p.stride = (length + count + 15) / 16 * 16;
    size_t attention = d->heads * d->dimension, widest = largest(largest(d->hidden, d->inner), attention);
    size_t sizes[] = {
        rounded((d->layer_count * PHASES_OF_LAYER + 1) * sizeof(atomic_size_t)),
        rounded(count * attention * sizeof(float)), rounded(count * attention * sizeof(float)),
        rounded(count * d->key_heads * d->dimension * sizeof(float)),
        rounded(count * d->key_heads * d->dimension * sizeof(float)), rounded(count * d->inner * sizeof(float)),
        rounded(d->key_heads * d->dimension * p.stride * sizeof(float)),
        rounded(count * (widest / RUN) * sizeof(struct run)),
    };
    p.own_bytes = rounded(largest(d->hidden, d->dimension) * sizeof(float)) + QUERIES * p.stride * sizeof(float);
    size_t total = (size_t)threads * p.own_bytes;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) total += sizes[i];
    uint8_t *memory = aligned_alloc(64, total);
    if (!memory) return -1;
    memset(memory, 0, sizes[0]);
    uint8_t *place = memory;
    p.next = (atomic_size_t *)place;
    p.query = (float *)(place += sizes[0]);
    p.attended = (float *)(place += sizes[1]);
    p.key = (float *)(place += sizes[2]);
    p.value = (float *)(place += sizes[3]);
    p.inner = (float *)(place += sizes[4]);
    p.transposed = (float *)(place += sizes[5]);
    p.runs = (struct run *)(place += sizes[6]);
    p.own = place + sizes[7];
    memset(p.transposed, 0, sizes[6]);
    cblocks_run(threads, read_tokens, &p);
    free(memory);
    return 0;
}
