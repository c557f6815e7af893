#include "daemon/apply/link.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/wire/socket.h"

#define MS 1000000ull

static void want_bytes(struct link *l);

static void enter(struct link *l, enum link_state state)
{
	l->state = state;
	l->since_ns = l->loop->now_ns;
}

static void say(struct link *l, const char *sentence)
{
	if (strcmp(l->sentence, sentence)) {
		snprintf(l->sentence, sizeof(l->sentence), "%s", sentence);
		l->sentence_new = true;
	}
}

static void close_link(struct link *l, const char *why)
{
	if (l->state == LINK_CLOSING || l->state == LINK_WAITING || l->state == LINK_REFUSED)
		return;
	say(l, why);
	shutdown(l->fd, SHUT_RDWR);
	loop_cancel(l->loop, &l->connect);
	loop_cancel(l->loop, &l->send);
	loop_cancel(l->loop, &l->recv);
	enter(l, LINK_CLOSING);
}

/* The source sent what it must not send. */
static void close_bad(struct link *l)
{
	counter_add(l->feed->counters, COUNTER_bad_batches, 1);
	close_link(l, "the source sent damaged or foreign data");
}

/* ---- connecting ---- */

static void connected(struct loop_op *op, int res, uint32_t flags)
{
	struct link *l = (struct link *)((char *)op - offsetof(struct link, connect));
	struct hello h = {.version = WIRE_VERSION, .what = HELLO_FOLLOW};
	struct io_uring_sqe *sqe;

	(void)flags;
	if (l->state != LINK_CONNECTING)
		return;
	if (res < 0) {
		char why[128];

		snprintf(why, sizeof(why), "cannot connect: %s", strerror(-res));
		close_link(l, why);
		return;
	}
	h.page_bytes = l->feed->page_bytes;
	if (l->known)
		h.at = l->at;
	memcpy(h.db_id, l->feed->db_id, DB_ID_BYTES);
	snprintf(h.text, sizeof(h.text), "%s", l->feed->name);
	hello_put(l->hello, &h);
	sqe = loop_sqe(l->loop, &l->send);
	io_uring_prep_send(sqe, l->fd, l->hello, HELLO_BYTES, MSG_WAITALL | MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, &l->send);
	l->answer_bytes = 0;
	enter(l, LINK_HELLO);
	want_bytes(l);
}

static void start(struct link *l)
{
	struct io_uring_sqe *sqe;

	l->fd = socket(l->source->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l->fd < 0) {
		enter(l, LINK_WAITING);
		return;
	}
	socket_tune(l->fd);
	counter_add(l->feed->counters, COUNTER_reconnects, 1);
	sqe = loop_sqe(l->loop, &l->connect);
	io_uring_prep_connect(sqe, l->fd, (const struct sockaddr *)&l->source->sa, l->source->bytes);
	io_uring_sqe_set_data(sqe, &l->connect);
	enter(l, LINK_CONNECTING);
}

static void send_done(struct loop_op *op, int res, uint32_t flags)
{
	struct link *l = (struct link *)((char *)op - offsetof(struct link, send));

	(void)flags;
	if (l->state == LINK_CLOSING)
		return;
	if (res < 0 || (l->state == LINK_HELLO && res != (int)HELLO_BYTES) ||
	    (l->state == LINK_STREAM && res != (int)ACK_BYTES && res != (int)HELLO_BYTES)) {
		close_link(l, "the connection broke");
		return;
	}
	if (l->state == LINK_HELLO)
		enter(l, LINK_ANSWER);
}

/* ---- the answer ---- */

static void refuse(struct link *l, const char *why)
{
	close_link(l, why);
	enter(l, LINK_CLOSING);
	l->retry_ms = 0; /* for good */
}

static void take_answer(struct link *l)
{
	struct hello h;
	int err = hello_get(l->answer, &h);
	char why[256];

	if (err == -EPROTONOSUPPORT) {
		refuse(l, "the source speaks another version of the protocol; use the same walwire "
			  "on both sides");
		return;
	}
	if (err) {
		counter_add(l->feed->counters, COUNTER_bad_messages, 1);
		/* Where walwire has answered before, this is damage, and passes. */
		if (l->ever_streamed)
			close_link(l, "the source's answer was damaged");
		else
			refuse(l, "the peer is no walwire; check the address and port");
		return;
	}
	switch (h.what) {
	case VERDICT_CONTINUE:
		if (!l->known || h.page_bytes != l->feed->page_bytes)
			break;
		l->seeding = false;
		goto stream;
	case VERDICT_SEED:
		if (!h.page_bytes)
			break;
		if (applier_expect_seed(l->applier, h.db_id, h.page_bytes, why, sizeof(why))) {
			refuse(l, why);
			return;
		}
		l->known = false;
		l->seeding = false;
		goto stream;
	case VERDICT_LATER:
		close_link(l, h.text);
		return;
	case VERDICT_REFUSED:
		snprintf(why, sizeof(why), "the source refuses: %.200s", h.text);
		refuse(l, why);
		return;
	}
	counter_add(l->feed->counters, COUNTER_bad_messages, 1);
	close_link(l, "the source gave an answer that makes no sense");
	return;
stream:
	l->unparsed = 0;
	l->ack_sent = false;
	l->source_txid = h.at.txid;
	l->sentence[0] = 0;
	enter(l, LINK_STREAM);
}

