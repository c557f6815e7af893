#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cmd/primary.h"

#define SPIN_PAUSES 4  /* between two looks while awake */
#define GATE_LOOKS  50 /* at a database whose checkpoint is awaited, before the rest is seen to */

void primary_take_tap_events(struct primary *p)
{
	struct tap_seen seen;

	if (!tap_drain(p->tap, &seen))
		return;
	counter_add(p->feeds[0]->counters, COUNTER_tap_wakeups, 1);
	pace_woken(&p->pace, p->node.loop.now_ns, seen.checkpoint != 0);
	for (int i = 0; i < p->count; i++) {
		if (seen.checkpoint & (1ull << i))
			p->db[i]->gate_wanted = true;
		if (seen.foreign_write & (1ull << i) && p->db[i]->state == DB_ATTACHED)
			log_line("'%s' was written by a program that holds no lock of SQLite's; its "
				 "replicas may differ now",
				 p->db[i]->feed.path);
	}
}

static void tap_done(struct loop_op *op, int res, uint32_t flags)
{
	struct primary *p = (struct primary *)((char *)op - offsetof(struct primary, tap_op));

	(void)res;
	(void)flags;
	p->tap_event = true;
}

/* ---- the tap in and out ----
 *
 * Even a muted program costs every commit a little. While commits are dense nobody needs it: headers are
 * polled and checkpoints foreseen. So it goes after a while, and comes back before we sleep. */

static void tap_move(struct job *job)
{
	struct primary *p = (struct primary *)((char *)job - offsetof(struct primary, tap_job));

	p->tap_error = 0;
	if (p->tap_place == TAP_LEAVING)
		tap_detach(p->tap);
	else
		p->tap_error = tap_attach(p->tap);
}

static void tap_moved(struct job *job)
{
	struct primary *p = (struct primary *)((char *)job - offsetof(struct primary, tap_job));
	bool failed = p->tap_error != 0;

	p->tap_place = p->tap_place == TAP_LEAVING || failed ? TAP_OUT : TAP_IN;
	p->tap_used_ns = p->node.loop.now_ns;
	if (failed && !p->tap_lost)
		log_line("no eBPF any more: %s; commits are found by naps alone",
			 strerror(-p->tap_error));
	else if (!failed && p->tap_lost)
		log_info("eBPF again: commits wake");
	if (failed)
		p->tap_retry_ns = p->node.loop.now_ns + TAP_RETRY_MS * MS;
	p->tap_lost = failed;
	primary_review_tap(p);
}

static void tap_send(struct primary *p, enum tap_place towards)
{
	p->tap_place = towards;
	worker_give(&p->node.worker, &p->tap_job);
}

bool primary_tap_ready(struct primary *p)
{
	p->tap_used_ns = p->node.loop.now_ns;
	if (p->tap_place == TAP_OUT && p->node.loop.now_ns >= p->tap_retry_ns)
		tap_send(p, TAP_COMING);
	return p->tap_place == TAP_IN;
}

void primary_rest_tap(struct primary *p)
{
	uint64_t unused = p->node.loop.now_ns - p->tap_used_ns;

	if (p->tap_lost)
		primary_tap_ready(p);
	else if (p->tap_place == TAP_IN && unused >= TAP_REST_MS * MS && tap_wakes(p->tap))
		tap_send(p, TAP_LEAVING);
}

void primary_review_tap(struct primary *p)
{
	p->pace.tap = tap_wakes(p->tap) && !p->tap_lost;
	for (int i = 0; i < p->count; i++)
		if (p->db[i]->state == DB_ATTACHED && !p->db[i]->heard)
			p->pace.tap = false;
}

void primary_idle_init(struct primary *p)
{
	p->tap_op.done = tap_done;
	p->tap_job.run = tap_move;
	p->tap_job.done = tap_moved;
	p->tap_place = TAP_IN;
	p->tap_used_ns = clock_now_ns();
}

/* ---- idling ---- */

/* The gate is still to be opened. */
static bool awaited(const struct primary_db *d)
{
	return d->gate_wanted && d->state == DB_ATTACHED && d->capture.pin.state == PIN_PINNED;
}

static enum pace_checkpoint how_far(const struct primary_db *d)
{
	volatile void *index = d->capture.conn.index;

	if (!wal_index_backfilling(index))
		return PACE_NEAR;
	return wal_index_attempted(index) < d->capture.header.mx_frame ? PACE_OVERTAKEN : PACE_AT_WORK;
}

