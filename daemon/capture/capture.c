#include "daemon/capture/capture_parts.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "daemon/base/pace.h" /* cpu_pause() */
#include "daemon/wal/wal.h"

/* A chain that no other history has. */
static uint64_t fresh_chain(void)
{
	uint64_t chain = 0;

	if (getrandom(&chain, sizeof(chain), 0) != (ssize_t)sizeof(chain))
		chain = clock_now_ns() ^ clock_wall_ns() << 20;
	return chain | 1;
}

void capture_save(struct capture *c)
{
	slots_write(&c->slots, &c->record);
}

struct position capture_record_position(const struct capture_record *r)
{
	return (struct position){r->timeline, r->txid, r->chain};
}

void capture_break(struct capture *c, const struct wal_index_header *h)
{
	struct capture_record *r = &c->record;

	r->txid++;
	r->chain = fresh_chain();
	r->db_pages = h->db_pages;
	memcpy(r->salt, h->salt, sizeof(r->salt));
	r->frame = r->base_frame = h->mx_frame;
	r->base_txid = r->txid;
	r->base_chain = r->chain;
	c->proving = false;
	c->change_known = false;
	c->last_known = false;
	capture_save(c);
	feed_break(c->feed, capture_record_position(r), r->db_pages);
}

/* The published header, by way of recovery if it stays unreadable. 0; -EAGAIN; -EPROTO. */
static int stable_header(struct capture *c, struct wal_index_header *ret_h)
{
	int err = wal_index_read(c->conn.index, ret_h);

	if (!err) {
		c->unreadable_ns = 0;
		return 0;
	}
	counter_add(c->feed->counters, COUNTER_header_retries, 1);
	if (c->unreadable_ns == 0)
		c->unreadable_ns = c->loop->now_ns;
	if (err == -EAGAIN && c->loop->now_ns - c->unreadable_ns > CAPTURE_UNREADABLE_NS) {
		c->unreadable_ns = 0;
		counter_add(c->feed->counters, COUNTER_recoveries, 1);
		conn_recover(&c->side);
	}
	return err;
}

static void submit_read(struct capture *c)
{
	struct ring *ring = &c->feed->ring;
	uint32_t frame_bytes = batch_frame_bytes(c->page_bytes);
	uint64_t offset = wal_frame_offset(c->record.frame + 1, c->page_bytes) + c->read_have;
	uint32_t bytes = c->read_frames * frame_bytes - c->read_have;
	uint8_t *to = ring_at(ring, c->read_at) + BATCH_HEADER_BYTES + c->read_have;
	struct io_uring_sqe *sqe = loop_sqe(c->loop, &c->read);

	if (c->feed->buffer >= 0)
		io_uring_prep_read_fixed(sqe, c->wal_fd, to, bytes, offset, c->feed->buffer);
	else
		io_uring_prep_read(sqe, c->wal_fd, to, bytes, offset);
	io_uring_sqe_set_data(sqe, &c->read);
	counter_add(c->feed->counters, COUNTER_reads, 1);
}

/* Claim room for the next frames up to `mx_frame` and have them read. False: the ring is full. */
static bool start_read(struct capture *c, uint32_t mx_frame)
{
	struct ring *ring = &c->feed->ring;
	uint32_t frames = mx_frame - c->record.frame;
	uint64_t room;

	if (frames > batch_frames_max(c->page_bytes))
		frames = batch_frames_max(c->page_bytes);
	/* While proving, one batch ends exactly at the recorded frame. */
	if (c->proving && c->record.frame + frames > c->proof.frame)
		frames = c->proof.frame - c->record.frame;
	room = ring_claim(ring, batch_bytes(frames, c->page_bytes));
	if (room < batch_bytes(frames, c->page_bytes)) {
		if (room < batch_bytes(1, c->page_bytes))
			return false;
		frames = (uint32_t)((room - BATCH_HEADER_BYTES - 63) /
				    batch_frame_bytes(c->page_bytes));
		if (frames == 0)
			return false;
	}
	c->read_at = ring_published(ring);
	c->read_frames = frames;
	c->read_have = 0;
	c->read_time_ns = c->loop->now_ns;
	submit_read(c);
	return true;
}

