#include "daemon/base/loop.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOP_COMPLETIONS_PER_CALL 256 /* one call's work is bounded */

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t clock_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t clock_wall_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

int loop_pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return -EINVAL;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) < 0 ? -errno : 0;
}

void loop_prefer_latency(void)
{
	/* struct sched_attr, version 1; glibc has no wrapper for it. */
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr = {.size = sizeof(attr)};

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0)
		return;
	attr.runtime = LOOP_SLICE_NS;
	syscall(SYS_sched_setattr, 0, &attr, 0);
}

static bool may_raise_priority(int nice_before)
{
	struct rlimit limit;

	return geteuid() == 0 || (getrlimit(RLIMIT_NICE, &limit) == 0 &&
				  (int64_t)limit.rlim_cur >= 20 - nice_before);
}

void loop_step_back(bool back)
{
	static _Thread_local bool stepped_back;
	static _Thread_local int nice_before;

	if (back == stepped_back)
		return;
	if (back)
		nice_before = getpriority(PRIO_PROCESS, 0);
	if (back && !may_raise_priority(nice_before))
		return;
	if (setpriority(PRIO_PROCESS, 0, nice_before + (back ? LOOP_NICE : 0)) == 0)
		stepped_back = back;
}

int loop_open(struct loop *l)
{
	struct io_uring_params p;
	int err;

	memset(l, 0, sizeof(*l));
	memset(&p, 0, sizeof(p));
	p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
		  IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL;
	p.cq_entries = 4 * LOOP_ENTRIES;
	err = io_uring_queue_init_params(LOOP_ENTRIES, &l->uring, &p);
	if (err)
		return err;
	/* An empty table now, filled as rings appear. A kernel or limit that refuses costs the
	 * fixed operations only. */
	l->buffers_registered = io_uring_register_buffers_sparse(&l->uring, LOOP_BUFFERS_MAX) == 0;
	io_uring_register_ring_fd(&l->uring);
	/* Naps are meant to be as short as they are asked for. */
	prctl(PR_SET_TIMERSLACK, 1);
	loop_prefer_latency();
	l->now_ns = clock_now_ns();
	return 0;
}

void loop_close(struct loop *l)
{
	io_uring_queue_exit(&l->uring);
}

int loop_register(struct loop *l, void *base, uint64_t bytes)
{
	struct iovec iov = {.iov_base = base, .iov_len = bytes};
	int err;

	if (!l->buffers_registered)
		return -EOPNOTSUPP;
	if (l->buffers == LOOP_BUFFERS_MAX)
		return -ENOSPC;
	err = io_uring_register_buffers_update_tag(&l->uring, (unsigned int)l->buffers, &iov, NULL,
						   1);
	if (err < 0)
		return err;
	return l->buffers++;
}

struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->uring);

	if (!sqe) {
		io_uring_submit(&l->uring);
		sqe = io_uring_get_sqe(&l->uring);
	}
	assert(sqe && !op->busy);
	memset(sqe, 0, sizeof(*sqe));
	io_uring_sqe_set_data(sqe, op);
	op->busy = true;
	l->in_flight++;
	return sqe;
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (!op->busy)
		return;
	sqe = io_uring_get_sqe(&l->uring);
	if (!sqe) {
		io_uring_submit(&l->uring);
		sqe = io_uring_get_sqe(&l->uring);
	}
	assert(sqe);
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

static unsigned int run_completions(struct loop *l)
{
	struct io_uring_cqe *cqe;
	unsigned int ran = 0;

	while (ran < LOOP_COMPLETIONS_PER_CALL && io_uring_peek_cqe(&l->uring, &cqe) == 0 && cqe) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;
		uint32_t flags = cqe->flags;

		io_uring_cqe_seen(&l->uring, cqe);
		ran++;
		if (!op)
			continue;
		if (!(flags & IORING_CQE_F_MORE)) {
			op->busy = false;
			l->in_flight--;
		}
		op->done(op, res, flags);
	}
	return ran;
}

unsigned int loop_reap(struct loop *l)
{
	/* With DEFER_TASKRUN completions that did not happen at once run only when asked for. */
	if (io_uring_sq_ready(&l->uring) ||
	    (IO_URING_READ_ONCE(*l->uring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
		io_uring_submit_and_get_events(&l->uring);
	if (!io_uring_cq_ready(&l->uring))
		return 0;
	return run_completions(l);
}

unsigned int loop_wait(struct loop *l, uint64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (int64_t)(timeout_ns / 1000000000u),
		.tv_nsec = (int64_t)(timeout_ns % 1000000000u),
	};
	struct io_uring_cqe *cqe;

	io_uring_submit_and_wait_timeout(&l->uring, &cqe, 1, &ts, NULL);
	return run_completions(l);
}
