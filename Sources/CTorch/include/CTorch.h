// The C face of the engine: plain structs and one table of functions, implemented over LibTorch by
// Sources/TorchShim and loaded on first use by Loader.c. Nothing here needs LibTorch's headers.
#ifndef CTORCH_H
#define CTORCH_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wnullability-completeness"
#pragma clang assume_nonnull begin
#else
#define _Nullable
#define _Nonnull
#endif

/// Raised with every incompatible change of `CTorchAPI`, so that a stale shim is refused instead of misread.
#define CTORCH_ABI_VERSION 5

/// One reference to a tensor (an owned `at::Tensor *`).
typedef struct CTTensorOpaque *CTTensor;
/// An operator of the dispatcher, kept for the life of the process.
typedef struct CTOperatorOpaque *CTOperator;
/// A random generator of LibTorch (an owned `at::Generator *`).
typedef struct CTGeneratorOpaque *CTGenerator;
/// The processes that work together, as one of them sees them.
typedef struct CTGroupOpaque *CTGroup;

/// What a `CTValue` holds. Lists are `count` items at `pointer`.
enum CTKind {
    CT_NONE = 0,
    CT_TENSOR = 1,     // pointer: CTTensor
    CT_INTEGER = 2,    // integer
    CT_REAL = 3,       // real
    CT_BOOL = 4,       // integer: 0 or 1
    CT_INTEGERS = 5,   // pointer: int64_t *
    CT_REALS = 6,      // pointer: double *
    CT_STRING = 7,     // pointer: char *, count bytes
    CT_TENSORS = 8,    // pointer: CTTensor *, NULL items stand for absent optional tensors
    CT_DEFAULT = 9,    // the schema's default value
    CT_DEVICE = 10,    // integer: device type * 256 + index + 1 (index -1: the current device)
    CT_GENERATOR = 11, // pointer: CTGenerator
};

/// An argument or a result of an operator.
typedef struct CTValue {
    int32_t kind;
    int64_t integer;
    double real;
    void *_Nullable pointer;
    int64_t count;
} CTValue;

/// Backward of a function defined outside C++: fills `gradInputs` (NULL: no gradient) with owned references.
/// Returns NULL, or an error message allocated with malloc.
typedef char *_Nullable (*CTBackward)(
    void *context, const CTTensor _Nullable *_Nonnull gradOutputs, int32_t outputCount,
    CTTensor _Nullable *_Nonnull gradInputs, int32_t inputCount);
/// Releases an owner's reference.
typedef void (*CTRelease)(void *context);
/// Writes rows `first` up to `last` of a packed matrix to `out`, as the dtype of that code, float32 or bfloat16. Several
/// threads call it at once. Returns 0, or a negative number.
typedef int32_t (*CTUnpack)(void *context, int64_t first, int64_t last, int32_t dtype, void *out);

/// How processes find each other.
typedef struct CTGroupOptions {
    const char *host;
    int32_t port;
    int32_t rank;
    int32_t size;
    /// Whether this process answers at `port`; else another one does, or the launcher's agent.
    bool isServer;
    /// Keeps the keys of groups apart that meet at one port.
    const char *prefix;
    /// How long to wait for the others, in an exchange and at the start.
    int64_t timeoutMilliseconds;
    /// After how long without a sign of life a process counts as lost.
    int64_t silenceMilliseconds;
} CTGroupOptions;

