// Backward passes, and autograd functions whose backward is a C function pointer.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <cstdlib>

#include "Shim.h"

namespace graft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What a function keeps between forward and backward; its end releases the caller's context.
struct Saved : torch::CustomClassHolder {
    std::string name;
    CTBackward backward = nullptr;
    CTRelease release = nullptr;
    void *context = nullptr;
    std::vector<std::vector<int64_t>> inputSizes;
    variable_list outputs;  // only until forward has returned them

    void free() {
        if (context) release(context);
        context = nullptr;
    }
    ~Saved() override { free(); }
};

variable_list collect(const CTTensor *handles, int32_t count) {
    variable_list list;
    list.reserve(count);
    for (int32_t i = 0; i < count; ++i) list.push_back(handles[i] ? tensor(handles[i]) : at::Tensor());
    return list;
}

struct ForeignFunction : torch::autograd::Function<ForeignFunction> {
    static variable_list forward(AutogradContext *context, const c10::intrusive_ptr<Saved> &saved,
                                 at::TensorList /* inputs: only their edges matter */) {
        context->saved_data["saved"] = c10::IValue::make_capsule(saved);
        context->set_materialize_grads(false);  // an output without influence has no gradient, not one of zeros
        return std::move(saved->outputs);
    }

    static variable_list backward(AutogradContext *context, variable_list gradOutputs) {
        auto saved = c10::static_intrusive_pointer_cast<Saved>(context->saved_data["saved"].toCapsule());
        TORCH_CHECK(saved->context, saved->name,
                    ": backward a second time, but what it saved was freed after the first; retain the graph");
        std::vector<CTTensor> outgoing, incoming(saved->inputSizes.size(), nullptr);
        for (auto &grad : gradOutputs) outgoing.push_back(grad.defined() ? own(grad) : nullptr);
        char *failure = saved->backward(saved->context, outgoing.data(), static_cast<int32_t>(outgoing.size()),
                                        incoming.data(), static_cast<int32_t>(incoming.size()));
        for (auto handle : outgoing) delete reinterpret_cast<at::Tensor *>(handle);
        variable_list result(1);  // the place of `saved`, which has no gradient
        for (auto handle : incoming) {
            result.push_back(handle ? tensor(handle) : at::Tensor());
            delete reinterpret_cast<at::Tensor *>(handle);
        }
        if (!torch::autograd::get_current_graph_task_keep_graph()) saved->free();
        if (failure) {
            std::string message = saved->name + " (backward): " + failure;
            std::free(failure);
            TORCH_CHECK(false, message);
        }
        for (size_t i = 0; i < saved->inputSizes.size(); ++i)
            TORCH_CHECK(!result[i + 1].defined() || result[i + 1].sizes() == saved->inputSizes[i], saved->name,
                        " (backward): gradient ", i, " is ", result[i + 1].sizes(), ", but the input was ",
                        at::IntArrayRef(saved->inputSizes[i]));
        return result;
    }
};

}  // namespace

int32_t backward(const CTTensor *roots, const CTTensor *gradients, int32_t count, bool retainGraph) {
    return guarded<int32_t>(-1, [&] {
        torch::autograd::backward(collect(roots, count), collect(gradients, count), retainGraph);
        return 0;
    });
}

int32_t gradients(const CTTensor *outputs, const CTTensor *gradOutputs, int32_t outputCount, const CTTensor *inputs,
                  int32_t inputCount, bool retainGraph, bool createGraph, CTTensor *result) {
    return guarded<int32_t>(-1, [&] {
        auto found = torch::autograd::grad(collect(outputs, outputCount), collect(inputs, inputCount),
                                           collect(gradOutputs, outputCount), retainGraph, createGraph,
                                           /*allow_unused=*/true);
        for (int32_t i = 0; i < inputCount; ++i) result[i] = found[i].defined() ? own(found[i]) : nullptr;
        return 0;
    });
}

int32_t attachFunction(const char *name, const CTTensor *outputs, int32_t outputCount, const CTTensor *inputs,
                       int32_t inputCount, CTBackward backward, CTRelease release, void *context,
                       CTTensor *attached) {
    auto saved = c10::make_intrusive<Saved>();
    saved->name = name;
    saved->backward = backward;
    saved->release = release;
    saved->context = context;
    return guarded<int32_t>(-1, [&] {
        auto list = collect(inputs, inputCount);
        for (const auto &input : list) saved->inputSizes.push_back(input.sizes().vec());
        // The context may hold an output for its backward. Were that the very tensor that then points to this
        // function, the two would keep each other alive; so another view of the same memory is attached.
        for (int32_t i = 0; i < outputCount; ++i) saved->outputs.push_back(tensor(outputs[i]).detach());
        auto results = ForeignFunction::apply(saved, at::TensorList(list));
        for (int32_t i = 0; i < outputCount; ++i) attached[i] = own(results[i]);
        return 0;
    });
}

}  // namespace graft
