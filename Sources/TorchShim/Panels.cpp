// Sums of matrix products by tiles, whose right factors are laid out panel by panel in a thread's own cache.
//
// A library's product lays out the whole right factor before it begins, in memory that every thread then reads, or wants
// the weight held in its layout, beside the plain one and once more for the backward pass. A panel of some columns
// instead is laid out by the thread that needs it, is multiplied with all rows while it is in that core's cache, and is
// gone. What is added to a product (low-rank updates, the gradients of other layers) is added up in the same tiles.
#include "Panels.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <bit>
#include <limits>

#include "Conversion.h"
#include "Parallel.h"
#include "RightFactor.h"

namespace graft {
namespace {

/// Columns of a panel, and rows of a tile at most: fewer where there would be too few tiles for all threads.
constexpr int64_t kColumns = 64, kMostRows = 256, kTilesOfThread = 8, kFewestTileRows = 32;
/// Of the panels that a thread holds at a time: less than half of a core's second cache.
constexpr int64_t kPanelBytes = 400 << 10;
/// With fewer rows, laying a panel out takes too long; with very few, as gradients of factors have, they pass over a
/// weight whose outputs lie side by side without need to.
constexpr int64_t kFewestRows = 192, kVeryFewRows = 32;
/// Panels are read where they lie, unless their rows fall into the same few places of the caches.
constexpr int64_t kAlias = 4096;
/// Tiles whose sums are held in fp32 beside the result until all panels of a long product have been added.
constexpr int64_t kMostTiles = 64;

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

GRAFT_CLONES void panelOfRows(const MatrixRows<const float> *rows, float *result, int64_t count) {
    packRows(*rows, result, count);
}
GRAFT_CLONES void panelOfRows(const MatrixRows<const BF16> *rows, BF16 *result, int64_t count) {
    packRows(*rows, result, count);
}
GRAFT_CLONES void panelOfColumns(const MatrixRows<const float> *rows, float *result, int64_t count) {
    packColumns(*rows, result, count);
}
GRAFT_CLONES void panelOfColumns(const MatrixRows<const BF16> *rows, BF16 *result, int64_t count) {
    packColumns(*rows, result, count);
}

/// The sums of a tile with what is added to each column, as items.
template <class Item>
GRAFT_INLINE void finish(const float *sums, int64_t width, const float *bias, const MatrixRows<Item> &result) {
    for (int64_t i = 0; i < result.count; ++i) {
        Item *row = result.row(i);
        const float *from = sums + i * width;
        if (bias) {
#pragma omp simd
            for (int64_t j = 0; j < result.size; ++j) store(row[j], from[j] + bias[j]);
        } else {
#pragma omp simd
            for (int64_t j = 0; j < result.size; ++j) store(row[j], from[j]);
        }
    }
}
GRAFT_CLONES void finishTile(const float *sums, int64_t width, const float *bias, const MatrixRows<float> *result) {
    finish(sums, width, bias, *result);
}
GRAFT_CLONES void finishTile(const float *sums, int64_t width, const float *bias, const MatrixRows<BF16> *result) {
    finish(sums, width, bias, *result);
}

/// A right factor of tiles.
template <class Item>
struct Panel {
    const Item *data;
    int64_t stride;
};

/// Some inputs of one product of the sum.
template <class Item>
struct Slab {
    const Item *x, *weight;
    /// `inputs` is how many are multiplied: of `count` ones and zeros behind them.
    int64_t xStride, weightStride, inputs, count;
    /// Whether the inputs of an output lie side by side in the weight, or the outputs of an input.
    bool isByOutput;

    /// Columns of the weight, laid out in the memory given unless they lie well already.
    Panel<Item> panel(int64_t column, int64_t columns, Item *memory) const {
        if (isByOutput) {
            const int64_t width = divided(columns, 16) * 16;
            const MatrixRows<const Item> rows{weight + column * weightStride, weightStride, columns, inputs};
            panelOfColumns(&rows, memory, width);
            return {memory, width};
        }
        if (liesWell(columns)) return {weight + column, weightStride};
        const MatrixRows<const Item> rows{weight + column, weightStride, count, columns};
        panelOfRows(&rows, memory, inputs);
        return {memory, columns};
    }

