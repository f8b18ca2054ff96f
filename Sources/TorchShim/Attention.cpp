// Causal attention whose scores exist tile by tile, forward and backward, for grouped heads and packed rows.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "AttentionLoops.h"
#include "Parallel.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Queries of a tile in the forward pass, keys in the backward pass.
constexpr int64_t kTile = 64;
/// The other side of a tile at most; always whole tiles, so that few kinds of products are compiled.
constexpr int64_t kWidest = 512;

int64_t padded(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

/// How far a column of a right factor is from the first, in elements.
int64_t columnOffset(const float *, int64_t column) { return column; }
int64_t columnOffset(const BF16 *, int64_t column) { return 2 * column; }

// The loops, compiled for every instruction set.
#define GRAFT_FOR(Item, Name)                                                                                        \
    GRAFT_CLONES void softmax##Name(float *scores, Item *result, int64_t width, int64_t rows, int64_t query,         \
                                    int64_t key, const Sight *sight, float scale, float *logSums) {                  \
        softmaxBlock(scores, result, width, rows, query, key, *sight, scale, logSums);                               \
    }                                                                                                                \
    GRAFT_CLONES void tile##Name(const ScoreTile<Item> *tile, const Sight *sight) { differentiateTile(*tile, *sight); } \
    GRAFT_CLONES void rows##Name(const MatrixRows<const Item> *rows, Item *result, int64_t count) {                  \
        packRows(*rows, result, count);                                                                              \
    }                                                                                                                \
    GRAFT_CLONES void columns##Name(const MatrixRows<const Item> *rows, Item *result, int64_t count) {               \
        packColumns(*rows, result, count);                                                                           \
    }                                                                                                                \
    GRAFT_CLONES void transposed##Name(const MatrixRows<const Item> *rows, Item *result, int64_t count) {            \
        transposeRows(*rows, result, count);                                                                         \
    }                                                                                                                \
    GRAFT_CLONES void sums##Name(const MatrixRows<const Item> *a, const MatrixRows<const Item> *b, float *sums) {    \
        multiplyRows(*a, *b, sums);                                                                                  \
    }                                                                                                                \
    GRAFT_CLONES void writeRows##Name(const float *values, const MatrixRows<Item> *rows) { writeRows(values, *rows); } \
    GRAFT_CLONES void writeColumns##Name(const float *values, int64_t count, const MatrixRows<Item> *rows) {         \
        writeColumns(values, count, *rows);                                                                          \
    }
GRAFT_FOR(float, Float)
GRAFT_FOR(BF16, BF16)
#undef GRAFT_FOR

template <class Item>
struct Loops;
#define GRAFT_LOOPS(Item, Name)                                                                                      \
    template <>                                                                                                      \
    struct Loops<Item> {                                                                                             \
        static constexpr auto softmax = softmax##Name;                                                               \
        static constexpr auto tile = tile##Name;                                                                     \
        static constexpr auto rows = rows##Name;                                                                     \
        static constexpr auto columns = columns##Name;                                                               \
        static constexpr auto transposed = transposed##Name;                                                         \
        static constexpr auto sums = sums##Name;                                                                     \
        static constexpr auto writeRows = writeRows##Name;                                                           \
        static constexpr auto writeColumns = writeColumns##Name;                                                     \
    };
GRAFT_LOOPS(float, Float)
GRAFT_LOOPS(BF16, BF16)
#undef GRAFT_LOOPS

/// One row of the batch, or one of several packed into it.
struct Sequence {
    int64_t batch, start, length;
};

std::vector<Sequence> sequences(const at::Tensor &query, at::IntArrayRef lengths) {
    std::vector<Sequence> list;
    if (lengths.empty())
        for (int64_t batch = 0; batch < query.size(0); ++batch) list.push_back({batch, 0, query.size(2)});
    int64_t start = 0;
    for (int64_t length : lengths) {
        list.push_back({0, start, length});
        start += length;
    }
    return list;
}

/// The rows of one head `[batch, heads, time, dim]` in a sequence.
template <class Item>
MatrixRows<Item> head(const at::Tensor &tensor, const Sequence &sequence, int64_t index) {
    auto data = static_cast<Item *>(tensor.data_ptr()) + sequence.batch * tensor.stride(0) + index * tensor.stride(1) +
                sequence.start * tensor.stride(2);
    return {data, tensor.stride(2), sequence.length, tensor.size(3)};
}

template <class Item>
MatrixRows<const Item> read(const at::Tensor &tensor, const Sequence &sequence, int64_t index) {
    const auto rows = head<Item>(tensor, sequence, index);
    return {rows.data, rows.stride, rows.count, rows.size};
}

