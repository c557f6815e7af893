#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "daemon/apply/applier_parts.h"

static void note(struct applier *a, struct position at, const uint32_t salt[2], uint32_t mx_frame,
		 const uint32_t sum[2])
{
	positions_note(&a->positions, at, salt, mx_frame, sum);
}

static int seed_begin_batch(struct applier *a, const struct batch_header *h)
{
	int err = 0;

	a->seeding = (struct position){h->timeline, h->txid, h->chain};
	a->feed->open = false;
	table_open(a, 1u << h->page_shift);
	if (a->table.at)
		page_table_mark(&a->table, PAGE_TABLE_LOST);
	if (a->mode == APPLIER_LIVE || a->mode == APPLIER_RESEEDING) {
		wal_writer_rollback(&a->writer);
		a->mode = APPLIER_RESEEDING;
		return 0;
	}
	err = copy_begin(&a->copy, a->seed_path, 1u << h->page_shift);
	if (!err)
		a->mode = APPLIER_COPYING;
	return err;
}

/* The whole copy is in its file: let it become the replica. */
static int show_copy(struct applier *a, const struct batch_header *h)
{
	/* What a killed attempt left beside the file; the new one must not meet it. */
	if (access(a->feed->path, F_OK) == 0)
		return -EEXIST;
	applier_remove_file(a);
	table_complete(a, h->db_pages);
	a->record.live = 1;
	a->record.pristine = 1;
	a->record.synced = 0;
	a->record.timeline = h->timeline;
	a->record.txid = h->txid;
	a->record.chain = h->chain;
	boot_id(a->record.boot);
	positions_clear(&a->positions);
	applier_save(a);
	return copy_finish(&a->copy, a->seed_path, a->feed->path, h->db_pages);
}

/* Each part can fail for want of space and is then tried again. */
static int finish_copy(struct applier *a, const struct batch_header *h)
{
	char why[256];
	int err = a->copy.fd >= 0 ? show_copy(a, h) : 0;

	if (err) {
		a->record.live = 0;
		applier_save(a);
		return err;
	}
	err = wal_writer_open(&a->writer, a->feed->path, a->record.page_bytes, why, sizeof(why));
	if (err)
		return err;
	a->applied = (struct position){h->timeline, h->txid, h->chain};
	a->known = true;
	err = wal_writer_adopt(&a->writer, applier_note_new_life, a);
	if (err) {
		wal_writer_close(&a->writer);
		a->known = false;
		return err;
	}
	a->record.pristine = 0;
	applier_save(a);
	return 0;
}

/* Frames of a reseed are in the WAL without any mark. The last one is written once more with the
 * mark, and published: the whole copy becomes one commit. */
static int finish_reseed(struct applier *a, const struct batch_header *h)
{
	static uint8_t frame[FRAME_HEADER_BYTES + PAGE_BYTES_MAX];
	struct position at = {h->timeline, h->txid, h->chain};
	uint32_t sum[1][2], db_pages = htobe32(h->db_pages);
	int err = wal_writer_last(&a->writer, frame);

	if (err)
		return err;
	memcpy(frame + 4, &db_pages, 4);
	wal_writer_prepare(&a->writer, frame, 1, true, sum);
	note(a, at, a->writer.header.salt, a->writer.appended + 1, sum[0]);
	err = wal_writer_append(&a->writer, frame, 1);
	if (err)
		return err;
	wal_writer_publish(&a->writer, a->writer.appended, h->db_pages, sum[0]);
	a->applied = at;
	a->known = true;
	return 0;
}

int apply_seed(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	static uint32_t sums[WAL_WRITER_FRAMES][2];
	int err;

	if (h->flags & BATCH_SEED_BEGIN)
		return seed_begin_batch(a, h);
	if (h->flags & BATCH_SEED_END) {
		err = a->mode == APPLIER_COPYING ? finish_copy(a, h) : finish_reseed(a, h);
		if (err)
			return err;
		a->mode = APPLIER_LIVE;
		a->chain = h->chain;
		a->feed->db_pages = h->db_pages;
		a->feed->open = true;
		table_complete(a, h->db_pages);
		return 0;
	}
	if (h->frames == 0)
		return 0;
	table_enter_batch(a, batch, h);
	if (a->mode == APPLIER_COPYING)
		return copy_pages(&a->copy, batch + BATCH_HEADER_BYTES, h->frames);
	wal_writer_prepare(&a->writer, batch + BATCH_HEADER_BYTES, h->frames, false, sums);
	return wal_writer_append(&a->writer, batch + BATCH_HEADER_BYTES, h->frames);
}

