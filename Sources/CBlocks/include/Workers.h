// A few threads that work on one task together, and sleep between tasks.

#ifndef CBLOCKS_WORKERS_H
#define CBLOCKS_WORKERS_H

#include <stdatomic.h>

/// Where the threads of one task wait for each other. Zero it before the task.
typedef struct cblocks_barrier {
    atomic_uint arrived, generation;
} cblocks_barrier;

/// Waits until all `threads` threads of a task have come here.
void cblocks_wait(cblocks_barrier *barrier, int threads);

/// Part `thread` of `threads` of a task.
typedef void (*cblocks_task)(void *context, int thread, int threads);

/// Runs a task on at most `threads` threads, this one among them, and returns when all are done.
///
/// A task that finds the threads at work for somebody else runs on this thread alone.
void cblocks_run(int threads, cblocks_task task, void *context);

#endif
