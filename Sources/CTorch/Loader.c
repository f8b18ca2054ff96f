// Finds and loads libgraft_torch on first use, so that a command that needs no tensors starts without LibTorch.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CTorch.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __APPLE__
#define SHIM_NAME "libgraft_torch.dylib"
#else
#define SHIM_NAME "libgraft_torch.so"
#endif

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const CTorchAPI *table = NULL;
static char shimPath[PATH_MAX] = "";
static char message[4096] = "";

static void adopt(CTorchTable get) {
    const CTorchAPI *candidate = get();
    if (candidate->abiVersion != CTORCH_ABI_VERSION) {
        snprintf(message, sizeof message,
                 "the engine %s speaks version %d of the interface and this program version %d: build both again "
                 "with 'make build'",
                 shimPath, candidate->abiVersion, CTORCH_ABI_VERSION);
        return;
    }
    table = candidate;
}

static bool try_path(const char *path) {
    if (access(path, R_OK) != 0) return false;
    snprintf(shimPath, sizeof shimPath, "%s", path);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(message, sizeof message, "the engine %s cannot be loaded: %s", path, dlerror());
        return true;
    }
    CTorchTable get = (CTorchTable)dlsym(handle, "graft_torch_table");
    if (!get) {
        snprintf(message, sizeof message, "%s is not Graft's engine: it has no graft_torch_table", path);
        return true;
    }
    adopt(get);
    return true;
}

/// LibTorch's OpenMP threads spin while they wait for each other. Where other programs want the processors too, that
/// costs several times the work itself, so they spin briefly and then sleep, unless the user says otherwise.
static void spin_briefly(void) {
    if (!getenv("OMP_WAIT_POLICY")) setenv("GOMP_SPINCOUNT", "1000", 0);
}

/// Weights go to large pages unless the user says otherwise: products read all of them in every pass, and small pages cost
/// a look-up every few rows.
static void ask_for_large_pages(void) { setenv("THP_MEM_ALLOC_ENABLE", "1", 0); }

static void load(void) {
    spin_briefly();
    ask_for_large_pages();
    const char *chosen = getenv("GRAFT_ENGINE");
    if (chosen && *chosen) {
        if (!try_path(chosen))
            snprintf(message, sizeof message, "GRAFT_ENGINE names %s, which cannot be read", chosen);
        return;
    }
    // A program that links the shim itself needs no search.
    CTorchTable linked = (CTorchTable)dlsym(RTLD_DEFAULT, "graft_torch_table");
    if (linked) {
        snprintf(shimPath, sizeof shimPath, "linked into the program");
        adopt(linked);
        return;
    }
    Dl_info info;
    char folder[PATH_MAX] = ".";
    if (dladdr((void *)&ctorch_load, &info) && info.dli_fname) {
        char resolved[PATH_MAX];
        const char *self = info.dli_fname;
        // dli_fname of the main program is argv[0], which may be a bare name found through PATH.
#ifdef __linux__
        ssize_t length = strchr(self, '/') ? -1 : readlink("/proc/self/exe", resolved, sizeof resolved - 1);
        if (length > 0) {
            resolved[length] = 0;
            self = resolved;
        }
#endif
        char real[PATH_MAX];
        if (realpath(self, real)) self = real;
        snprintf(folder, sizeof folder, "%s", self);
        char *slash = strrchr(folder, '/');
        if (slash) *slash = 0;
    }
    static const char *places[] = {"%s/" SHIM_NAME, "%s/../lib/" SHIM_NAME, "%s/../lib/graft/" SHIM_NAME};
    for (size_t i = 0; i < sizeof places / sizeof *places; ++i) {
        char path[PATH_MAX + 64];
        snprintf(path, sizeof path, places[i], folder);
        if (try_path(path)) return;
    }
    snprintf(message, sizeof message,
             "the engine " SHIM_NAME " was not found beside the program (in %s): run 'make build', or name it in "
             "GRAFT_ENGINE",
             folder);
}

const CTorchAPI *ctorch_load(const char **error) {
    pthread_once(&once, load);
    *error = table ? NULL : message;
    return table;
}

const char *ctorch_shim_path(void) { return *shimPath ? shimPath : NULL; }