/* ---- batches ---- */

static bool continues(struct link *l, const uint8_t *batch, const struct batch_header *h,
		      const uint64_t *hashes)
{
	uint64_t before = h->txid - h->commits, chain = h->chain_before;

	if (!l->known || h->timeline != l->at.timeline)
		return false;
	if (before == l->at.txid)
		return h->chain_before == l->chain || h->chain_before == l->at.chain;
	if (before > l->at.txid || h->txid < l->at.txid)
		return false;
	/* One of its commits is our last one. */
	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, 1u << h->page_shift);

		chain = chain_fold(chain, frame, hashes[i]);
		if (frame_db_pages(frame) && ++before == l->at.txid)
			return chain == l->at.chain;
	}
	return false;
}

/* A whole batch stands at the ring's end: does it belong there? Then take note of it. */
static bool accept_batch(struct link *l, const uint8_t *batch, const struct batch_header *h)
{
	uint64_t *hashes = feed_hashes(l->feed, ring_published(&l->feed->ring));

	if (batch_check(batch, h, hashes))
		return false;
	if (h->kind == BATCH_COMMIT) {
		if (!continues(l, batch, h, hashes))
			return false;
		l->chain = h->chain;
		if (h->commits)
			l->at = (struct position){h->timeline, h->txid, h->chain};
		return true;
	}
	if (h->flags & BATCH_SEED_BEGIN) {
		l->seeding = true;
		l->known = true;
		l->seed_chain = 0;
		l->at = (struct position){h->timeline, h->txid, h->chain};
		l->chain = h->chain;
		return true;
	}
	if (!l->seeding)
		return false;
	if (h->flags & BATCH_SEED_END) {
		if (h->txid != l->at.txid || h->chain != l->at.chain || h->db_pages == 0 ||
		    h->chain_before != l->seed_chain || l->seed_chain == 0)
			return false;
		l->seeding = false;
		return true;
	}
	if (h->chain_before != l->seed_chain)
		return false;
	l->seed_chain = h->chain;
	return true;
}

static void take_heartbeat(struct link *l, const struct batch_header *h)
{
	l->source_txid = h->txid;
	l->lag_ns = h->chain;
}

/* Publish what has come whole. */
static unsigned int parse(struct link *l)
{
	struct ring *ring = &l->feed->ring;
	unsigned int work = 0;
	struct batch_header h;

	while (work < LINK_PARSE_BATCHES && l->unparsed >= BATCH_HEADER_BYTES) {
		uint8_t *at = ring_at(ring, ring_published(ring));

		if (batch_header_get(at, &h) || (1u << h.page_shift) != l->feed->page_bytes) {
			close_bad(l);
			return work;
		}
		if (h.kind == BATCH_HEARTBEAT) {
			/* Not for the ring. Nothing follows it as a rule. L1. */
			take_heartbeat(l, &h);
			l->unparsed -= h.bytes;
			memmove(at, at + h.bytes, l->unparsed);
			work++;
			continue;
		}
		if (l->unparsed < h.bytes)
			break;
		if (!accept_batch(l, at, &h)) {
			close_bad(l);
			return work;
		}
		l->unparsed -= h.bytes;
		if (h.txid > l->source_txid)
			l->source_txid = h.txid;
		feed_publish(l->feed, &h);
		l->retry_ms = LINK_RETRY_MS_MIN;
		l->ever_streamed = true;
		work++;
	}
	return work;
}

static void recv_done(struct loop_op *op, int res, uint32_t flags)
{
	struct link *l = (struct link *)((char *)op - offsetof(struct link, recv));

	(void)flags;
	if (l->state == LINK_CLOSING || res == -EINTR || res == -EAGAIN)
		return; /* link_do_work() asks again */
	if (res <= 0) {
		close_link(l, l->state == LINK_STREAM ? "the source closed the connection" :
							"the peer closed the connection; is it walwire?");
		return;
	}
	l->heard_ns = l->loop->now_ns;
	if (l->state == LINK_STREAM) {
		l->unparsed += (uint64_t)res;
		return;
	}
	l->answer_bytes += (uint32_t)res;
	if (l->answer_bytes == HELLO_BYTES)
		take_answer(l);
}

/* Receive: the answer into its buffer, the stream into claimed ring space. */
static void want_bytes(struct link *l)
{
	struct ring *ring = &l->feed->ring;
	struct io_uring_sqe *sqe;

	if (l->recv.busy)
		return;
	if (l->state == LINK_STREAM) {
		uint64_t want = l->unparsed + LINK_RECV_BYTES, room;

		if (want > ring->shared->size / 2)
			want = ring->shared->size / 2;
		room = ring_claim(ring, want);
		if (room <= l->unparsed) {
			if (!l->feed->blocked_ns) {
				l->feed->blocked_ns = l->loop->now_ns;
				counter_add(l->feed->counters, COUNTER_ring_full, 1);
			}
			return;
		}
		feed_moves(l->feed);
		sqe = loop_sqe(l->loop, &l->recv);
		io_uring_prep_recv(sqe, l->fd, ring_at(ring, ring_published(ring) + l->unparsed),
				   room - l->unparsed, 0);
	} else {
		sqe = loop_sqe(l->loop, &l->recv);
		io_uring_prep_recv(sqe, l->fd, l->answer + l->answer_bytes,
				   HELLO_BYTES - l->answer_bytes, 0);
	}
	io_uring_sqe_set_data(sqe, &l->recv);
}