/* ---- commits ---- */

/* Frames of commits that are applied already, at the batch's beginning. */
static uint32_t known_frames(const struct applier *a, const uint8_t *batch,
			     const struct batch_header *h)
{
	uint64_t known = h->txid - h->commits < a->applied.txid ?
				 a->applied.txid - (h->txid - h->commits) : 0;
	uint32_t i = 0;

	for (; i < h->frames && known; i++)
		if (frame_db_pages(batch_frame(batch, i, 1u << h->page_shift)))
			known--;
	return i;
}

void apply_rollback(struct applier *a)
{
	wal_writer_rollback(&a->writer);
	a->chain = a->applied.chain;
}

/* Append the batch's frames and publish its commits one by one. */
static int apply_live(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	static uint32_t sums[WAL_WRITER_FRAMES][2];
	static uint64_t chains[WAL_WRITER_FRAMES];
	const uint64_t *hashes = feed_hashes(a->feed, a->pos);
	uint32_t page_bytes = 1u << h->page_shift, skip = known_frames(a, batch, h);
	const uint8_t *frames = batch_frame(batch, skip, page_bytes);
	uint32_t n = h->frames - skip, first, parts;
	uint64_t chain = h->chain_before, txid = a->applied.txid;
	uint64_t noted = a->positions.sequence;
	int err;

	/* Not where we are, parts included: the source has begun the commit anew. */
	if (h->chain_before != a->chain)
		apply_rollback(a);
	for (uint32_t i = 0; i < h->frames; i++) {
		chain = chain_fold(chain, batch_frame(batch, i, page_bytes), hashes[i]);
		if (i >= skip)
			chains[i - skip] = chain;
	}
	/* A kill among what follows leaves pages in doubt that are in the WAL. */
	if (h->commits)
		table_trust(a, PAGE_TABLE_BUSY);
	wal_writer_prepare(&a->writer, frames, n, true, sums);
	parts = a->writer.header.mx_frame + 1;
	first = a->writer.appended + 1;
	for (uint32_t i = 0; i < n; i++)
		if (frame_db_pages(batch_frame(batch, skip + i, page_bytes)))
			note(a, (struct position){h->timeline, ++txid, chains[i]},
			     a->writer.header.salt, first + i, sums[i]);
	err = wal_writer_append(&a->writer, frames, n);
	if (err) {
		/* The next try notes them again, in the same places. */
		a->positions.sequence = noted;
		return err;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t db_pages = frame_db_pages(batch_frame(batch, skip + i, page_bytes));

		if (!db_pages)
			continue;
		wal_writer_publish(&a->writer, first + i, db_pages, sums[i]);
		a->applied = (struct position){h->timeline, a->applied.txid + 1, chains[i]};
	}
	a->chain = h->chain;
	/* Parts are entered with the end of their commit. */
	if (h->commits == 0)
		return 0;
	table_enter_written(a, parts, first - 1);
	for (uint32_t i = skip; i < h->frames; i++)
		table_enter(a, batch_frame(batch, i, page_bytes), hashes[i]);
	if (a->table.at)
		page_table_cut(&a->table, h->db_pages);
	table_trust(a, PAGE_TABLE_CLEAN);
	return 0;
}

int apply_commit(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	static uint32_t sums[WAL_WRITER_FRAMES][2];

	if (a->mode == APPLIER_LIVE) {
		if (h->txid <= a->applied.txid && h->commits)
			return 0; /* known already */
		return apply_live(a, batch, h);
	}
	/* Between the chunks of a seed. */
	table_enter_batch(a, batch, h);
	if (a->mode == APPLIER_COPYING)
		return copy_pages(&a->copy, batch + BATCH_HEADER_BYTES, h->frames);
	if (a->mode != APPLIER_RESEEDING)
		return -EPROTO;
	wal_writer_prepare(&a->writer, batch + BATCH_HEADER_BYTES, h->frames, false, sums);
	return wal_writer_append(&a->writer, batch + BATCH_HEADER_BYTES, h->frames);
}