    bool liesWell(int64_t columns) const {
        const int64_t bytes = weightStride * int64_t(sizeof(Item));
        return sizeof(Item) == sizeof(float) && inputs == count && weightStride >= columns && bytes % kAlias != 0 &&
               bytes * inputs <= std::numeric_limits<int32_t>::max();
    }
};

/// A term in a layout that slabs have a name for.
struct Arranged {
    at::Tensor x, weight;
    int64_t inputs;
    bool isByOutput;
    /// Whether the number of inputs is one of rows, which differs from step to step.
    bool varies;
};

template <class Item, class Result>
struct Sum {
    using Group = std::vector<Slab<Item>>;
    /// Slabs whose panels are held at the same time.
    std::vector<Group> groups;
    const float *bias;
    Result *result;
    int64_t rows, columns, resultStride, tileRows = kMostRows;

    /// fp32 sums are made where they belong.
    static constexpr bool isDirect = sizeof(Result) == sizeof(float);
    static constexpr int64_t mostInputs = kPanelBytes / (kColumns * int64_t(sizeof(Item)));

    Sum(const std::vector<Arranged> &terms, const float *bias, const at::Tensor &to)
        : bias(bias), result(items<Result>(to)), rows(to.size(0)), columns(to.size(1)), resultStride(to.stride(0)) {
        while (tileRows > kFewestTileRows && tileCount() < kTilesOfThread * at::get_num_threads()) tileRows /= 2;
        int64_t held = mostInputs;
        for (const auto &term : terms) {
            const int64_t parts = divided(term.inputs, mostInputs);
            const int64_t even = divided(divided(term.inputs, parts), kColumns) * kColumns;
            for (int64_t first = 0, size; first < term.inputs; first += size) {
                const int64_t left = term.inputs - first;
                // Each size is compiled, and kept: powers of two where there would be ever more of them.
                size = term.varies ? std::max(kColumns, int64_t(std::bit_floor(uint64_t(std::min(left, mostInputs)))))
                                   : even;
                const int64_t count = std::min(size, left), inputs = term.varies ? size : count;
                if (held + inputs > mostInputs) {
                    groups.emplace_back();
                    held = 0;
                }
                held += inputs;
                groups.back().push_back(slab(term, first, inputs, count));
            }
        }
    }

    static Slab<Item> slab(const Arranged &term, int64_t first, int64_t inputs, int64_t count) {
        const auto &x = term.x, &weight = term.weight;
        // The stride of a single row says nothing.
        const int64_t xStride = x.size(0) == 1 ? std::max(x.stride(0), x.size(1)) : x.stride(0);
        return {items<Item>(x) + first, items<Item>(weight) + first * weight.stride(1), xStride,
                weight.stride(term.isByOutput ? 0 : 1), inputs, count, term.isByOutput};
    }

    /// Whether sums wait beside the result for further groups.
    bool holdsSums() const { return !isDirect && groups.size() > 1; }

    int64_t tileCount() const { return divided(rows, tileRows) * divided(columns, kColumns); }

    void run() const {
        const int64_t blocks = divided(rows, tileRows);
        inParallel(tileCount(), 1, [&](int64_t begin, int64_t end) {
            const auto panels = block<Item>(mostInputs * kColumns);
            const int64_t most = holdsSums() ? kMostTiles : end - begin;
            const auto sums = block<float>((holdsSums() ? std::min(most, end - begin) : 1) * tileRows * kColumns);
            for (int64_t first = begin; first < end; first += most)
                for (const auto &group : groups)
                    addGroup(group, first, std::min(end, first + most), blocks, panels.get(), sums.get());
            at::native::cpublas::brgemm_release(sizeof(Item) == 2);
        });
    }

    /// Adds a group to tiles, which are numbered down the columns of panels.
    void addGroup(const Group &group, int64_t begin, int64_t end, int64_t blocks, Item *panels, float *sums) const {
        int64_t next;
        for (int64_t tile = begin; tile < end; tile = next) {
            next = std::min(end, (tile / blocks + 1) * blocks);
            const int64_t column = tile / blocks * kColumns, width = std::min(kColumns, columns - column);
            std::vector<Panel<Item>> laid;
            Item *place = panels;
            for (const auto &slab : group) {
                laid.push_back(slab.panel(column, width, place));
                place += kColumns * slab.inputs;
            }
            for (int64_t i = tile; i < next; ++i) {
                const int64_t row = i % blocks * tileRows;
                addTile(group, laid, row, std::min(tileRows, rows - row), column, width,
                        sums + (holdsSums() ? (i - begin) * tileRows * kColumns : 0));
            }
        }
    }

