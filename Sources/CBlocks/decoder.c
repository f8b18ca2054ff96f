#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "CBlocks.h"
#include "packed.h"

/// What the threads share: the stream, what blocks compute in between, and how far each phase is.
struct pass {
    const struct product_kernels *kernels;
    const cblocks_decoder *decoder;
    size_t length;
    const float *cosines, *sines;
    float *states, *query, *key, *value, *attended, *inner;
    cblocks_barrier barrier;
    /// The next piece of work, one counter a phase.
    atomic_size_t *next;
    /// Memory of the threads, one after the other.
    uint8_t *own;
    size_t own_bytes;
};

/// What one thread has for itself.
struct worker {
    struct pass *pass;
    int threads;
    size_t phase;
    float *normed, *scores, *head;
    struct run *runs;
};

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/// Hands out pieces of the present phase.
static size_t next_piece(struct worker *w, size_t count) {
    return atomic_fetch_add_explicit(&w->pass->next[w->phase], count, memory_order_relaxed);
}

static void end_phase(struct worker *w) {
    w->phase++;
    cblocks_wait(&w->pass->barrier, w->threads);
}

/// 16 rows of a projection, with its bias, into `sums`; returns how many of them there are.
static size_t project(const struct worker *w, const cblocks_linear *linear, size_t panel, float *sums) {
    const cblocks_packed *m = &linear->weight;
    size_t row = panel * PANEL_ROWS, runs = m->columns / RUN;
    size_t rows = m->rows - row < PANEL_ROWS ? m->rows - row : PANEL_ROWS;
    w->pass->kernels->one[m->type](m->panels + panel * panel_bytes(m->type, m->columns), runs, w->runs, runs, sums);
    for (size_t i = 0; linear->bias && i < rows; i++) sums[i] += linear->bias[row + i];
    return rows;
}

/// All panels of up to three projections of the same vector.
static void project_all(
    struct worker *w, const cblocks_linear *const *linears, float *const *outputs, size_t count) {
    size_t total = 0;
    for (size_t k = 0; k < count; k++) total += panel_count(linears[k]->weight.rows);
    size_t chunk = total / ((size_t)w->threads * 6) + 1;
    for (size_t first; (first = next_piece(w, chunk)) < total;) {
        for (size_t i = first; i < first + chunk && i < total; i++) {
            size_t panel = i, k = 0;
            while (panel >= panel_count(linears[k]->weight.rows)) panel -= panel_count(linears[k++]->weight.rows);
            _Alignas(64) float sums[PANEL_ROWS];
            size_t rows = project(w, linears[k], panel, sums);
            memcpy(outputs[k] + panel * PANEL_ROWS, sums, rows * sizeof(float));
        }
    }
    end_phase(w);
}

/// Adds a projection of `input` to the stream.
static void add_projection(struct worker *w, const cblocks_linear *linear, const float *input) {
    w->pass->kernels->quantise(input, linear->weight.columns, w->runs);
    size_t total = panel_count(linear->weight.rows), chunk = total / ((size_t)w->threads * 6) + 1;
    for (size_t first; (first = next_piece(w, chunk)) < total;) {
        for (size_t panel = first; panel < first + chunk && panel < total; panel++) {
            _Alignas(64) float sums[PANEL_ROWS];
            size_t rows = project(w, linear, panel, sums);
            for (size_t i = 0; i < rows; i++) w->pass->states[panel * PANEL_ROWS + i] += sums[i];
        }
    }
    end_phase(w);
}

/// The stream, normalised, as runs. Every thread does this for itself: it is shorter than a barrier.
static void normalise_stream(struct worker *w, const float *weight) {
    const cblocks_decoder *d = w->pass->decoder;
    w->pass->kernels->normalise(w->pass->states, weight, d->hidden, d->epsilon, w->normed);
    w->pass->kernels->quantise(w->normed, d->hidden, w->runs);
}

/// One head of queries or keys, normalised where the model does so, and turned to its position.
static void turn(const struct worker *w, const float *head, const float *norm, float *out) {
    const struct pass *p = w->pass;
    size_t dimension = p->decoder->dimension, half = dimension / 2;
    if (norm) {
        p->kernels->normalise(head, norm, dimension, p->decoder->epsilon, w->normed);
        head = w->normed;
    }
    for (size_t i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        out[i] = first * p->cosines[i] - second * p->sines[i];
        out[i + half] = second * p->cosines[i] + first * p->sines[i];
    }
}

/// Puts the new token's keys and values of one head into the cache.
static void remember(const struct worker *w, const cblocks_layer *layer, size_t head) {
    const struct pass *p = w->pass;
    size_t dimension = p->decoder->dimension, place = (head * p->decoder->capacity + p->length) * dimension;
    turn(w, p->key + head * dimension, layer->key_norm, layer->keys + place);
    memcpy(layer->values + place, p->value + head * dimension, dimension * sizeof(float));
}