int64_t longest(const std::vector<Sequence> &list) {
    int64_t length = 0;
    for (const auto &sequence : list) length = std::max(length, sequence.length);
    return length;
}

/// Calls `body(begin, end)` for tasks in parallel; products' work space goes at the end.
template <class Body>
void inTasks(int64_t count, bool isPacked, const Body &body) {
    inParallel(count, 1, [&](int64_t begin, int64_t end) {
        body(begin, end);
        at::native::cpublas::brgemm_release(isPacked);
    });
}

template <class Item>
void forward(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &output,
             const at::Tensor &logSums, const std::vector<Sequence> &list, int64_t window, float scale) {
    using Run = Loops<Item>;
    const int64_t heads = query.size(1), size = query.size(3), shared = heads / key.size(1);
    const int64_t most = padded(longest(list));
    inTasks(int64_t(list.size()) * heads, sizeof(Item) == 2, [&](int64_t begin, int64_t end) {
        const auto keys = block<Item>(most * size), values = block<Item>(most * size), rows = block<Item>(kTile * size);
        const auto scores = block<float>(kTile * most), result = block<float>(kTile * size);
        const auto probabilities = block<Item>(kTile * most);
        int64_t packedGroup = -1;
        for (int64_t task = begin; task < end; ++task) {
            const auto &sequence = list[task / heads];
            const int64_t index = task % heads, group = task / shared, count = padded(sequence.length);
            if (group != packedGroup) {
                const auto k = read<Item>(key, sequence, index / shared), v = read<Item>(value, sequence, index / shared);
                Run::columns(&k, keys.get(), count);
                Run::rows(&v, values.get(), count);
                packedGroup = group;
            }
            const Sight sight{sequence.length, window};
            float *sums = logSums.data_ptr<float>() + (sequence.batch * heads + index) * query.size(2) + sequence.start;
            for (int64_t first = 0; first < sequence.length; first += kTile) {
                const int64_t number = std::min(kTile, sequence.length - first);
                auto q = read<Item>(query, sequence, index);
                q.data = q.row(first);
                q.count = number;
                copyRows(q, rows.get(), kTile);
                const int64_t low = sight.firstKey(first) / kTile * kTile, high = first + kTile, width = high - low;
                for (int64_t at = low; at < high; at += kWidest)
                    multiplyTile(kTile, std::min(kWidest, high - at), size, rows.get(), size,
                             keys.get() + columnOffset(keys.get(), at), count, scores.get() + at - low, width, false);
                Run::softmax(scores.get(), probabilities.get(), width, number, first, low, &sight, scale, sums + first);
                if (number < kTile)
                    std::memset(static_cast<void *>(probabilities.get() + number * width), 0,
                                (kTile - number) * width * sizeof(Item));
                for (int64_t at = low; at < high; at += kWidest)
                    multiplyTile(kTile, size, std::min(kWidest, high - at), probabilities.get() + at - low, width,
                             values.get() + at * size, size, result.get(), size, at > low);
                auto place = head<Item>(output, sequence, index);
                place.data = place.row(first);
                place.count = number;
                Run::writeRows(result.get(), &place);
            }
        }
    });
}

/// The parts of a backward pass that a thread works with.
template <class Item>
struct Backward {
    using Run = Loops<Item>;
    const at::Tensor &query, &key, &value, &output, &logSums, &outer;
    const at::Tensor &queryGradient, &keyGradient, &valueGradient;  // the latter [parts, batch, groups, time, dim], fp32
    int64_t window, size, most;
    float scale;
    // Of a group: keys and values as left factors, keys transposed.
    Block<Item> keys = block<Item>(most * size), values = block<Item>(most * size),
                transposedKeys = block<Item>(most * size);
    // Of a head: queries and outer gradients as right factors of products over features and over rows.
    Block<Item> queryColumns = block<Item>(most * size), outerColumns = block<Item>(most * size),
                queryRows = block<Item>(most * size), outerRows = block<Item>(most * size);
    Block<float> deltas = block<float>(most), sums = block<float>(most), queryResult = block<float>(most * size);
    Block<float> keyResult = block<float>(most * size), valueResult = block<float>(most * size);
    Block<float> scores = block<float>(kTile * kWidest), outerScores = block<float>(kTile * kWidest);
    Block<Item> probabilities = block<Item>(kTile * kWidest), slopes = block<Item>(kTile * kWidest),
                packedSlopes = block<Item>(kTile * kWidest);

