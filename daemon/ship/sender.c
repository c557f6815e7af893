#include "daemon/ship/sender_parts.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void sender_enter(struct sender *s, enum sender_state state)
{
	s->state = state;
	s->since_ns = s->server->loop->now_ns;
}

static void want_input(struct sender *s)
{
	struct io_uring_sqe *sqe = loop_sqe(s->server->loop, &s->recv);

	io_uring_prep_recv(sqe, s->fd, s->in + s->in_bytes, sizeof(s->in) - s->in_bytes, 0);
	io_uring_sqe_set_data(sqe, &s->recv);
}

/* ---- acks ---- */

static void take_acks(struct sender *s)
{
	uint32_t at = 0;
	struct ack a;

	for (; s->in_bytes - at >= ACK_BYTES; at += ACK_BYTES) {
		/* Nobody can have received what was not sent. */
		if (ack_get(s->in + at, &a) || a.received > s->sent.txid) {
			counter_add(s->feed->counters, COUNTER_bad_messages, 1);
			sender_close(s);
			return;
		}
		s->ack_ns = s->server->loop->now_ns;
		/* What was applied before this connection says nothing of now. */
		if (s->acked && a.applied != s->ack.applied && s->feed->own_clock &&
		    a.applied_time_ns && a.applied_time_ns <= s->ack_ns)
			s->delay_ns = s->ack_ns - a.applied_time_ns + 1; /* never 0, which is unknown */
		s->ack = a;
		s->acked = true;
		while (a.applied != STATUS_UNKNOWN && s->mark_count &&
		       s->mark[s->mark_first].txid <= a.applied) {
			s->applied_pos = s->mark[s->mark_first].pos;
			s->mark_first = (s->mark_first + 1) % SEND_MARKS;
			s->mark_count--;
		}
	}
	s->in_bytes -= at;
	memmove(s->in, s->in + at, s->in_bytes);
}

static void recv_done(struct loop_op *base, int res, uint32_t flags)
{
	struct sender *s = (struct sender *)((char *)base - offsetof(struct sender, recv));

	(void)flags;
	if (s->state == SENDER_CLOSING)
		return;
	if (res == -EINTR || res == -EAGAIN) {
		want_input(s);
		return;
	}
	if (res <= 0) {
		sender_close(s);
		return;
	}
	s->in_bytes += (uint32_t)res;
	if (s->state == SENDER_HELLO) {
		/* The first bytes already tell a stranger. */
		if (memcmp(s->in, "walwire\n", s->in_bytes < 8 ? s->in_bytes : 8)) {
			counter_add(s->server->counters, COUNTER_bad_messages, 1);
			sender_close(s);
			return;
		}
		if (s->in_bytes >= HELLO_BYTES)
			greet_take(s);
	} else if (s->state == SENDER_SEEDING || s->state == SENDER_STREAMING) {
		take_acks(s);
	}
	if (s->state != SENDER_CLOSING && s->in_bytes < sizeof(s->in))
		want_input(s);
}

/* ---- steps ---- */

static uint64_t lag_ns(const struct sender *s)
{
	if (!s->acked || s->ack.applied == STATUS_UNKNOWN)
		return STATUS_UNKNOWN;
	if (s->ack.applied >= s->feed->at.txid)
		return 0;
	if (s->mark_count)
		return s->server->loop->now_ns - s->mark[s->mark_first].time_ns;
	return s->feed->own_clock ? s->server->loop->now_ns - s->feed->time_ns : STATUS_UNKNOWN;
}

/* Once in a while: it tells the peer its lag, and that we are there. */
static unsigned int heartbeat(struct sender *s)
{
	uint64_t now = s->server->loop->now_ns;

	if (now - s->heartbeat_ns < HEARTBEAT_MS * MS)
		return 0;
	s->heartbeat_ns = now;
	uint64_t lag = lag_ns(s);
	struct position at = {s->feed->at.timeline, s->feed->at.txid,
			      lag == 0 && s->delay_ns ? s->delay_ns : lag};

	out_header(s, BATCH_HEARTBEAT, 0, at, 0, s->feed->db_pages);
	return 1;
}

static unsigned int stream_step(struct sender *s)
{
	return heartbeat(s) || out_range(s, ring_published(&s->feed->ring));
}

static unsigned int closing_step(struct sender *s)
{
	if (s->recv.busy || (s->seed && s->seed->job.out))
		return 0;
	for (unsigned int i = 0; i < SEND_ZC_PENDING_MAX; i++)
		if (s->send[i].op.busy)
			return 0;
	if (s->seed)
		seed_end(s->seed);
	close(s->fd);
	s->fd = -1;
	s->state = SENDER_FREE;
	return 1;
}

static bool loses(struct sender *s, uint64_t now)
{
	uint64_t waiting = s->feed->waiting_bytes;

	if (s->losing_ns == 0 || waiting < s->waiting_least) {
		s->losing_ns = now;
		s->waiting_least = waiting;
	}
	return waiting > READER_LOSING_RINGS * s->feed->ring.shared->size &&
	       now - s->losing_ns > READER_LOSING_MS * MS;
}

