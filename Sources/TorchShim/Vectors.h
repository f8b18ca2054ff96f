// What the kernels compute with: plain loops over fp32, bf16 at their ends, which the compiler turns into vectors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>

// A function marked so is compiled for several instruction sets; the loader picks the best that the machine has.
#if defined(__x86_64__) && defined(__linux__)
#define GRAFT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRAFT_CLONES
#endif
// What such functions call has to become part of them.
#define GRAFT_INLINE static inline __attribute__((always_inline))

namespace graft {

/// The bits of a bfloat16 number. (LibTorch's own type has conversions that not every compiler turns into vectors.)
struct BF16 {
    uint16_t bits;
};

GRAFT_INLINE float fromBits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

GRAFT_INLINE uint32_t bitsOf(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

GRAFT_INLINE float load(float value) { return value; }
GRAFT_INLINE float load(BF16 value) { return fromBits(uint32_t(value.bits) << 16); }

GRAFT_INLINE void store(float &place, float value) { place = value; }
/// Rounds to the nearest, ties to even; NaN stays NaN.
GRAFT_INLINE void store(BF16 &place, float value) {
    const uint32_t bits = bitsOf(value);
    const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    const uint32_t nan = bits >> 16 | 0x40;
    place.bits = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

/// `e^x` within a unit in the last place or two; 0 below -87.
GRAFT_INLINE float exponential(float x) {
    const float bounded = x > 88.0f ? 88.0f : x;
    // x = n ln 2 + r; adding and taking off 1.5 * 2^23 rounds to an integer.
    const float n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    // Taylor's series: |r| < 0.347, so that what is left out is below 6e-9.
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    // Out of range (and NaN, which `sum` carries) the exponent is not used.
    const float safe = n > -126.0f ? n : -126.0f;
    const float power = fromBits(uint32_t(int32_t(safe) + 127) << 23);
    return x < -87.0f ? 0.0f : sum * power;
}

GRAFT_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

template <class Item>
Item *items(const at::Tensor &tensor) {
    return static_cast<Item *>(tensor.data_ptr());
}

/// Whether the kernels have a form for a tensor.
inline bool hasKernels(const at::Tensor &tensor) {
    return tensor.is_cpu() && tensor.layout() == at::kStrided &&
           (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

}  // namespace graft