/* The frames of the read are in the ring: make a batch of them and publish it. */
static void finish_batch(struct capture *c)
{
	uint8_t *batch = ring_at(&c->feed->ring, c->read_at);
	uint64_t *hashes = feed_hashes(c->feed, c->read_at);
	struct capture_record *r = &c->record;
	uint32_t frames = c->read_frames, last = 0, commits = 0;
	struct batch_header h = {
		.page_shift = (uint8_t)__builtin_ctz(c->page_bytes),
		.kind = BATCH_COMMIT,
		.timeline = r->timeline,
		.chain_before = r->chain,
		.time_ns = c->read_time_ns,
		.db_pages = r->db_pages,
	};

	for (uint32_t i = 0; i < frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, c->page_bytes);

		if (frame_pgno(frame) == 0) { /* no writer does this: what we read is no frame */
			c->failed = -EBADMSG;
			return;
		}
		if (frame_db_pages(frame)) {
			last = i + 1;
			commits++;
			h.db_pages = frame_db_pages(frame);
		}
	}
	/* A batch with commits ends with one; the rest is read again with the next. */
	if (last)
		frames = last;
	h.chain = h.chain_before;
	memcpy(c->last_head, batch_frame(batch, frames - 1, c->page_bytes), FRAME_HEADER_BYTES);
	c->last_known = true;
	for (uint32_t i = 0; i < frames; i++) {
		uint8_t *frame = batch + BATCH_HEADER_BYTES + i * batch_frame_bytes(c->page_bytes);

		frame_strip(frame);
		hashes[i] = page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES, c->page_bytes);
		h.chain = chain_fold(h.chain, frame, hashes[i]);
	}
	h.frames = frames;
	h.commits = commits;
	h.txid = r->txid + commits;
	h.bytes = (uint32_t)batch_bytes(frames, c->page_bytes);
	memset(batch + BATCH_HEADER_BYTES + frames * batch_frame_bytes(c->page_bytes), 0,
	       h.bytes - BATCH_HEADER_BYTES - frames * batch_frame_bytes(c->page_bytes));
	batch_header_put(batch, &h);

	r->frame += frames;
	r->chain = h.chain;
	r->txid = h.txid;
	r->db_pages = h.db_pages;
	c->commits_since += commits;
	if (!c->proving) {
		/* A record of a partial commit would not be a place to go on from. */
		if (commits)
			capture_save(c);
	} else if (r->frame == c->proof.frame) {
		if (r->chain != c->proof.chain || r->txid != c->proof.txid) {
			r->txid = r->txid > c->proof.txid ? r->txid : c->proof.txid;
			capture_break(c, &c->header);
			c->feed->open = true;
			return;
		}
		c->proving = false;
		capture_save(c);
	}
	feed_publish(c->feed, &h);
	c->feed->visible_pos = ring_published(&c->feed->ring);
	c->feed->open = !c->proving;
}

/* --durable: what is shipped is on the primary's disk before. */
static void submit_sync(struct capture *c)
{
	struct io_uring_sqe *sqe = loop_sqe(c->loop, &c->read);

	io_uring_prep_fsync(sqe, c->wal_fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, &c->read);
	c->syncing = true;
}

void capture_read_done(struct loop_op *op, int res, uint32_t flags)
{
	struct capture *c = (struct capture *)((char *)op - offsetof(struct capture, read));

	(void)flags;
	if (c->syncing) {
		c->syncing = false;
		if (res < 0)
			c->failed = res;
		else
			finish_batch(c);
		return;
	}
	if (res == -EINTR || res == -EAGAIN) {
		submit_read(c);
		return;
	}
	if (res <= 0) {
		/* Published frames are always there; anything else is a broken disk. */
		c->failed = res < 0 ? res : -EIO;
		return;
	}
	c->read_have += (uint32_t)res;
	if (c->read_have < c->read_frames * batch_frame_bytes(c->page_bytes))
		submit_read(c);
	else if (c->durable)
		submit_sync(c);
	else
		finish_batch(c);
}

/* Everything up to h->mx_frame is in the ring. Was every change of the header one of the commits
 * we read? If not, another process rebuilt the index from the WAL: it may have dropped frames
 * that we have shipped and let new ones stand in their place. */
static bool continuous(struct capture *c, const struct wal_index_header *h)
{
	bool same = !c->change_known || h->change - c->change_since == c->commits_since;

	c->change_since = h->change;
	c->change_known = true;
	c->commits_since = 0;
	return same;
}

