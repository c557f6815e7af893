/* loop.h - one thread, one io_uring: everything that happens in a node happens here.
 *
 * An operation is a struct loop_op that stays where it is until its `done` has been called; its
 * completion carries its address. Submissions are gathered and handed to the kernel together by
 * loop_reap() (never waits) or loop_wait() (waits for a completion or the timeout).
 *
 * The io_uring is set up with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1): completions are run
 * by this thread, when it asks. Nothing is allocated after loop_open(). */
#ifndef WALWIRE_LOOP_H
#define WALWIRE_LOOP_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#define LOOP_ENTRIES	 1024u /* submissions gathered at most; completions: four times that */
#define LOOP_BUFFERS_MAX 64    /* registered ranges */

struct loop_op {
	void (*done)(struct loop_op *op, int res, uint32_t flags);
	bool busy; /* between loop_sqe() and the last completion */
};

struct loop {
	struct io_uring uring;
	uint64_t now_ns; /* CLOCK_MONOTONIC, read once a cycle */
	unsigned int in_flight;
	bool buffers_registered; /* false: fixed reads and sends are not to be used */
	int buffers;
};

/* 0; -ENOSYS and the like where io_uring is refused. */
int loop_open(struct loop *l);
void loop_close(struct loop *l);

/* Register `bytes` at `base` for fixed reads and sends; its index, or -errno (the memory limit). */
int loop_register(struct loop *l, void *base, uint64_t bytes);

/* A submission whose completion calls op->done. Never NULL: a full queue is submitted first.
 * op must not be busy. */
struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op);

/* Ask the kernel to end `op` early; its completion comes all the same. */
void loop_cancel(struct loop *l, struct loop_op *op);

/* Submit what was gathered and run the completions that are there. Their number. */
unsigned int loop_reap(struct loop *l);

/* The same, but wait for at least one completion, `timeout_ns` at most. */
unsigned int loop_wait(struct loop *l, uint64_t timeout_ns);

/* CLOCK_MONOTONIC in ns; CLOCK_REALTIME in ns. */
uint64_t clock_now_ns(void);
uint64_t clock_wall_ns(void);

/* Pin the calling thread to one core. 0 or -errno. */
int loop_pin(int cpu);

#define LOOP_SLICE_NS 100000 /* see loop_prefer_latency() */

/* Ask the scheduler for short slices for the calling thread: it gets no more of a shared core, but
 * gets it sooner after a wake (Linux 6.12, sched_setattr(2)). Older kernels ignore it. */
void loop_prefer_latency(void);

#define LOOP_NICE 10 /* see loop_step_back(); setpriority(2): a tenth of the weight */

/* Let others go first on a shared core, or no longer. No effect without the right to come back
 * (root, CAP_SYS_NICE as root has it, or RLIMIT_NICE). Calling thread. */
void loop_step_back(bool back);

#endif