    void openGroup(const Sequence &sequence, int64_t group) {
        const auto k = read<Item>(key, sequence, group), v = read<Item>(value, sequence, group);
        const int64_t count = padded(sequence.length);
        copyRows(k, keys.get(), count);
        copyRows(v, values.get(), count);
        Run::transposed(&k, transposedKeys.get(), count);
        std::memset(keyResult.get(), 0, count * size * sizeof(float));
        std::memset(valueResult.get(), 0, count * size * sizeof(float));
    }

    void closeGroup(const Sequence &sequence, int64_t group, int64_t part) {
        const auto k = head<float>(keyGradient.select(0, part), sequence, group);
        const auto v = head<float>(valueGradient.select(0, part), sequence, group);
        writeRows(keyResult.get(), k);
        writeRows(valueResult.get(), v);
    }

    void addHead(const Sequence &sequence, int64_t index) {
        const int64_t length = sequence.length, count = padded(length);
        const auto q = read<Item>(query, sequence, index), g = read<Item>(outer, sequence, index);
        const auto o = read<Item>(output, sequence, index);
        Run::columns(&q, queryColumns.get(), count);
        Run::columns(&g, outerColumns.get(), count);
        Run::rows(&q, queryRows.get(), count);
        Run::rows(&g, outerRows.get(), count);
        Run::sums(&g, &o, deltas.get());
        const float *saved =
            logSums.data_ptr<float>() + (sequence.batch * query.size(1) + index) * query.size(2) + sequence.start;
        std::memset(queryResult.get(), 0, count * size * sizeof(float));
        const Sight sight{length, window};
        for (int64_t first = 0; first < length; first += kTile) {
            // The last query that sees the tile's last key is `window - 1` behind it.
            const int64_t end = window < length ? std::min(count, padded(first + kTile - 1 + window)) : count;
            for (int64_t at = first; at < end; at += kWidest)
                addTile(sight, first, at, std::min(kWidest, end - at), count, saved);
        }
        const auto place = head<Item>(queryGradient, sequence, index);
        Run::writeColumns(queryResult.get(), count, &place);
    }

    /// The slopes of a tile as a right factor.
    const Item *rightSlopes(int64_t width) const {
        if (sizeof(Item) == sizeof(float)) return slopes.get();
        const MatrixRows<const Item> rows{slopes.get(), width, kTile, width};
        Run::rows(&rows, packedSlopes.get(), kTile);
        return packedSlopes.get();
    }

    void addTile(const Sight &sight, int64_t first, int64_t at, int64_t width, int64_t count, const float *saved) {
        const Item *tileKeys = keys.get() + first * size, *tileValues = values.get() + first * size;
        const int64_t column = columnOffset(tileKeys, at);
        multiplyTile(kTile, width, size, tileKeys, size, queryColumns.get() + column, count, scores.get(), width, false);
        multiplyTile(kTile, width, size, tileValues, size, outerColumns.get() + column, count, outerScores.get(), width,
                 false);
        const ScoreTile<Item> tile{scores.get(), outerScores.get(), saved + at, deltas.get() + at, probabilities.get(),
                                   slopes.get(), width, kTile, first, at, scale};
        Run::tile(&tile, &sight);
        multiplyTile(kTile, size, width, probabilities.get(), width, outerRows.get() + at * size, size,
                 valueResult.get() + first * size, size, true);
        multiplyTile(kTile, size, width, slopes.get(), width, queryRows.get() + at * size, size,
                 keyResult.get() + first * size, size, true);
        // The gradient of the queries, transposed: [dim, keys] [keys, queries].
        multiplyTile(size, width, kTile, transposedKeys.get() + first, count, rightSlopes(width), width,
                 queryResult.get() + at, count, true);
    }
};

template <class Item>
void backward(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &output,
              const at::Tensor &logSums, const at::Tensor &outer, const at::Tensor &queryGradient,
              const at::Tensor &keyGradient, const at::Tensor &valueGradient, const std::vector<Sequence> &list,
              int64_t window, float scale) {
    const int64_t heads = query.size(1), groups = key.size(1), parts = keyGradient.size(0);
    const int64_t headsOfPart = heads / groups / parts;
    const int64_t most = padded(longest(list));
    inTasks(int64_t(list.size()) * groups * parts, sizeof(Item) == 2, [&](int64_t begin, int64_t end) {
        Backward<Item> work{query,         key,           value,  output,        logSums, outer, queryGradient,
                            keyGradient,   valueGradient, window, query.size(3), most,    scale};
        for (int64_t task = begin; task < end; ++task) {
            const auto &sequence = list[task / (groups * parts)];
            const int64_t group = task / parts % groups, part = task % parts;
            work.openGroup(sequence, group);
            for (int64_t i = 0; i < headsOfPart; ++i)
                work.addHead(sequence, (group * parts + part) * headsOfPart + i);
            work.closeGroup(sequence, group, part);
        }
    });
}

