// Frozen matrices that are unpacked for one product and forgotten.
#include "Packed.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <atomic>

#include "Parallel.h"
#include "Shim.h"

namespace graft {
namespace {

/// What lies behind a stand-in instead of its elements.
struct Packed {
    uint32_t nothing = 0x7FC07FC0;  // NaN as fp32 and, either half, as bf16
    int64_t rows, columns;
    CTUnpack unpack;
    CTRelease release;
    void *context;

    ~Packed() { release(context); }
};

void deletePacked(void *packed) { delete static_cast<Packed *>(packed); }

const Packed *packedBehind(const at::Tensor &tensor) {
    if (!tensor.has_storage()) return nullptr;
    return tensor.storage().data_ptr().cast_context<Packed>(deletePacked);
}

/// Fewer values are unpacked sooner than threads wake up.
constexpr int64_t kFewestValues = 1 << 15;

at::Tensor unpackedOperator(const at::Tensor &matrix, at::ScalarType dtype) { return unpacked(matrix, dtype); }

}  // namespace

CTTensor packedMatrix(int64_t rows, int64_t columns, int32_t dtype, CTUnpack unpack, CTRelease release, void *context) {
    auto packed = std::unique_ptr<Packed>(
        new Packed{.rows = rows, .columns = columns, .unpack = unpack, .release = release, .context = context});
    return guarded<CTTensor>(nullptr, [&] {
        auto *behind = packed.release();
        c10::DataPtr data(&behind->nothing, behind, deletePacked, at::kCPU);
        c10::Storage storage(c10::Storage::use_byte_size_t(), sizeof behind->nothing, std::move(data), nullptr, false);
        auto stand_in = at::detail::make_tensor<c10::TensorImpl>(
            std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
            c10::scalarTypeToTypeMeta(static_cast<at::ScalarType>(dtype)));
        stand_in.unsafeGetTensorImpl()->set_sizes_and_strides(at::IntArrayRef({rows, columns}), at::IntArrayRef({0, 0}));
        return own(stand_in);
    });
}

at::Tensor unpacked(const at::Tensor &matrix, at::ScalarType dtype) {
    const auto *packed = packedBehind(matrix);
    if (!packed) return matrix.to(dtype);
    TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "packed matrices are unpacked as float32 or bfloat16");
    TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == packed->rows && matrix.size(1) == packed->columns,
                "a part of a packed matrix was asked for its values");
    at::AutoDispatchBelowADInplaceOrView unrecorded;
    auto values = at::empty({packed->rows, packed->columns}, at::TensorOptions().dtype(dtype));
    auto *memory = static_cast<char *>(values.data_ptr());
    const int64_t width = packed->columns * values.element_size();
    std::atomic<bool> failed = false;
    inParallel(packed->rows, std::max<int64_t>(1, kFewestValues / std::max<int64_t>(1, packed->columns)),
               [&](int64_t first, int64_t last) {
                   const auto status =
                       packed->unpack(packed->context, first, last, static_cast<int32_t>(dtype), memory + first * width);
                   if (status != 0) failed = true;
               });
    TORCH_CHECK(!failed, "a packed matrix ", matrix.sizes(), " cannot be unpacked");
    return values;
}

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("unpacked(Tensor matrix, ScalarType dtype) -> Tensor", unpackedOperator);
}

}  // namespace graft