/* ---- acks ---- */

static void send_ack(struct link *l)
{
	const struct applier *a = l->applier;
	bool whole = a->mode == APPLIER_LIVE && a->known;
	struct ack ack = {
		.received = l->at.txid,
		.applied = whole ? a->applied.txid : STATUS_UNKNOWN,
		.durable = whole ? a->durable : STATUS_UNKNOWN,
		.applied_time_ns = whole ? a->applied_time_ns : 0,
	};
	struct io_uring_sqe *sqe;

	if (l->send.busy || !l->known || (l->ack_sent && !memcmp(&ack, &l->acked, sizeof(ack))))
		return;
	l->acked = ack;
	l->ack_sent = true;
	ack_put(l->ack, &ack);
	sqe = loop_sqe(l->loop, &l->send);
	io_uring_prep_send(sqe, l->fd, l->ack, ACK_BYTES, MSG_WAITALL | MSG_NOSIGNAL);
	io_uring_sqe_set_data(sqe, &l->send);
}

/* ---- steps ---- */

/* After a connection: what was received of a commit or a seed in part counts for nothing. */
static void settle(struct link *l)
{
	bool was_seeding = l->seeding || l->applier->mode == APPLIER_COPYING ||
			   l->applier->mode == APPLIER_RESEEDING;

	l->seeding = false;
	l->unparsed = 0;
	if (was_seeding || !l->known) {
		/* Apply no more of it; where we stand is what the file shows. */
		l->applier->pos = ring_published(&l->feed->ring);
		ring_release(&l->feed->ring, l->applier->reader, l->applier->pos);
		applier_unlink(l->applier);
		l->known = l->applier->known;
		l->at = l->applier->applied;
		feed_break(l->feed, l->at, applier_db_pages(l->applier));
	}
	l->chain = l->at.chain;
}

static unsigned int closing_step(struct link *l)
{
	if (l->connect.busy || l->send.busy || l->recv.busy)
		return 0;
	close(l->fd);
	l->fd = -1;
	/* Whole commits that have come are applied first. */
	settle(l);
	if (l->retry_ms == 0) {
		enter(l, LINK_REFUSED);
		return 1;
	}
	enter(l, LINK_WAITING);
	l->retry_ms = l->retry_ms * 2 > LINK_RETRY_MS_MAX ? LINK_RETRY_MS_MAX : l->retry_ms * 2;
	return 1;
}

unsigned int link_do_work(struct link *l)
{
	uint64_t now = l->loop->now_ns;
	unsigned int work = 0;

	switch (l->state) {
	case LINK_REFUSED:
		return 0;
	case LINK_WAITING:
		if (now - l->since_ns < l->retry_ms * MS)
			return 0;
		start(l);
		return 1;
	case LINK_CLOSING:
		return closing_step(l);
	case LINK_STREAM:
		work = parse(l);
		if (l->state != LINK_STREAM)
			return work + 1;
		if (now - l->heard_ns > LINK_SILENT_MS * MS && !l->feed->blocked_ns &&
		    l->recv.busy) {
			close_link(l, "the source has been silent for too long");
			return 1;
		}
		/* L1: no receive is under way while whole batches wait, so removing a heartbeat
		 * never moves bytes that the kernel is writing behind. */
		if (work < LINK_PARSE_BATCHES)
			want_bytes(l);
		send_ack(l);
		return work;
	default:
		if (now - l->since_ns > LINK_ANSWER_MS * MS) {
			close_link(l, "the source does not answer");
			return 1;
		}
		if (l->state == LINK_HELLO || l->state == LINK_ANSWER)
			want_bytes(l);
		return 0;
	}
}

bool link_stop(struct link *l)
{
	close_link(l, "stopping");
	return !(l->connect.busy || l->send.busy || l->recv.busy);
}

void link_init(struct link *l, struct feed *feed, struct loop *loop, struct applier *applier,
	       const struct address *source)
{
	memset(l, 0, sizeof(*l));
	l->feed = feed;
	l->loop = loop;
	l->applier = applier;
	l->source = source;
	l->fd = -1;
	l->lag_ns = STATUS_UNKNOWN;
	l->source_txid = STATUS_UNKNOWN;
	l->retry_ms = LINK_RETRY_MS_MIN;
	l->connect.done = connected;
	l->send.done = send_done;
	l->recv.done = recv_done;
	l->known = applier->known;
	l->at = applier->applied;
	l->chain = l->at.chain;
	l->heard_ns = loop->now_ns;
	enter(l, LINK_WAITING);
	l->since_ns = 0;
}