/// Attention, head by head.
static void attend(struct worker *w, const cblocks_layer *layer) {
    const struct pass *p = w->pass;
    const cblocks_decoder *d = p->decoder;
    size_t shared = d->heads / d->key_heads, seen = p->length + 1;
    size_t first = layer->window && seen > layer->window ? seen - layer->window : 0;
    for (size_t head; (head = next_piece(w, 1)) < d->heads;) {
        size_t place = (head / shared * d->capacity + first) * d->dimension;
        turn(w, p->query + head * d->dimension, layer->query_norm, w->head);
        p->kernels->attend(
            w->head, layer->keys + place, layer->values + place, seen - first, d->dimension,
            1.0f / sqrtf((float)d->dimension), w->scores, p->attended + head * d->dimension);
    }
    end_phase(w);
}

/// The product of gate and up, 16 features at a time.
static void expand(struct worker *w, const cblocks_layer *layer) {
    size_t total = panel_count(layer->gate.weight.rows), chunk = total / ((size_t)w->threads * 6) + 1;
    for (size_t first; (first = next_piece(w, chunk)) < total;) {
        for (size_t panel = first; panel < first + chunk && panel < total; panel++) {
            _Alignas(64) float gate[PANEL_ROWS], up[PANEL_ROWS];
            size_t rows = project(w, &layer->gate, panel, gate);
            project(w, &layer->up, panel, up);
            w->pass->kernels->gate(gate, up, rows);
            memcpy(w->pass->inner + panel * PANEL_ROWS, gate, rows * sizeof(float));
        }
    }
    end_phase(w);
}

static void run_layer(struct worker *w, const cblocks_layer *layer) {
    struct pass *p = w->pass;
    normalise_stream(w, layer->input_norm);
    const cblocks_linear *projections[] = {&layer->query, &layer->key, &layer->value};
    project_all(w, projections, (float *const[]){p->query, p->key, p->value}, 3);
    for (size_t head; (head = next_piece(w, 1)) < p->decoder->key_heads;) remember(w, layer, head);
    end_phase(w);
    attend(w, layer);
    add_projection(w, &layer->output, p->attended);
    normalise_stream(w, layer->attention_norm);
    expand(w, layer);
    add_projection(w, &layer->down, p->inner);
}

enum { PHASES_OF_LAYER = 6 };

/// The longest vector that is rounded to runs.
static size_t widest(const cblocks_decoder *d) {
    return largest(largest(d->hidden, d->inner), largest(d->heads * d->dimension, d->dimension));
}

static void decode(void *context, int thread, int threads) {
    struct pass *p = context;
    const cblocks_decoder *d = p->decoder;
    uint8_t *own = p->own + (size_t)thread * p->own_bytes;
    struct worker w = {.pass = p, .threads = threads};
    w.runs = (struct run *)own;
    own += rounded(widest(d) / RUN * sizeof(struct run));
    w.normed = (float *)own;
    own += rounded(widest(d) * sizeof(float));
    w.head = (float *)own;
    own += rounded(d->dimension * sizeof(float));
    w.scores = (float *)own;
    for (size_t i = 0; i < d->layer_count; i++) run_layer(&w, &d->layers[i]);
    if (thread != 0) return;
    p->kernels->normalise(p->states, d->final_norm, d->hidden, d->epsilon, w.normed);
    memcpy(p->states, w.normed, d->hidden * sizeof(float));
}

int cblocks_decode(
    int level, int threads, const cblocks_decoder *decoder, size_t length, const float *cosines, const float *sines,
    float *states) {
    const cblocks_decoder *d = decoder;
    struct pass p = {.kernels = product_kernels(level), .decoder = d, .length = length, .states = states};
    if (!p.kernels || length >= d->capacity || threads < 1) return -1;
    p.cosines = cosines;
    p.sines = sines;
    p.own_bytes = rounded(widest(d) / RUN * sizeof(struct run)) + rounded(widest(d) * sizeof(float))
        + rounded(d->dimension * sizeof(float)) + rounded((length + 1) * sizeof(float));
    size_t counters = rounded(d->layer_count * PHASES_OF_LAYER * sizeof(atomic_size_t));
    size_t query = rounded(d->heads * d->dimension * sizeof(float));
    size_t key = rounded(d->key_heads * d->dimension * sizeof(float)), inner = rounded(d->inner * sizeof(float));
    uint8_t *memory = aligned_alloc(64, counters + 2 * query + 2 * key + inner + (size_t)threads * p.own_bytes);
    if (!memory) return -1;
    memset(memory, 0, counters);
    uint8_t *place = memory;
    p.next = (atomic_size_t *)place;
    p.query = (float *)(place += counters);
    p.attended = (float *)(place += query);
    p.key = (float *)(place += query);
    p.value = (float *)(place += key);
    p.inner = (float *)(place += key);
    p.own = place + inner;
    cblocks_run(threads, decode, &p);
    free(memory);
    return 0;
}
