/* batches.h - makes batches as a source would, of random pages. After testing.h. */
#ifndef WALWIRE_BATCHES_H
#define WALWIRE_BATCHES_H

#include "daemon/wire/batch.h"

/* Where the source stands. A copy of it is another source with the same past. */
struct maker {
	uint32_t page_bytes;
	struct position at; /* after the last whole commit */
	uint64_t chain;	    /* parts included */
	uint32_t db_pages;
	uint64_t time_ns;
	uint64_t seed_chain;
};

MAYBE uint64_t make_frame(const struct maker *m, uint8_t *frame, uint32_t pgno, uint32_t db_pages,
			  uint64_t chain)
{
	uint32_t be[2] = {htobe32(pgno), htobe32(db_pages)};

	rnd_fill(frame, FRAME_HEADER_BYTES + m->page_bytes);
	memcpy(frame, be, 8);
	frame_strip(frame);
	return chain_fold(chain, frame, page_hash(pgno, frame + FRAME_HEADER_BYTES, m->page_bytes));
}

MAYBE void make_finish(const struct maker *m, uint8_t *to, struct batch_header *h)
{
	size_t end = BATCH_HEADER_BYTES + (size_t)h->frames * batch_frame_bytes(m->page_bytes);

	h->page_shift = (uint8_t)__builtin_ctz(m->page_bytes);
	h->timeline = m->at.timeline;
	h->time_ns = m->time_ns;
	h->bytes = (uint32_t)batch_bytes(h->frames, m->page_bytes);
	memset(to + end, 0, h->bytes - end);
	batch_header_put(to, h);
}

/* A batch of `n` commits of frames[i] frames each; with `part` the last of them does not end here.
 * seen[] (if given) gets the position after each whole commit. Its bytes. */
MAYBE uint32_t make_commits(struct maker *m, uint8_t *to, const uint32_t *frames, uint32_t n, bool part,
			    struct position *seen)
{
	struct batch_header h = {.kind = BATCH_COMMIT, .chain_before = m->chain};

	for (uint32_t c = 0; c < n; c++) {
		bool ends = !part || c + 1 < n;

		for (uint32_t i = 0; i < frames[c]; i++, h.frames++) {
			uint32_t pgno = 1 + below(m->db_pages + 1);
			bool last = ends && i + 1 == frames[c];

			if (pgno > m->db_pages)
				m->db_pages = pgno;
			m->chain = make_frame(m, (uint8_t *)(uintptr_t)batch_frame(to, h.frames,
										   m->page_bytes),
					      pgno, last ? m->db_pages : 0, m->chain);
		}
		if (!ends)
			continue;
		m->at.txid++;
		m->at.chain = m->chain;
		h.commits++;
		if (seen)
			*seen++ = m->at;
	}
	h.chain = m->chain;
	h.txid = m->at.txid;
	h.db_pages = m->db_pages;
	make_finish(m, to, &h);
	return h.bytes;
}

MAYBE uint32_t make_commit(struct maker *m, uint8_t *to, uint32_t frames)
{
	return make_commits(m, to, &frames, 1, false, NULL);
}

/* A part of a commit; the next batch goes on with it. */
MAYBE uint32_t make_part(struct maker *m, uint8_t *to, uint32_t frames)
{
	return make_commits(m, to, &frames, 1, true, NULL);
}

/* BATCH_SEED_BEGIN or BATCH_SEED_END at the present position. */
MAYBE uint32_t make_mark(struct maker *m, uint8_t *to, uint8_t flags)
{
	struct batch_header h = {.kind = BATCH_SEED,
				 .flags = flags,
				 .txid = m->at.txid,
				 .chain_before = m->at.chain,
				 .chain = m->at.chain,
				 .db_pages = m->db_pages};

	if (flags & BATCH_SEED_BEGIN)
		m->seed_chain = 0;
	if (flags & BATCH_SEED_END)
		h.chain_before = m->seed_chain;
	make_finish(m, to, &h);
	return h.bytes;
}

/* A chunk of a seed: `n` pages from `first` on. */
MAYBE uint32_t make_chunk(struct maker *m, uint8_t *to, uint32_t first, uint32_t n)
{
	struct batch_header h = {.kind = BATCH_SEED, .frames = n, .chain_before = m->seed_chain};

	for (uint32_t i = 0; i < n; i++)
		m->seed_chain = make_frame(m, (uint8_t *)(uintptr_t)batch_frame(to, i, m->page_bytes),
					   first + i, 0, m->seed_chain);
	h.chain = m->seed_chain;
	make_finish(m, to, &h);
	return h.bytes;
}

MAYBE uint32_t make_heartbeat(struct maker *m, uint8_t *to, uint64_t lag_ns)
{
	struct batch_header h = {.kind = BATCH_HEARTBEAT,
				 .txid = m->at.txid,
				 .chain = lag_ns,
				 .db_pages = m->db_pages};

	make_finish(m, to, &h);
	return h.bytes;
}

#endif
