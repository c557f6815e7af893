#include "daemon/wire/feed.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int feed_open(struct feed *f, struct loop *loop, const char *name, const char *path,
	      uint64_t ring_bytes, int cpu)
{
	int err;

	memset(f, 0, sizeof(*f));
	snprintf(f->name, sizeof(f->name), "%s", name);
	snprintf(f->path, sizeof(f->path), "%s", path);
	err = segment_create(&f->segment, name, ring_bytes, cpu);
	if (err)
		return err;
	/* A batch may reach beyond the ring's end, into its second mapping. */
	f->hashes = calloc((ring_bytes + BATCH_BYTES_MAX) / PAGE_BYTES_MIN, sizeof(*f->hashes));
	if (!f->hashes) {
		segment_close(&f->segment);
		return -ENOMEM;
	}
	ring_init(&f->ring, &f->segment.header->ring, f->segment.data, ring_bytes);
	f->counters = &f->segment.header->counters;
	/* Without registration the same operations run with plain addresses. */
	f->buffer = loop_register(loop, f->segment.data, 2 * ring_bytes);
	return 0;
}

void feed_close(struct feed *f)
{
	segment_close(&f->segment);
	free(f->hashes);
	f->hashes = NULL;
}

void feed_set_page_bytes(struct feed *f, uint32_t page_bytes)
{
	f->page_bytes = page_bytes;
	f->segment.header->page_size = page_bytes;
}

void feed_publish(struct feed *f, const struct batch_header *h)
{
	uint64_t begin = ring_published(&f->ring), end = begin + h->bytes;

	if (h->kind == BATCH_COMMIT) {
		counter_add(f->counters, COUNTER_commits, h->commits);
		counter_add(f->counters, COUNTER_frames, h->frames);
		if (h->commits) {
			f->at = (struct position){h->timeline, h->txid, h->chain};
			f->db_pages = h->db_pages;
			f->time_ns = h->time_ns;
			f->commit_pos = end;
		}
	} else if (h->kind == BATCH_SEED && h->flags) {
		f->at = (struct position){h->timeline, h->txid, h->chain};
		f->commit_pos = end;
		if (h->flags & BATCH_SEED_END) {
			f->db_pages = h->db_pages;
			f->floor_pos = end;
		}
	}
	counter_add(f->counters, COUNTER_batches, 1);
	counter_add(f->counters, COUNTER_bytes, h->bytes);
	ring_publish(&f->ring, end);
}

void feed_break(struct feed *f, struct position at, uint32_t db_pages)
{
	f->at = at;
	f->db_pages = db_pages;
	f->floor_pos = f->commit_pos = f->visible_pos = ring_published(&f->ring);
	f->broken++;
}

void feed_moves(struct feed *f)
{
	if (f->blocked_ns &&
	    ring_published(&f->ring) - ring_slowest(&f->ring) < f->ring.shared->size / 2)
		f->blocked_ns = 0;
}

/* The chain after commit number `nth` (1-based) of the batch at `pos`. */
static uint64_t chain_within(const struct feed *f, uint64_t pos, const struct batch_header *h,
			     uint64_t nth)
{
	const uint8_t *batch = ring_at(&f->ring, pos);
	const uint64_t *hashes = feed_hashes(f, pos);
	uint64_t chain = h->chain_before;

	for (uint32_t i = 0; i < h->frames && nth; i++) {
		const uint8_t *frame = batch_frame(batch, i, 1u << h->page_shift);

		chain = chain_fold(chain, frame, hashes[i]);
		if (frame_db_pages(frame))
			nth--;
	}
	return chain;
}

int feed_find(const struct feed *f, struct position at, uint64_t *ret_pos)
{
	uint64_t pos = ring_oldest(&f->ring), end = ring_published(&f->ring);
	struct batch_header h;

	if (at.timeline != f->at.timeline)
		return -ESTALE;
	if (pos < f->floor_pos)
		pos = f->floor_pos;
	for (; pos < end; pos += h.bytes) {
		/* Our own bytes, checked before they were published. */
		int err = batch_header_get(ring_at(&f->ring, pos), &h);
		uint64_t before = h.txid - h.commits;

		assert(!err);
		if (h.kind != BATCH_COMMIT)
			continue;
		if (before > at.txid)
			return -ESTALE;
		if (before == at.txid && h.chain_before == at.chain) {
			*ret_pos = pos;
			return 0;
		}
		if (h.commits == 0 || h.txid < at.txid || before == at.txid)
			continue;
		/* The peer's last commit is one of this batch's. */
		if (chain_within(f, pos, &h, at.txid - before) != at.chain)
			return -ESTALE;
		*ret_pos = at.txid == h.txid ? pos + h.bytes : pos;
		return 0;
	}
	if (at.txid != f->at.txid || at.chain != f->at.chain || f->commit_pos != end)
		return -ESTALE;
	*ret_pos = end;
	return 0;
}
