// Groups of processes: LibTorch's store and its Gloo backend, with a watch that tells who was lost.
#include "Shim.h"

#if __has_include(<gloo/context.h>)
#define GRAFT_HAS_GLOO 1
#define USE_DISTRIBUTED
#define USE_C10D_GLOO
#endif

#ifdef GRAFT_HAS_GLOO
#include <c10/util/Logging.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace graft {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using StorePointer = c10::intrusive_ptr<c10d::Store>;

/// Between two signs of life; shorter once something has gone wrong.
constexpr milliseconds beatInterval{500}, alarmedInterval{100};
/// After how long without a sign of life a process counts as lost, once an exchange has failed.
constexpr milliseconds alarmedSilence{3000};
/// Between the two looks at the signs of life of all, when one of them was missing.
constexpr milliseconds recount{1200};

std::string beatKey(int rank) { return "beat/" + std::to_string(rank); }

std::string listed(const std::vector<int> &ranks) {
    std::ostringstream text;
    for (size_t i = 0; i < ranks.size(); ++i) text << (i ? "," : "") << ranks[i];
    return text.str();
}

int64_t milliseconds_now() {
    return std::chrono::duration_cast<milliseconds>(Clock::now().time_since_epoch()).count();
}

/// LibTorch would report every broken connection with pages of stack; here each becomes an error with one sentence.
void silenceLog() {
#ifndef C10_USE_GLOG
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
#endif
}

/// One process's part of a group.
///
/// Gloo tells that a connection broke, not whose. So a thread of each process leaves a sign of life in the store, beside
/// the number of the exchange that the process is in, and looks after that of the next rank. The first to find out
/// what happened writes the verdict, which all others read: every process names the same culprit.
class Group {
public:
    explicit Group(const CTGroupOptions &options)
        : rank_(options.rank), size_(options.size), isServer_(options.isServer),
          timeout_(options.timeoutMilliseconds), silence_(options.silenceMilliseconds) {
        silenceLog();
        store_ = connect(options, options.isServer);
        meet(options.host);
        gloo_ = makeGloo();
        watchStore_ = connect(options, false);
        lastRound_ = milliseconds_now();
        watch_ = std::thread([this] { watch(); });
    }

    ~Group() {
        stopWatching();
        if (isBroken_) {
            linger();
            // Its threads may wait for processes that are gone; the memory is given back with the process.
            (void)gloo_.release();
        } else {
            sayGoodbye();
        }
    }

    void sum(at::Tensor tensor) {
        exchange([&] {
            std::vector<at::Tensor> list{tensor};
            return gloo_->allreduce(list);
        });
    }

    void broadcast(at::Tensor tensor, int root) {
        exchange([&] {
            std::vector<at::Tensor> list{tensor};
            c10d::BroadcastOptions options;
            options.rootRank = root;
            return gloo_->broadcast(list, options);
        });
    }

    void announce(const std::string &reason) {
        isBroken_ = true;
        wake_.notify_all();
        try {
            propose(store_, "ended " + std::to_string(rank_) + " " + reason);
        } catch (const std::exception &) {
            // Nobody can be told where the store is gone; they notice that themselves.
        }
    }

    std::string verdict(bool waits) {
        std::unique_lock lock(mutex_);
        auto longest = alarmedSilence + recount + milliseconds(5000);
        if (waits) concluded_.wait_for(lock, longest, [&] { return !verdict_.empty(); });
        return verdict_;
    }

private:
    const int rank_, size_;
    const bool isServer_;
    const milliseconds timeout_, silence_;
    StorePointer store_, watchStore_;
    c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
    std::thread watch_;
    std::atomic<bool> isBroken_{false};
    /// How many exchanges this process has begun.
    std::atomic<int64_t> exchanges_{0};
    /// How many signs of life this process has given; the watch's own.
    int64_t signs_ = 0;
    /// When the watch last heard from the store.
    std::atomic<int64_t> lastRound_{0};
    std::mutex mutex_;
    std::condition_variable wake_, concluded_;
    bool isStopping_ = false;
    std::string verdict_;

    // MARK: Beginning

    StorePointer connect(const CTGroupOptions &options, bool isServer) {
        c10d::TCPStoreOptions store;
        store.port = static_cast<uint16_t>(options.port);
        store.isServer = isServer;
        store.waitWorkers = false;
        store.timeout = timeout_;
        // A process that opens several groups serves them all.
        store.multiTenant = isServer;
        const char *libuv = std::getenv("USE_LIBUV");
        store.useLibUV = !libuv || std::strcmp(libuv, "0") != 0;
        return c10::make_intrusive<c10d::PrefixStore>(
            options.prefix, c10::make_intrusive<c10d::TCPStore>(options.host, store));
    }