/// Rows whose features lie side by side, a row an even number of features behind the other: bf16 moves in pairs.
at::Tensor rowsSideBySide(const at::Tensor &tensor) {
    return tensor.stride(3) == 1 && tensor.stride(2) % 2 == 0 ? tensor : tensor.contiguous();
}

/// `[batch, heads, time, dim]` over memory in the order `[batch, time, heads, dim]`.
at::Tensor emptyByTime(const at::Tensor &like) {
    return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.options()).transpose(1, 2);
}

struct Attention : torch::autograd::Function<Attention> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &query, const at::Tensor &key,
                              const at::Tensor &value, at::IntArrayRef lengths, int64_t window, double scale) {
        const auto q = rowsSideBySide(query), k = rowsSideBySide(key), v = rowsSideBySide(value);
        auto output = emptyByTime(q);
        auto logSums = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
        const auto list = sequences(q, lengths);
        if (q.scalar_type() == at::kBFloat16)
            graft::forward<BF16>(q, k, v, output, logSums, list, window, float(scale));
        else
            graft::forward<float>(q, k, v, output, logSums, list, window, float(scale));
        context->save_for_backward({q, k, v, output, logSums});
        context->saved_data["lengths"] = lengths.vec();
        context->saved_data["window"] = window;
        context->saved_data["scale"] = scale;
        return output;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "graft::attention has no second derivative");
        const auto saved = context->get_saved_variables();
        const auto &q = saved[0], &k = saved[1], &v = saved[2];
        const auto outer = rowsSideBySide(gradients[0]);
        const auto list = sequences(q, context->saved_data["lengths"].toIntVector());
        const int64_t window = context->saved_data["window"].toInt();
        const auto scale = float(context->saved_data["scale"].toDouble());
        // Where there are few groups, each head of a group is a task of its own.
        const int64_t shared = q.size(1) / k.size(1);
        const int64_t parts = int64_t(list.size()) * k.size(1) >= 2 * at::get_num_threads() ? 1 : shared;
        auto queryGradient = at::empty(q.sizes(), q.options());
        const auto wide = q.options().dtype(at::kFloat);
        auto keyGradient = at::empty({parts, k.size(0), k.size(1), k.size(2), k.size(3)}, wide);
        auto valueGradient = at::empty({parts, v.size(0), v.size(2), v.size(1), v.size(3)}, wide).transpose(2, 3);
        if (q.scalar_type() == at::kBFloat16)
            graft::backward<BF16>(q, k, v, saved[3], saved[4], outer, queryGradient, keyGradient, valueGradient, list,
                                  window, scale);
        else
            graft::backward<float>(q, k, v, saved[3], saved[4], outer, queryGradient, keyGradient, valueGradient, list,
                                   window, scale);
        const auto narrow = [&](const at::Tensor &sum) {
            return (parts == 1 ? sum.select(0, 0) : sum.sum(0)).to(q.scalar_type());
        };
        return {queryGradient, narrow(keyGradient), narrow(valueGradient), at::Tensor(), at::Tensor(), at::Tensor()};
    }
};

bool hasAttention(const at::Tensor &query) {
    return hasTiles(query) && query.dim() == 4 && query.size(3) % 16 == 0 && query.size(3) <= 256;
}

at::Tensor attention(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, at::IntArrayRef lengths,
                     int64_t window, double scale) {
    TORCH_CHECK(hasAttention(query), "there is no kernel for this tensor on this machine");
    TORCH_CHECK(key.dim() == 4 && key.sizes() == value.sizes() && key.is_cpu() && value.is_cpu() &&
                    key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type() &&
                    key.size(0) == query.size(0) && key.size(2) == query.size(2) && key.size(3) == query.size(3) &&
                    key.size(1) > 0 && query.size(1) % key.size(1) == 0 && query.numel() > 0,
                "expected queries [batch, heads, time, dim], keys and values [batch, heads or fewer, time, dim]");
    int64_t total = 0;
    for (int64_t length : lengths) {
        TORCH_CHECK(length > 0, "a packed row of ", length, " tokens");
        total += length;
    }
    TORCH_CHECK(lengths.empty() || (query.size(0) == 1 && total == query.size(2)), "packed rows of ", total,
                " tokens in ", query.sizes());
    TORCH_CHECK(window > 0, "a window of ", window, " tokens");
    return Attention::apply(query, key, value, lengths, std::min(window, query.size(2)), scale);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("has_attention(Tensor query) -> bool", hasAttention);
    library.def(
        "attention(Tensor query, Tensor key, Tensor value, int[] lengths, int window, float scale) -> Tensor",
        attention);
}

}  // namespace graft
