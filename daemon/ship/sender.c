#include "daemon/ship/sender.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Linux 6.2; older headers lack them. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

#define MS 1000000ull

static void submit_send(struct sender *s, uint64_t end);

static struct feed *find_feed(struct server *server, const char *name)
{
	for (int i = 0; i < server->feeds_count; i++)
		if (!strcmp(server->feeds[i]->name, name))
			return server->feeds[i];
	return NULL;
}

static void enter(struct sender *s, enum sender_state state)
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

static struct counters *counters_of(struct sender *s)
{
	return s->feed ? s->feed->counters : s->server->counters;
}

/* ---- sending ---- */

/* Give back, oldest first, what the kernel is finished with. */
static void release(struct sender *s)
{
	while (s->send_count) {
		struct send_op *op = &s->send[s->send_first];

		if (op->op.busy || !op->first_done)
			break;
		if (op->end && s->reader >= 0) {
			ring_release(&s->feed->ring, s->reader, op->end);
			s->released_ns = s->server->loop->now_ns;
		}
		s->send_first = (s->send_first + 1) % SEND_ZC_PENDING_MAX;
		s->send_count--;
	}
}

static void notified(struct sender *s, int res)
{
	if (!((uint32_t)res & IORING_NOTIF_USAGE_ZC_COPIED)) {
		s->zc_copied = 0;
		s->zc_spared = true;
		return;
	}
	counter_add(counters_of(s), COUNTER_sends_zc_copied, 1);
	/* Loopback, veth and the like copy anyway: then the notification is only a cost. */
	if (++s->zc_copied >= SEND_ZC_COPIED_MAX)
		s->zc = false;
}

static void send_done(struct loop_op *base, int res, uint32_t flags)
{
	struct send_op *op = (struct send_op *)base;
	struct sender *s = op->sender;

	if (flags & IORING_CQE_F_NOTIF) {
		notified(s, res);
		release(s);
		return;
	}
	op->first_done = true;
	s->sending = false;
	if (op->zc && (res == -EINVAL || res == -EOPNOTSUPP)) {
		uint64_t end = op->end;

		s->server->zc = s->zc = false;
		op->end = 0;
		release(s);
		submit_send(s, end);
		return;
	}
	if (res < 0 || s->state == SENDER_CLOSING) {
		release(s);
		sender_close(s);
		return;
	}
	s->out += res;
	s->out_bytes -= (uint64_t)res;
	if (s->out_bytes) {
		uint64_t end = op->end;

		op->end = 0; /* the rest of the range carries it */
		release(s);
		submit_send(s, end);
		return;
	}
	release(s);
}

/* Hand out..out_bytes to the kernel. There is room: sender_do_work() looked. */
static void submit_send(struct sender *s, uint64_t end)
{
	unsigned int slot = (s->send_first + s->send_count) % SEND_ZC_PENDING_MAX;
	struct send_op *op = &s->send[slot];
	bool zc = s->zc && end && s->out_bytes >= SEND_ZC_BYTES_MIN && s->feed->buffer >= 0;
	struct io_uring_sqe *sqe;

	/* A remainder may find the queue full: it goes out as a plain send in the last place. */
	assert(s->send_count < SEND_ZC_PENDING_MAX);
	*op = (struct send_op){.op = {.done = send_done}, .sender = s, .end = end, .zc = zc};
	sqe = loop_sqe(s->server->loop, &op->op);
	if (zc)
		io_uring_prep_send_zc_fixed(sqe, s->fd, s->out, s->out_bytes,
					    MSG_WAITALL | MSG_NOSIGNAL, IORING_SEND_ZC_REPORT_USAGE,
					    (unsigned int)s->feed->buffer);
	else
		io_uring_prep_send(sqe, s->fd, s->out, s->out_bytes, MSG_WAITALL | MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, &op->op);
	s->send_count++;
	s->sending = true;
	counter_add(counters_of(s), COUNTER_sends, 1);
	if (zc)
		counter_add(counters_of(s), COUNTER_sends_zc, 1);
}

static void send_small(struct sender *s, uint64_t bytes)
{
	s->out = s->small;
	s->out_bytes = bytes;
	submit_send(s, 0);
}

/* Send a batch header without frames: a mark of the seed, or a heartbeat. */
static void send_header(struct sender *s, uint8_t kind, uint8_t flags, struct position at,
			uint64_t chain_before, uint32_t db_pages)
{
	struct batch_header h = {
		.bytes = BATCH_HEADER_BYTES,
		.page_shift = (uint8_t)__builtin_ctz(s->feed->page_bytes),
		.kind = kind,
		.flags = flags,
		.txid = at.txid,
		.chain = at.chain,
		.chain_before = chain_before,
		.timeline = at.timeline,
		.db_pages = db_pages,
		.time_ns = s->feed->own_clock ? s->server->loop->now_ns : 0,
	};

	batch_header_put(s->small, &h);
	send_small(s, BATCH_HEADER_BYTES);
}