    static bool isLoopback(const std::string &host) {
        return host == "localhost" || host == "127.0.0.1" || host == "::1";
    }

    /// Waits until every process has come, so that those that do not can be named.
    void meet(const std::string &host) {
        // Some launchers tell rank 0 alone that it is itself the machine where all meet.
        if (!isLoopback(host)) store_->set("away", "1");
        std::vector<std::string> keys;
        for (int rank = 0; rank < size_; ++rank) keys.push_back(beatKey(rank));
        store_->set(keys[rank_], "0 0");
        try {
            store_->wait(keys, timeout_);
        } catch (const std::exception &error) {
            std::vector<int> missing;
            for (int rank = 0; rank < size_; ++rank)
                if (!store_->check({keys[rank]})) missing.push_back(rank);
            TORCH_CHECK(missing.empty(), "of ", size_, " processes these ranks have not come within ",
                        timeout_.count() / 1000, " s: ", listed(missing));
            throw;
        }
    }

    c10::intrusive_ptr<c10d::ProcessGroupGloo> makeGloo() {
        // Later than this group's own end of patience, which names those that are behind.
        auto options = c10d::ProcessGroupGloo::Options::create(2 * timeout_ + milliseconds(30000));
        const char *interfaces = std::getenv("GLOO_SOCKET_IFNAME");
        if (interfaces && *interfaces) {
            std::istringstream names(interfaces);
            for (std::string name; std::getline(names, name, ',');)
                options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
        } else if (!store_->check({"away"})) {
            // Processes that all meet at the loopback address are on one machine.
            options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
        } else {
            options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
        }
        options->threads = 2 * static_cast<int>(options->devices.size());
        return c10::make_intrusive<c10d::ProcessGroupGloo>(
            c10::make_intrusive<c10d::PrefixStore>("gloo", store_), rank_, size_, options);
    }

    // MARK: Exchanges

    template <class Start>
    void exchange(Start start) {
        TORCH_CHECK(!isBroken_, "the group of processes has broken");
        ++exchanges_;
        try {
            wait(start());
        } catch (const std::exception &) {
            isBroken_ = true;
            wake_.notify_all();
            throw;
        }
    }

    void wait(const c10::intrusive_ptr<c10d::Work> &work) {
        auto deadline = Clock::now() + timeout_;
        while (!work->isCompleted()) {
            TORCH_CHECK(verdict(false).empty(), "the group of processes has broken");
            if (milliseconds_now() - lastRound_ > silence_.count()) conclude("store");
            if (Clock::now() > deadline) giveUp();
            try {
                work->wait(beatInterval);
            } catch (const std::exception &) {
                if (work->isCompleted()) throw;
            }
        }
        work->wait();
    }

    /// Names those that are behind.
    void giveUp() {
        std::vector<int> slow;
        auto beats = allBeats(store_);
        for (int rank = 0; rank < size_; ++rank) {
            auto space = beats[rank].find(' ');
            auto count = space == std::string::npos ? 0 : std::atoll(beats[rank].c_str() + space);
            if (rank != rank_ && count < exchanges_) slow.push_back(rank);
        }
        propose(store_, "slow " + (slow.empty() ? std::to_string(rank_) : listed(slow)));
        TORCH_CHECK(false, "an exchange did not end within ", timeout_.count() / 1000, " s");
    }

    // MARK: Watching

    void watch() {
        auto next = beatKey((rank_ + 1) % size_);
        std::string last;
        auto seen = Clock::now();
        while (true) {
            bool isAlarmed = isBroken_;
            if (pause(isAlarmed)) return;
            try {
                giveSign();
                if (watchStore_->check({"verdict"})) {
                    auto text = watchStore_->get_to_str("verdict");
                    watchStore_->add("heard", 1);
                    return conclude(text);
                }
                auto beat = watchStore_->get_to_str(next);
                lastRound_ = milliseconds_now();
                if (beat != last) {
                    last = beat;
                    seen = Clock::now();
                } else if (Clock::now() - seen > (isAlarmed ? std::min(alarmedSilence, silence_) : silence_)) {
                    nameLost();
                }
            } catch (const std::exception &) {
                return conclude("store");
            }
        }
    }

    void giveSign() {
        watchStore_->set(beatKey(rank_), std::to_string(++signs_) + " " + std::to_string(exchanges_));
    }