/* Of several databases the one counts whose gate can be opened soonest. */
static void watch_checkpoints(struct primary *p)
{
	static const int urgency[] = {[PACE_OVERTAKEN] = 0, [PACE_NEAR] = 1, [PACE_AT_WORK] = 2};
	enum pace_checkpoint most = PACE_OVERTAKEN;
	bool any = false;

	for (int i = 0; i < p->count; i++) {
		struct primary_db *d = p->db[i];

		d->gate_wanted = awaited(d) && p->node.loop.now_ns < p->pace.gate_until_ns;
		if (!d->gate_wanted)
			continue;
		any = true;
		if (urgency[how_far(d)] > urgency[most])
			most = how_far(d);
	}
	if (any)
		pace_checkpointing(&p->pace, p->node.loop.now_ns, most);
	else
		pace_gated(&p->pace, p->node.loop.now_ns);
}

static bool capture_pending(const struct primary *p)
{
	for (int i = 0; i < p->count; i++)
		if (p->db[i]->state == DB_ATTACHED && capture_has_work(&p->db[i]->capture))
			return true;
	return false;
}

/* Dense commits: is a checkpoint to be expected before two more naps are over? Then stay awake for
 * the gate. */
static bool checkpoint_due(struct primary *p)
{
	bool due = false;

	for (int i = 0; i < p->count; i++) {
		struct primary_db *d = p->db[i];
		uint32_t frame = d->capture.header.mx_frame, ahead;

		if (d->state != DB_ATTACHED)
			continue;
		ahead = frame > d->seen_frame ? 2 * (frame - d->seen_frame) : 0;
		d->seen_frame = frame;
		if (d->capture.pin.state == PIN_PINNED &&
		    forecast_due(&d->capture.forecast, ahead,
				 wal_index_backfilling(d->capture.conn.index)))
			due = d->gate_wanted = true;
	}
	return due;
}

/* Muted where checkpoints can be foreseen: an armed program costs the application more. */
static unsigned int nap_arm(struct primary *p)
{
	for (int i = 0; i < p->count; i++)
		if (p->db[i]->state == DB_ATTACHED &&
		    !forecast_reliable(&p->db[i]->capture.forecast))
			return primary_tap_ready(p) ? TAP_ARM_CHECKPOINT : 0;
	return 0;
}

static void woken(struct primary *p, unsigned int armed)
{
	tap_arm(p->tap, 0);
	p->node.loop.now_ns = clock_now_ns();
	if (armed)
		p->tap_used_ns = p->node.loop.now_ns;
	primary_take_tap_events(p);
}

static void nap(struct primary *p)
{
	struct pollfd fds[] = {
		{.fd = tap_fd(p->tap), .events = POLLIN},
		{.fd = p->node.wake_fd, .events = POLLIN},
	};
	struct timespec ts = {.tv_nsec = (long)pace_nap_ns(&p->pace, p->node.loop.now_ns)};
	unsigned int arm = nap_arm(p);

	tap_arm(p->tap, arm);
	ppoll(fds, 2, &ts, NULL);
	woken(p, arm);
}

static void sleep_until_woken(struct primary *p)
{
	if (!p->tap_op.busy && tap_fd(p->tap) >= 0) {
		struct io_uring_sqe *sqe = loop_sqe(&p->node.loop, &p->tap_op);

		io_uring_prep_poll_add(sqe, tap_fd(p->tap), POLLIN);
		io_uring_sqe_set_data(sqe, &p->tap_op);
	}
	tap_arm(p->tap, TAP_ARM_BEGIN | TAP_ARM_CHECKPOINT);
	/* Once more: what was published before the arming wakes nobody. */
	if (!capture_pending(p))
		loop_wait(&p->node.loop, PACE_SLEEP_NS);
	woken(p, TAP_ARM_BEGIN | TAP_ARM_CHECKPOINT);
}

/* The gate can be opened between the end of a checkpoint and the next commit: a few microseconds. */
static void await_gate(struct primary *p)
{
	for (int i = 0; i < p->count; i++)
		if (awaited(p->db[i]))
			capture_await(&p->db[i]->capture, GATE_LOOKS / p->count);
}

void primary_idle(struct primary *p)
{
	enum pace_state state;

	if (p->pace.gate_until_ns)
		watch_checkpoints(p);
	state = pace_decide(&p->pace, p->node.loop.now_ns);
	if (state == PACE_ASLEEP && (!primary_tap_ready(p) || server_busy(&p->server)))
		state = PACE_NAPPING;
	if (state == PACE_NAPPING && checkpoint_due(p)) {
		pace_woken(&p->pace, p->node.loop.now_ns, true);
		state = PACE_AWAKE;
	}
	switch (state) {
	case PACE_AWAKE:
		/* On a core of its own this costs nothing; on a shared one it lets others work. Not
		 * while the gate is to be opened: that is a matter of microseconds. */
		if (p->pace.mode != PACE_SPIN)
			sched_yield();
		if (p->pace.gate_until_ns)
			await_gate(p);
		/* And the other half of the core, where there is one, and the line we look at. */
		for (int i = 0; i < SPIN_PAUSES; i++)
			cpu_pause();
		break;
	case PACE_NAPPING:
		nap(p);
		break;
	case PACE_ASLEEP:
		sleep_until_woken(p);
		break;
	}
}
