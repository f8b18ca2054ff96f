// What the shim's files share: handles, and the one channel for errors.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/variable.h>

#include <exception>
#include <string>

#include "CTorch.h"

namespace graft {

/// The message of the last failure on this thread.
std::string &lastError();

/// LibTorch's message without its C++ back trace.
std::string describe(const std::exception &error);

inline at::Tensor &tensor(CTTensor handle) { return *reinterpret_cast<at::Tensor *>(handle); }

inline CTTensor own(at::Tensor value) { return reinterpret_cast<CTTensor>(new at::Tensor(std::move(value))); }

/// "float32[2, 3]"
std::string shapeOf(const at::Tensor &value);

inline int32_t encode(const c10::Device &device) {
    return static_cast<int32_t>(device.type()) * 256 + device.index() + 1;
}

inline c10::Device decodeDevice(int64_t code) {
    return c10::Device(static_cast<c10::DeviceType>(code / 256), static_cast<c10::DeviceIndex>(code % 256 - 1));
}

/// The device, or an exception that says why it cannot be used.
c10::Device usableDevice(int64_t code);

/// Runs `body`; an exception becomes `failure` and a message.
template <class Result, class Body>
Result guarded(Result failure, Body body) noexcept {
    try {
        return body();
    } catch (const std::exception &error) {
        lastError() = describe(error);
    } catch (...) {
        lastError() = "an unknown C++ exception";
    }
    return failure;
}

// Dispatch.cpp
CTOperator findOperator(const char *name, const char *overload);
int32_t call(CTOperator op, const CTValue *arguments, int32_t count, CTValue *results, int32_t capacity);
void freeList(void *list);

// Autograd.cpp
int32_t backward(const CTTensor *roots, const CTTensor *gradients, int32_t count, bool retainGraph);
int32_t gradients(const CTTensor *outputs, const CTTensor *gradOutputs, int32_t outputCount, const CTTensor *inputs,
                  int32_t inputCount, bool retainGraph, bool createGraph, CTTensor *result);
int32_t attachFunction(const char *name, const CTTensor *outputs, int32_t outputCount, const CTTensor *inputs,
                       int32_t inputCount, CTBackward backward, CTRelease release, void *context,
                       CTTensor *attached);

// Profile.cpp
/// Counts memory that an operator asks for, while a profile is made.
void noteAllocation(size_t bytes);

// HeldMemory.cpp
/// Counts memory that tensors take and give back, while this thread's is watched.
void noteTaken(void *data, size_t bytes);
void noteReleased(void *data);

// BlockCache.cpp
void setKeepsBlocks(bool keeps);

// Machine.cpp
const char *version();
const char *cpuCapability();
const char *libraryPath();
int32_t threads();
void setThreads(int32_t count);
int32_t loadCUDA();
int32_t cudaDeviceCount();
int32_t synchronize(int32_t device);
int32_t deviceMemory(int32_t device, int64_t *allocated, int64_t *peak);
int32_t resetDevicePeak(int32_t device);
CTGenerator makeGenerator(int32_t device, uint64_t seed);
void freeGenerator(CTGenerator generator);

// ProcessGroup.cpp
const char *groupObstacle();
CTGroup openGroup(const CTGroupOptions *options);
int32_t groupSum(CTGroup group, CTTensor tensor);
int32_t groupBroadcast(CTGroup group, CTTensor tensor, int32_t root);
void groupAnnounce(CTGroup group, const char *reason);
char *groupVerdict(CTGroup group, bool waits);
void closeGroup(CTGroup group);

}  // namespace graft
