#include "Workers.h"

#include <pthread.h>
#include <sched.h>

// Phases of a task take some ten microseconds, so threads spin that long before they let others run.
enum { MOST_WORKERS = 256, SPINS = 4000, IDLE_SPINS = 2000 };

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_while_equal(atomic_uint *value, unsigned old) {
    for (int spin = 0; atomic_load_explicit(value, memory_order_acquire) == old; spin++) {
        if (spin < SPINS) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
}

void cblocks_wait(cblocks_barrier *barrier, int threads) {
    if (threads == 1) return;
    unsigned generation = atomic_load_explicit(&barrier->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == (unsigned)threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
        return;
    }
    wait_while_equal(&barrier->generation, generation);
}

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_uint task_number, unfinished;
static int workers, threads_of_task;
static cblocks_task current;
static void *current_context;

// Waits for the task after `done`: a moment awake, since tasks often follow each other, then asleep.
static void await_task(unsigned done) {
    for (int spin = 0; spin < IDLE_SPINS; spin++) {
        if (atomic_load_explicit(&task_number, memory_order_acquire) != done) return;
        pause_briefly();
    }
    pthread_mutex_lock(&lock);
    while (atomic_load_explicit(&task_number, memory_order_acquire) == done) pthread_cond_wait(&wake, &lock);
    pthread_mutex_unlock(&lock);
}

// A worker's thread number in every task, and the last task before it was hired.
static struct hired {
    int thread;
    unsigned done;
} hired[MOST_WORKERS];

// All workers answer each task, so that none misses one.
static void *work(void *context) {
    struct hired self = *(struct hired *)context;
    for (;;) {
        await_task(self.done++);
        if (self.thread < threads_of_task) current(current_context, self.thread, threads_of_task);
        atomic_fetch_sub_explicit(&unfinished, 1, memory_order_release);
    }
    return NULL;
}

// Brings the workers to a number, between two tasks.
static void hire(int wanted) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; workers < wanted && workers < MOST_WORKERS; workers++) {
        hired[workers] = (struct hired){workers + 1, atomic_load(&task_number)};
        if (pthread_create(&thread, &attributes, work, &hired[workers]) != 0) break;
    }
    pthread_attr_destroy(&attributes);
}

void cblocks_run(int threads, cblocks_task task, void *context) {
    if (threads <= 1 || pthread_mutex_trylock(&in_use) != 0) return task(context, 0, 1);
    hire(threads - 1);
    if (threads > workers + 1) threads = workers + 1;
    if (threads > 1) {
        current = task;
        current_context = context;
        threads_of_task = threads;
        atomic_store_explicit(&unfinished, (unsigned)workers, memory_order_relaxed);
        pthread_mutex_lock(&lock);
        atomic_fetch_add_explicit(&task_number, 1, memory_order_release);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    task(context, 0, threads);
    for (int spin = 0; threads > 1 && atomic_load_explicit(&unfinished, memory_order_acquire) != 0; spin++) {
        if (spin < SPINS) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
    pthread_mutex_unlock(&in_use);
}