    /// Until the next sign of life is due; true at the end.
    bool pause(bool isAlarmed) {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, isAlarmed ? alarmedInterval : beatInterval,
                       [&] { return isStopping_ || isBroken_ != isAlarmed; });
        return isStopping_;
    }

    void nameLost() {
        auto before = allBeats(watchStore_);
        for (auto end = Clock::now() + recount; Clock::now() < end; giveSign())
            std::this_thread::sleep_for(alarmedInterval);
        auto after = allBeats(watchStore_);
        std::vector<int> lost;
        for (int rank = 0; rank < size_; ++rank)
            if (rank != rank_ && before[rank] == after[rank]) lost.push_back(rank);
        if (!lost.empty()) propose(watchStore_, "lost " + listed(lost));
    }

    std::vector<std::string> allBeats(const StorePointer &store) {
        std::vector<std::string> keys, beats;
        for (int rank = 0; rank < size_; ++rank) keys.push_back(beatKey(rank));
        for (const auto &bytes : store->multiGet(keys)) beats.emplace_back(bytes.begin(), bytes.end());
        return beats;
    }

    /// The first proposal of any process is the verdict.
    static void propose(const StorePointer &store, const std::string &text) { store->compareSet("verdict", "", text); }

    void conclude(const std::string &text) {
        {
            std::lock_guard lock(mutex_);
            if (verdict_.empty()) verdict_ = text;
        }
        isBroken_ = true;
        concluded_.notify_all();
    }

    // MARK: Ending

    void stopWatching() {
        // A broken group's watch ends by itself, once the verdict is known.
        if (isBroken_) verdict(true);
        {
            std::lock_guard lock(mutex_);
            isStopping_ = true;
        }
        wake_.notify_all();
        if (watch_.joinable()) watch_.join();
    }

    /// The process that holds the store stays until the others no longer need it.
    void sayGoodbye() {
        try {
            if (rank_ != 0) {
                store_->add("left", 1);
            } else {
                waitFor("left", size_ - 1, milliseconds(10000));
            }
        } catch (const std::exception &) {
            // Who is gone needs no goodbye.
        }
    }

    /// The same where some may be gone.
    void linger() {
        try {
            if (isServer_) waitFor("heard", size_, beatInterval + milliseconds(1500));
        } catch (const std::exception &) {
        }
    }

    void waitFor(const std::string &key, int64_t count, milliseconds longest) {
        auto deadline = Clock::now() + longest;
        while (store_->add(key, 0) < count && Clock::now() < deadline)
            std::this_thread::sleep_for(milliseconds(5));
    }
};

Group &group(CTGroup handle) { return *reinterpret_cast<Group *>(handle); }

}  // namespace

const char *groupObstacle() { return nullptr; }

CTGroup openGroup(const CTGroupOptions *options) {
    return guarded<CTGroup>(nullptr, [&] { return reinterpret_cast<CTGroup>(new Group(*options)); });
}

int32_t groupSum(CTGroup handle, CTTensor value) {
    return guarded<int32_t>(-1, [&] {
        group(handle).sum(tensor(value));
        return 0;
    });
}

int32_t groupBroadcast(CTGroup handle, CTTensor value, int32_t root) {
    return guarded<int32_t>(-1, [&] {
        group(handle).broadcast(tensor(value), root);
        return 0;
    });
}

void groupAnnounce(CTGroup handle, const char *reason) { group(handle).announce(reason); }

char *groupVerdict(CTGroup handle, bool waits) {
    return guarded<char *>(nullptr, [&] { return ::strdup(group(handle).verdict(waits).c_str()); });
}

void closeGroup(CTGroup handle) {
    guarded<int32_t>(-1, [&] {
        delete &group(handle);
        return 0;
    });
}

}  // namespace graft

#else

namespace graft {
namespace {

const char *const obstacle =
    "the engine was built without gloo's headers, so it cannot train in several processes: install Debian's "
    "libgloo-dev and run 'make engine'";

}  // namespace

const char *groupObstacle() { return obstacle; }

CTGroup openGroup(const CTGroupOptions *) {
    lastError() = obstacle;
    return nullptr;
}

int32_t groupSum(CTGroup, CTTensor) { return -1; }

int32_t groupBroadcast(CTGroup, CTTensor, int32_t) { return -1; }

void groupAnnounce(CTGroup, const char *) {}

char *groupVerdict(CTGroup, bool) { return nullptr; }

void closeGroup(CTGroup) {}

}  // namespace graft

#endif
