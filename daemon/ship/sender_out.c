#include "daemon/ship/sender_parts.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

/* Linux 6.2; older headers lack them. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

static void out_submit(struct sender *s, uint64_t end);

static struct counters *counters_of(struct sender *s)
{
	return s->feed ? s->feed->counters : s->server->counters;
}

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
		out_submit(s, end);
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
		out_submit(s, end);
		return;
	}
	release(s);
}

/* Hand out..out_bytes to the kernel. There is room: sender_do_work() looked. */
static void out_submit(struct sender *s, uint64_t end)
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

void out_chunk(struct sender *s, const uint8_t *from, uint64_t bytes)
{
	s->out = from;
	s->out_bytes = bytes;
	out_submit(s, 0);
}

void out_small(struct sender *s, uint64_t bytes)
{
	out_chunk(s, s->small, bytes);
}

void out_header(struct sender *s, uint8_t kind, uint8_t flags, struct position at,
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
	out_small(s, BATCH_HEADER_BYTES);
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

bool out_range(struct sender *s, uint64_t limit)
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
	out_submit(s, end);
	return true;
}