/* Read the frames from the base on once more and fold them: do they still give our chain? */
static bool still_the_same(struct capture *c)
{
	static uint8_t frame[FRAME_HEADER_BYTES + PAGE_BYTES_MAX];
	const struct capture_record *r = &c->record;
	uint64_t chain = r->base_chain;
	uint32_t bytes = batch_frame_bytes(c->page_bytes);

	for (uint32_t f = r->base_frame + 1; f <= r->frame; f++) {
		if (pread(c->wal_fd, frame, bytes, (off_t)wal_frame_offset(f, c->page_bytes)) !=
		    (ssize_t)bytes)
			return false;
		chain = chain_fold(chain, frame,
				   page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES,
					     c->page_bytes));
	}
	return chain == r->chain;
}

static bool new_life(const struct capture *c, const struct wal_index_header *h)
{
	return memcmp(h->salt, c->record.salt, sizeof(h->salt)) != 0;
}

/* Does the frame we read last still stand there? If a recovery dropped frames that we have
 * shipped and others took their place, it does not: then nothing may follow it. */
static bool last_frame_stands(struct capture *c)
{
	uint8_t head[FRAME_HEADER_BYTES];

	if (!c->last_known || c->record.frame == 0)
		return true;
	return pread(c->wal_fd, head, sizeof(head),
		     (off_t)wal_frame_offset(c->record.frame, c->page_bytes)) == sizeof(head) &&
	       memcmp(head, c->last_head, sizeof(head)) == 0;
}

/* PINNED, and nothing is being read: go on towards h. The work done. */
static unsigned int follow(struct capture *c, const struct wal_index_header *h)
{
	struct capture_record *r = &c->record;

	/* An empty header may yet be taken back by a recovery: stay where we are. */
	if (h->mx_frame && new_life(c, h)) {
		forecast_new_life(&c->forecast);
		memcpy(r->salt, h->salt, sizeof(r->salt));
		r->frame = r->base_frame = 0;
		r->base_txid = r->txid;
		r->base_chain = r->chain;
		capture_save(c);
		counter_add(c->feed->counters, COUNTER_wal_restarts, 1);
	}
	c->header = *h;
	forecast_look(&c->forecast, h->mx_frame, wal_index_backfill(c->conn.index));
	c->feed->waiting_bytes = 0;
	if (!new_life(c, h) && r->frame < h->mx_frame) {
		if (!last_frame_stands(c)) {
			capture_break(c, h);
			return 1;
		}
		c->feed->waiting_bytes =
			(uint64_t)(h->mx_frame - r->frame) * batch_frame_bytes(c->page_bytes);
		if (start_read(c, h->mx_frame)) {
			feed_moves(c->feed);
			return 1;
		}
		if (!c->feed->blocked_ns) {
			c->feed->blocked_ns = c->loop->now_ns;
			counter_add(c->feed->counters, COUNTER_ring_full, 1);
		}
		return 0;
	}
	feed_moves(c->feed);
	c->feed->passes++;
	if ((!new_life(c, h) && r->frame > h->mx_frame) ||
	    (!continuous(c, h) && h->mx_frame && !still_the_same(c))) {
		capture_break(c, h);
		return 1;
	}
	if (pin_gate(&c->pin, h))
		counter_add(c->feed->counters, COUNTER_gates, 1);
	return 0;
}

unsigned int capture_do_work(struct capture *c)
{
	struct wal_index_header h;

	if (c->read.busy || c->failed)
		return 0;
	if (stable_header(c, &h))
		return 0;
	if (c->pin.state == PIN_GATED) {
		if (memcmp(&h, &c->header, sizeof(h)) == 0) {
			c->feed->passes++;
			return 0;
		}
		if (pin_ungate(&c->pin) || stable_header(c, &h))
			return 0;
	}
	if (c->pin.weak) {
		counter_add(c->feed->counters, COUNTER_weak_pins, 1);
		pin_strengthen(&c->pin);
	}
	return follow(c, &h);
}

void capture_await(const struct capture *c, unsigned int looks)
{
	uint32_t backfill = wal_index_backfill(c->conn.index);

	while (looks-- && !capture_has_work(c) && wal_index_backfill(c->conn.index) == backfill)
		cpu_pause();
}

bool capture_has_work(const struct capture *c)
{
	return !c->read.busy && !c->failed &&
	       memcmp((const void *)c->conn.index, &c->header, sizeof(c->header)) != 0;
}