static void remember(struct sender *s, uint64_t txid, uint64_t time_ns)
{
	if (s->mark_count == SEND_MARKS)
		s->mark_count--;
	else
		s->mark[(s->mark_first + s->mark_count) % SEND_MARKS].time_ns = time_ns;
	s->mark[(s->mark_first + s->mark_count) % SEND_MARKS].txid = txid;
	s->mark[(s->mark_first + s->mark_count) % SEND_MARKS].pos = s->sent_pos;
	s->mark_count++;
}

/* Send whole batches from the ring, up to `limit` and SEND_BYTES_MAX. False: there are none. */
static bool send_range(struct sender *s, uint64_t limit)
{
	const struct ring *ring = &s->feed->ring;
	uint64_t begin = s->sent_pos, end = begin, time_ns = 0;
	struct batch_header h;

	while (end < limit) {
		/* Our own bytes, checked before they were published. */
		int err = batch_header_get(ring_at(ring, end), &h);

		assert(!err);
		/* Our own source seeds us anew: nothing of that fits into the seed we send. */
		if (s->state == SENDER_SEEDING && h.kind == BATCH_SEED) {
			sender_close(s);
			return false;
		}
		if (end > begin && end + h.bytes - begin > SEND_BYTES_MAX)
			break;
		if (!time_ns)
			time_ns = s->feed->own_clock ? h.time_ns : s->server->loop->now_ns;
		end += h.bytes;
		s->sent_partial = h.kind == BATCH_COMMIT && h.commits == 0;
		if (h.kind == BATCH_COMMIT && h.commits) {
			s->sent = (struct position){h.timeline, h.txid, h.chain};
			s->sent_db_pages = h.db_pages;
		} else if (h.kind == BATCH_SEED && h.flags) {
			s->sent = (struct position){h.timeline, h.txid, h.chain};
		}
	}
	if (end == begin)
		return false;
	s->out = ring_at(ring, begin);
	s->out_bytes = end - begin;
	s->sent_pos = end;
	remember(s, s->sent.txid, time_ns);
	submit_send(s, end);
	return true;
}

/* ---- the first message ---- */

static void answer(struct sender *s, enum verdict verdict, const char *sentence)
{
	struct hello h = {.version = WIRE_VERSION, .what = (uint16_t)verdict};

	if (s->feed) {
		h.page_bytes = s->feed->page_bytes;
		h.at = s->feed->at;
		memcpy(h.db_id, s->feed->db_id, sizeof(h.db_id));
	}
	snprintf(h.text, sizeof(h.text), "%s", sentence);
	if (verdict == VERDICT_LIST)
		h.names = (uint32_t)s->server->feeds_count;
	hello_put(s->small, &h);
	enter(s, SENDER_ANSWER);
	if (verdict == VERDICT_LIST) {
		for (int i = 0; i < s->server->feeds_count; i++) {
			uint8_t *to = s->small + HELLO_BYTES + (size_t)i * WIRE_NAME_BYTES;

			memset(to, 0, WIRE_NAME_BYTES);
			memcpy(to, s->server->feeds[i]->name, strlen(s->server->feeds[i]->name));
		}
	}
	send_small(s, HELLO_BYTES + (uint64_t)h.names * WIRE_NAME_BYTES);
}

static void answer_follow(struct sender *s, const struct hello *h)
{
	static const uint8_t none[DB_ID_BYTES];
	bool knows_us = memcmp(h->db_id, none, DB_ID_BYTES) != 0;
	struct feed *feed = find_feed(s->server, h->text);
	uint64_t pos;

	s->feed = feed;
	if (!feed) {
		answer(s, VERDICT_REFUSED, "there is no database of that name here");
		return;
	}
	if (!feed->open || feed->page_bytes == 0) {
		answer(s, VERDICT_LATER, "the database is not attached yet");
		return;
	}
	if (knows_us && memcmp(h->db_id, feed->db_id, DB_ID_BYTES)) {
		answer(s, VERDICT_REFUSED, "that is a copy of another database");
		return;
	}
	if (h->page_bytes && h->page_bytes != feed->page_bytes) {
		answer(s, VERDICT_REFUSED, "the page size differs");
		return;
	}
	if (knows_us && h->at.timeline > feed->at.timeline) {
		answer(s, VERDICT_REFUSED, "the replica is on a newer timeline than this node");
		return;
	}
	s->broken = feed->broken;
	s->released_ns = s->server->loop->now_ns;
	if (knows_us && h->at.timeline && feed_find(feed, h->at, &pos) == 0) {
		s->reader = ring_attach(&feed->ring, pos);
		if (s->reader < 0) {
			answer(s, VERDICT_LATER, "too many replicas of this database");
			return;
		}
		s->sent_pos = s->applied_pos = pos;
		s->sent = h->at;
		answer(s, VERDICT_CONTINUE, "");
		return;
	}
	/* A replica that is ahead of the replica it follows has commits that are nowhere else, maybe:
	 * it waits until this node has caught up. */
	if (knows_us && h->at.txid > feed->at.txid && !feed->own_clock) {
		answer(s, VERDICT_LATER, "this node is behind the replica");
		return;
	}
	if (s->server->loop->now_ns - feed->cut_ns < feed->seed_pause_ns) {
		answer(s, VERDICT_LATER, "replicas are too slow for what is written here; a full copy waits "
					 "a while");
		return;
	}
	for (int i = 0; i < SEEDS_MAX && !s->seed; i++)
		if (!s->server->seed[i].used)
			s->seed = &s->server->seed[i];
	if (!s->seed) {
		answer(s, VERDICT_LATER, "other replicas are being seeded");
		return;
	}
	seed_begin(s->seed, feed);
	s->step = SEED_MARK_BEGIN;
	answer(s, VERDICT_SEED, "");
}

