// What operators take: their own time and the memory that they ask for, counted between two calls.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <sstream>

#include "Shim.h"

namespace graft {
namespace {

using Clock = std::chrono::steady_clock;

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

struct Event {
    std::string name;
    uint64_t thread;
    int64_t begin, end;
};

struct Sum {
    int64_t calls = 0, nanoseconds = 0, bytes = 0;
};

struct Recording {
    std::mutex mutex;
    std::vector<Event> events;
    std::map<std::string, Sum> sums;
};

Recording &recording() {
    static auto *recording = new Recording;
    return *recording;
}

std::atomic<bool> isRecording{false};
at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
thread_local int64_t allocated = 0;

/// An operator under way, above the one that called it.
struct Running : at::ObserverContext {
    int64_t begin, allocatedBefore;
    int64_t innerTime = 0, innerBytes = 0;
    Running *caller;
};
thread_local Running *innermost = nullptr;

std::unique_ptr<at::ObserverContext> opened(const at::RecordFunction &) {
    auto running = std::make_unique<Running>();
    running->caller = innermost;
    innermost = running.get();
    running->allocatedBefore = allocated;
    running->begin = now();
    return running;
}

void closed(const at::RecordFunction &function, at::ObserverContext *context) {
    auto running = static_cast<Running *>(context);
    if (!running) return;
    const int64_t end = now(), time = end - running->begin, bytes = allocated - running->allocatedBefore;
    innermost = running->caller;
    // Memory counts for the operator that has it made for itself.
    const bool onlyAllocates = std::string_view(function.name()).starts_with("aten::empty") && innermost;
    if (innermost) {
        innermost->innerTime += time;
        if (!onlyAllocates) innermost->innerBytes += bytes;
    }
    std::lock_guard<std::mutex> guard(recording().mutex);
    recording().events.push_back({function.name(), function.threadId(), running->begin, end});
    auto &sum = recording().sums[function.name()];
    sum.calls += 1;
    sum.nanoseconds += time - running->innerTime;
    if (!onlyAllocates) sum.bytes += bytes - running->innerBytes;
}

void beginProfile() {
    TORCH_CHECK(!isRecording.exchange(true), "a profile is being made already");
    {
        std::lock_guard<std::mutex> guard(recording().mutex);
        recording().events.clear();
        recording().sums.clear();
    }
    handle = at::addGlobalCallback(at::RecordFunctionCallback(opened, closed)
                                       .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION,
                                                at::RecordScope::USER_SCOPE}));
}

/// Text as a tensor of its bytes.
at::Tensor bytesOf(const std::string &text) {
    auto result = at::empty({int64_t(text.size())}, at::kByte);
    std::copy(text.begin(), text.end(), result.data_ptr<uint8_t>());
    return result;
}

std::string quoted(const std::string &text) {
    std::string result = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        result += c < 0x20 ? ' ' : char(c);
    }
    return result + '"';
}

/// Two texts: a line `name, calls, nanoseconds, bytes` an operator, tab-separated; and the events for Chrome's viewer.
std::tuple<at::Tensor, at::Tensor> endProfile() {
    TORCH_CHECK(isRecording.exchange(false), "no profile is being made");
    at::removeCallback(handle);
    std::lock_guard<std::mutex> guard(recording().mutex);
    std::ostringstream lines, trace;
    for (const auto &[name, sum] : recording().sums)
        lines << name << '\t' << sum.calls << '\t' << sum.nanoseconds << '\t' << sum.bytes << '\n';
    const auto &events = recording().events;
    int64_t start = events.empty() ? 0 : events.front().begin;
    for (const auto &event : events) start = std::min(start, event.begin);
    trace << std::fixed;
    trace.precision(3);
    trace << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
    for (size_t i = 0; i < events.size(); ++i)
        trace << (i ? ",\n" : "\n") << "{\"ph\":\"X\",\"pid\":1,\"tid\":" << events[i].thread
              << ",\"ts\":" << double(events[i].begin - start) / 1e3
              << ",\"dur\":" << double(events[i].end - events[i].begin) / 1e3 << ",\"name\":" << quoted(events[i].name)
              << '}';
    trace << "\n]}\n";
    return {bytesOf(lines.str()), bytesOf(trace.str())};
}

}  // namespace

void noteAllocation(size_t bytes) {
    if (isRecording) allocated += int64_t(bytes);
}

TORCH_LIBRARY_FRAGMENT(graft, library) {
    library.def("profile_begin() -> ()", beginProfile);
    library.def("profile_end() -> (Tensor, Tensor)", endProfile);
}

}  // namespace graft