    void addTile(const Group &group, const std::vector<Panel<Item>> &panels, int64_t row, int64_t count,
                 int64_t column, int64_t width, float *sums) const {
        Result *place = result + row * resultStride + column;
        const int64_t stride = isDirect ? resultStride : kColumns;
        if constexpr (isDirect) sums = place;
        const bool isFirst = &group == &groups.front();
        for (size_t s = 0; s < group.size(); ++s) {
            const auto &slab = group[s];
            // Powers of two, so that few kinds of tiles are compiled.
            for (int64_t at = 0, size; at < count; at += size) {
                size = int64_t(std::bit_floor(uint64_t(count - at)));
                multiplyTile(size, width, slab.inputs, slab.x + (row + at) * slab.xStride, slab.xStride,
                             panels[s].data, panels[s].stride, sums + at * stride, stride, !isFirst || s > 0);
            }
        }
        if (&group != &groups.back() || (isDirect && !bias)) return;
        const MatrixRows<Result> rows{place, resultStride, count, width};
        finishTile(sums, stride, bias ? bias + column : nullptr, &rows);
    }
};

/// A turned `x`, as gradients of factors have it: rows of zeros up to a length of which there are few.
Arranged arrangedTurned(const ProductTerm &term) {
    const auto &[x, weight] = term;
    const int64_t inputs = x.size(1), length = std::max(kColumns, int64_t(std::bit_ceil(uint64_t(inputs))));
    auto rows = at::zeros({x.size(0), length}, x.options());
    convert(x, 1, rows.narrow(1, 0, inputs));
    return {rows, weight.stride(0) == 1 ? weight : converted(weight.t(), weight.scalar_type()).t(), inputs, false, true};
}

Arranged arranged(const ProductTerm &term) {
    auto [x, weight] = term;
    if (x.stride(1) != 1 && x.stride(0) == 1 && x.size(1) > 1) return arrangedTurned(term);
    // bf16 goes in pairs of inputs.
    const bool isBF16 = x.scalar_type() == at::kBFloat16;
    if (isBF16 && x.size(1) % 2 != 0) {
        x = at::constant_pad_nd(x, {0, 1});
        weight = at::constant_pad_nd(weight, {0, 1});
    }
    if (x.stride(1) != 1 || x.stride(0) < x.size(1)) x = converted(x, x.scalar_type());
    const int64_t dense = weight.stride(1) == 1 ? 1 : 0, stride = weight.stride(1 - dense);
    const bool isPaired = !isBF16 || dense == 0 || stride % 2 == 0;
    if (weight.stride(dense) != 1 || !isPaired || stride < weight.size(dense)) weight = weight.contiguous();
    return {x, weight, x.size(1), weight.stride(1) == 1, false};
}

}  // namespace

bool hasPanels(const ProductTerm &term) {
    const auto &[x, weight] = term;
    const int64_t rows = x.size(0);
    const bool suits = rows >= kFewestRows || (rows > 0 && rows <= kVeryFewRows && weight.stride(0) == 1);
    return suits && hasTiles(x) && hasKernels(weight) && x.scalar_type() == weight.scalar_type() && x.size(1) > 0 &&
           weight.size(0) > 0;
}

void sumByPanels(const at::Tensor &result, const std::vector<ProductTerm> &given, const at::Tensor &bias) {
    RECORD_FUNCTION("graft::panels", {});
    TORCH_CHECK(!bias.defined() || (bias.is_cpu() && bias.dim() == 1 && bias.size(0) == result.size(1)), "a bias ",
                bias.sizes(), " for ", result.size(1), " outputs");
    std::vector<Arranged> terms;
    for (const auto &term : given) terms.push_back(arranged(term));
    const auto wide = bias.defined() ? bias.to(at::kFloat).contiguous() : at::Tensor();
    const float *added = wide.defined() ? wide.const_data_ptr<float>() : nullptr;
    const bool isBF16 = terms.front().x.scalar_type() == at::kBFloat16;
    if (!isBF16) Sum<float, float>(terms, added, result).run();
    else if (result.scalar_type() == at::kFloat) Sum<BF16, float>(terms, added, result).run();
    else Sum<BF16, BF16>(terms, added, result).run();
}

}  // namespace graft