static void take_hello(struct sender *s)
{
	struct hello h;
	int err = hello_get(s->in, &h);

	if (err == -EPROTONOSUPPORT) {
		counter_add(s->server->counters, COUNTER_bad_messages, 1);
		answer(s, VERDICT_REFUSED, "another version of the protocol");
		return;
	}
	if (err) {
		counter_add(s->server->counters, COUNTER_bad_messages, 1);
		sender_close(s);
		return;
	}
	s->in_bytes -= HELLO_BYTES;
	memmove(s->in, s->in + HELLO_BYTES, s->in_bytes);
	if (h.what == HELLO_LIST)
		answer(s, VERDICT_LIST, "");
	else if (h.what == HELLO_FOLLOW && name_is_plain(h.text))
		answer_follow(s, &h);
	else
		answer(s, VERDICT_REFUSED, "that is not a request");
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
			take_hello(s);
	} else if (s->state == SENDER_SEEDING || s->state == SENDER_STREAMING) {
		take_acks(s);
	}
	if (s->state != SENDER_CLOSING && s->in_bytes < sizeof(s->in))
		want_input(s);
}

/* ---- steps ---- */

/* After something was handed to the kernel: the order is settled, so the next chunk can be read
 * while it goes out. D1: no commit is sent until that chunk has been. */
static void ask_chunk(struct sender *s)
{
	seed_ask(s->seed);
	s->step = SEED_WAIT;
}

static unsigned int seed_chunk_step(struct sender *s)
{
	struct seed *seed = s->seed;

	if (seed->job.out)
		return 0;
	if (seed->err) {
		sender_close(s);
		return 1;
	}
	s->seed_last = seed->last;
	s->seed_passes = s->feed->passes;
	s->step = seed->last ? SEED_FINISH : SEED_COMMITS;
	if (seed->h.frames) {
		counter_add(s->feed->counters, COUNTER_seed_bytes, seed->h.bytes);
		s->out = seed_chunk(seed);
		s->out_bytes = seed->h.bytes;
		submit_send(s, 0);
		s->heartbeat_ns = s->server->loop->now_ns;
	}
	if (!s->seed_last && s->sent_pos == s->feed->visible_pos)
		ask_chunk(s);
	return 1;
}

static unsigned int seed_step(struct sender *s)
{
	struct feed *feed = s->feed;

	switch (s->step) {
	case SEED_MARK_BEGIN:
		if (feed->visible_pos < feed->commit_pos)
			return 0;
		s->reader = ring_attach(&feed->ring, feed->commit_pos);
		if (s->reader < 0) {
			sender_close(s);
			return 1;
		}
		counter_add(feed->counters, COUNTER_seeds, 1);
		s->sent_pos = s->applied_pos = feed->commit_pos;
		s->sent = feed->at;
		s->sent_db_pages = feed->db_pages;
		s->sent_partial = false;
		send_header(s, BATCH_SEED, BATCH_SEED_BEGIN, s->sent, 0, s->sent_db_pages);
		ask_chunk(s);
		return 1;
	case SEED_WAIT:
		return seed_chunk_step(s);
	case SEED_COMMITS: {
		uint64_t behind = feed->visible_pos - s->sent_pos;

		send_range(s, feed->visible_pos);
		if (behind <= feed->ring.shared->size / 4)
			ask_chunk(s);
		return 1;
	}
	case SEED_FINISH:
		if (!s->seed_target_known && feed->passes > s->seed_passes + 1) {
			s->seed_target_known = true;
			s->seed_target = feed->at.txid;
		}
		if (s->seed_target_known && !s->sent_partial && s->sent.txid >= s->seed_target) {
			send_header(s, BATCH_SEED, BATCH_SEED_END, s->sent, s->seed->chain,
				    s->sent_db_pages);
			seed_end(s->seed);
			s->seed = NULL;
			enter(s, SENDER_STREAMING);
			return 1;
		}
		return send_range(s, feed->visible_pos);
	default:
		return 0;
	}
}

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

	send_header(s, BATCH_HEARTBEAT, 0, at, 0, s->feed->db_pages);
	return 1;
}

static unsigned int stream_step(struct sender *s)
{
	return heartbeat(s) || send_range(s, ring_published(&s->feed->ring));
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
			enter(s, SENDER_SEEDING);
		else if (s->reader >= 0)
			enter(s, SENDER_STREAMING);
		else
			sender_close(s);
		s->heartbeat_ns = now;
		return 1;
	case SENDER_SEEDING: {
		unsigned int work = seed_step(s);

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
	enter(s, SENDER_HELLO);
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
	enter(s, SENDER_CLOSING);
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