/// The engine. Functions that can fail return NULL or a negative number; `lastError` then says why.
typedef struct CTorchAPI {
    int32_t abiVersion;
    const char *_Nonnull (*_Nonnull lastError)(void);

    // Operators, through the boxed dispatcher.
    CTOperator _Nullable (*_Nonnull findOperator)(const char *name, const char *overload);
    /// Returns the number of results written, at most `capacity`.
    int32_t (*_Nonnull call)(CTOperator op, const CTValue *arguments, int32_t count, CTValue *results, int32_t capacity);
    /// Frees the lists that results point to (not the tensors in them).
    void (*_Nonnull freeList)(void *_Nullable list);

    // Tensors.
    CTTensor _Nullable (*_Nonnull fromBlob)(
        void *data, const int64_t *sizes, int32_t dim, int32_t dtype, CTRelease release, void *owner);
    /// A stand-in for a matrix that is unpacked where it is multiplied. Takes `context` over, also when it fails.
    CTTensor _Nullable (*_Nonnull packedMatrix)(
        int64_t rows, int64_t columns, int32_t dtype, CTUnpack unpack, CTRelease release, void *context);
    CTTensor _Nonnull (*_Nonnull retain)(CTTensor _Nonnull tensor);
    void (*_Nonnull release)(CTTensor tensor);
    int32_t (*_Nonnull dim)(CTTensor tensor);
    void (*_Nonnull sizes)(CTTensor tensor, int64_t *sizes);
    void (*_Nonnull strides)(CTTensor tensor, int64_t *strides);
    int32_t (*_Nonnull dtype)(CTTensor tensor);
    int32_t (*_Nonnull device)(CTTensor tensor);
    bool (*_Nonnull isContiguous)(CTTensor tensor);
    bool (*_Nonnull sharesStorage)(CTTensor a, CTTensor b);
    void *_Nullable (*_Nonnull data)(CTTensor tensor);

    // Autograd.
    bool (*_Nonnull requiresGrad)(CTTensor tensor);
    int32_t (*_Nonnull setRequiresGrad)(CTTensor tensor, bool value);
    CTTensor _Nullable (*_Nonnull grad)(CTTensor tensor);
    int32_t (*_Nonnull setGrad)(CTTensor tensor, CTTensor _Nullable grad);
    bool (*_Nonnull gradEnabled)(void);
    void (*_Nonnull setGradEnabled)(bool value);
    int32_t (*_Nonnull backward)(const CTTensor *roots, const CTTensor _Nullable *_Nonnull gradients, int32_t count, bool retainGraph);
    /// Fills `result` with one owned reference (or NULL where an input has no influence) for each input.
    int32_t (*_Nonnull gradients)(
        const CTTensor *outputs, const CTTensor _Nullable *_Nonnull gradOutputs, int32_t outputCount, const CTTensor *inputs,
        int32_t inputCount, bool retainGraph, bool createGraph, CTTensor _Nullable *_Nonnull result);
    /// Fills `attached` with views of `outputs`, computed without gradient, that depend on `inputs` through `backward`.
    /// Takes `context` over, also when it fails.
    int32_t (*_Nonnull attachFunction)(
        const char *name, const CTTensor *outputs, int32_t outputCount, const CTTensor *inputs, int32_t inputCount,
        CTBackward backward, CTRelease release, void *context, CTTensor _Nullable *_Nonnull attached);

    // Random generators.
    CTGenerator _Nullable (*_Nonnull makeGenerator)(int32_t device, uint64_t seed);
    void (*_Nonnull freeGenerator)(CTGenerator generator);

    // The machine.
    const char *_Nonnull (*_Nonnull version)(void);
    const char *_Nonnull (*_Nonnull cpuCapability)(void);
    const char *_Nonnull (*_Nonnull libraryPath)(void);
    int32_t (*_Nonnull threads)(void);
    void (*_Nonnull setThreads)(int32_t count);
    /// Whether LibTorch's CUDA library, looked for beside libtorch_cpu, is loaded; 1: yes, 0: not there, -1: an error.
    int32_t (*_Nonnull loadCUDA)(void);
    int32_t (*_Nonnull cudaDeviceCount)(void);
    int32_t (*_Nonnull synchronize)(int32_t device);
    /// Bytes held by tensors on an accelerator: now, and the most since the last reset.
    int32_t (*_Nonnull deviceMemory)(int32_t device, int64_t *allocated, int64_t *peak);
    int32_t (*_Nonnull resetDevicePeak)(int32_t device);
    /// Whether large blocks of main memory that tensors give up are kept for the next tensors of their size.
    void (*_Nonnull setKeepsBlocks)(bool keeps);

    // Process groups. Every process of a group makes the same calls in the same order.
    /// NULL where processes can work together, else why not.
    const char *_Nullable (*_Nonnull groupObstacle)(void);
    CTGroup _Nullable (*_Nonnull openGroup)(const CTGroupOptions *options);
    /// Adds up the tensors of all processes, in place.
    int32_t (*_Nonnull groupSum)(CTGroup group, CTTensor tensor);
    /// Copies the tensor of the process `root` into those of the others.
    int32_t (*_Nonnull groupBroadcast)(CTGroup group, CTTensor tensor, int32_t root);
    /// Tells the others that this process ends, and why.
    void (*_Nonnull groupAnnounce)(CTGroup group, const char *reason);
    /// Why the group broke: "lost RANK[,RANK ...]", "ended RANK REASON" or "store"; empty where it did not. After a
    /// failed exchange it waits until that is known. The caller frees it with `freeList`.
    char *_Nullable (*_Nonnull groupVerdict)(CTGroup group, bool waits);
    /// Leaves the group; after a failure without the others.
    void (*_Nonnull closeGroup)(CTGroup group);
} CTorchAPI;

/// Loads the engine once and returns its table, or NULL with a sentence in `*error` (static storage).
const CTorchAPI *_Nullable ctorch_load(const char *_Nullable *_Nonnull error);
/// The path of the shim that was loaded, or NULL.
const char *_Nullable ctorch_shim_path(void);

/// The one symbol that the shim exports.
typedef const CTorchAPI *_Nonnull (*CTorchTable)(void);

#if defined(__clang__)
#pragma clang assume_nonnull end
#pragma clang diagnostic pop
#endif

#ifdef __cplusplus
}
#endif
#endif