/* Does the producer wait for this sender, and has it waited for too long (server.h)? */
static bool stalls(struct sender *s)
{
	uint64_t now = s->server->loop->now_ns, half, released;

	if (!s->feed || s->reader < 0)
		return false;
	half = s->feed->ring.shared->size / 2;
	released = atomic_load_explicit(&s->feed->ring.reader[s->reader].released,
					memory_order_relaxed);
	if (!s->feed->blocked_ns || ring_published(&s->feed->ring) - released < half) {
		s->window_ns = s->losing_ns = 0;
		return false;
	}
	if (loses(s, now))
		return true;
	if (s->window_ns == 0 || released - s->window_pos >= half) {
		s->window_ns = now;
		s->window_pos = released;
	}
	return now - s->window_ns > READER_WINDOW_MS * MS ||
	       (now - s->window_ns > READER_STALL_MS * MS &&
		now - s->released_ns > READER_STALL_MS * MS);
}

static void cut(struct sender *s)
{
	struct feed *f = s->feed;
	uint64_t now = s->server->loop->now_ns, pause = 2 * f->seed_pause_ns;

	if (pause < SEED_PAUSE_MS_MIN * MS)
		pause = SEED_PAUSE_MS_MIN * MS;
	if (pause > SEED_PAUSE_MS_MAX * MS)
		pause = SEED_PAUSE_MS_MAX * MS;
	f->seed_pause_ns = f->cut_ns && now - f->cut_ns < CUT_FORGET_MS * MS ? pause : 0;
	f->cut_ns = now;
	counter_add(f->counters, COUNTER_readers_cut, 1);
	sender_close(s);
}

unsigned int sender_do_work(struct sender *s)
{
	uint64_t now = s->server->loop->now_ns;

	if (s->state == SENDER_CLOSING)
		return closing_step(s);
	if ((s->state == SENDER_HELLO || s->state == SENDER_ANSWER) &&
	    now - s->since_ns > HELLO_MS * MS) {
		sender_close(s);
		return 1;
	}
	if (s->feed && s->broken != s->feed->broken && s->state >= SENDER_SEEDING) {
		sender_close(s);
		return 1;
	}
	if (stalls(s)) {
		cut(s);
		return 1;
	}
	/* One place stays free for the remainder of a short send. */
	if (s->sending || s->send_count >= SEND_ZC_PENDING_MAX - 1)
		return 0;
	switch (s->state) {
	case SENDER_ANSWER:
		if (s->seed)
			sender_enter(s, SENDER_SEEDING);
		else if (s->reader >= 0)
			sender_enter(s, SENDER_STREAMING);
		else
			sender_close(s);
		s->heartbeat_ns = now;
		return 1;
	case SENDER_SEEDING: {
		unsigned int work = seeding_step(s);

		return work || s->sending || s->state != SENDER_SEEDING ? work : heartbeat(s);
	}
	case SENDER_STREAMING:
		return stream_step(s);
	default:
		return 0;
	}
}

void sender_start(struct sender *s, struct server *server, int fd, const char *addr)
{
	uint8_t *small = s->small;

	memset(s, 0, sizeof(*s));
	s->small = small;
	s->server = server;
	s->fd = fd;
	s->reader = -1;
	s->zc = server->zc;
	s->recv.done = recv_done;
	snprintf(s->addr, sizeof(s->addr), "%s", addr);
	sender_enter(s, SENDER_HELLO);
	want_input(s);
}

void sender_close(struct sender *s)
{
	/* Not after an answer: that is to arrive. */
	struct linger abort_now = {.l_onoff = s->state >= SENDER_SEEDING, .l_linger = 0};

	if (s->state == SENDER_CLOSING || s->state == SENDER_FREE)
		return;
	/* The producer waits for us no longer. What the kernel still sends may be overwritten now; it
	 * goes to a connection that is being ended, and a hash would give it away. */
	if (s->reader >= 0)
		ring_detach(&s->feed->ring, s->reader);
	s->reader = -1;
	/* Ends sends and receives that are under way; their completions come. */
	setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &abort_now, sizeof(abort_now));
	shutdown(s->fd, SHUT_RDWR);
	loop_cancel(s->server->loop, &s->recv);
	for (unsigned int i = 0; i < SEND_ZC_PENDING_MAX; i++)
		if (!s->send[i].zc || !s->send[i].first_done)
			loop_cancel(s->server->loop, &s->send[i].op);
	sender_enter(s, SENDER_CLOSING);
}

void sender_status(const struct sender *s, struct peer_status *p)
{
	bool acked = s->acked;

	snprintf(p->addr, sizeof(p->addr), "%s", s->addr);
	snprintf(p->state, sizeof(p->state), "%s",
		 s->state == SENDER_SEEDING ? "seeding" : "streaming");
	p->sent = s->sent.txid;
	p->received = acked ? s->ack.received : STATUS_UNKNOWN;
	p->applied = acked ? s->ack.applied : STATUS_UNKNOWN;
	p->durable = acked ? s->ack.durable : STATUS_UNKNOWN;
	p->lag_commits = p->applied == STATUS_UNKNOWN ? STATUS_UNKNOWN :
			 p->applied > s->feed->at.txid ? 0 : s->feed->at.txid - p->applied;
	p->lag_bytes = p->applied == STATUS_UNKNOWN ? STATUS_UNKNOWN :
		       p->lag_commits == 0 ? 0 : ring_published(&s->feed->ring) - s->applied_pos;
	p->lag_ns = lag_ns(s);
	p->delay_ns = s->delay_ns ? s->delay_ns : STATUS_UNKNOWN;
	p->zero_copy = s->zc && s->zc_spared;
}
