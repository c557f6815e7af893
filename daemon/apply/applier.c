#include "daemon/apply/applier.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MS		1000000ull
#define BATCHES_PER_STEP 16

static void checkpoint_run(struct job *job);
static void checkpoint_done(struct job *job);

static void read_boot(uint64_t boot[2])
{
	char text[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	memset(boot, 0, 16);
	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) > 16)
		memcpy(boot, text, 16);
	close(fd);
}

/* Something could not be written: say so, and try again later. */
static void trouble(struct applier *a, int err)
{
	a->retry_ns = a->loop->now_ns + RETRY_MS * MS;
	snprintf(a->problem, sizeof(a->problem), "cannot write '%s': %s; %sit goes on by itself",
		 a->feed->path, strerror(-err), err == -ENOSPC ? "make room, " : "");
}

static void save_record(struct applier *a)
{
	slots_write(&a->slots, &a->record);
}

static void note(struct applier *a, struct position at, const uint32_t salt[2], uint32_t mx_frame,
		 const uint32_t sum[2])
{
	positions_note(&a->positions, at, salt, mx_frame, sum);
}

/* The WAL is about to begin a life without frames: the state stays. */
static void note_new_life(void *ctx, const uint32_t salt[2])
{
	struct applier *a = ctx;
	const uint32_t none[2] = {0, 0};

	if (a->known)
		note(a, a->applied, salt, 0, none);
}

static void remove_file(struct applier *a)
{
	static const char *const suffix[] = {"", "-wal", "-shm"};
	char path[DB_PATH_MAX + 16];

	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s%s", a->feed->path, suffix[i]);
		unlink(path);
	}
}

/* ---- the page table ---- */

static void table_trust(struct applier *a, enum page_table_trust trust)
{
	/* Lost stays lost until a whole copy has been entered. */
	if (a->table.at && page_table_trust(&a->table) != PAGE_TABLE_LOST)
		page_table_mark(&a->table, trust);
}

/* A table that cannot grow is lost and says so; the replica goes on without. */
static void table_enter(struct applier *a, const uint8_t *frame, uint64_t hash)
{
	if (a->table.at)
		page_table_set(&a->table, frame_pgno(frame), hash);
}

static void table_enter_batch(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	uint32_t page_bytes = 1u << h->page_shift;

	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, page_bytes);

		table_enter(a, frame,
			    page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES, page_bytes));
	}
}

/* A whole copy has been entered. */
static void table_complete(struct applier *a, uint32_t db_pages)
{
	if (!a->table.at)
		return;
	page_table_cut(&a->table, db_pages);
	page_table_mark(&a->table, PAGE_TABLE_CLEAN);
}

static void table_open(struct applier *a, uint32_t page_bytes)
{
	if (!a->table.at && page_table_open(&a->table, a->table_path, page_bytes))
		a->table.at = NULL;
}

/* Enter what is in the WAL once more: a kill may have come between a commit and its entries. */
static void table_catch_up(struct applier *a)
{
	static uint8_t frame[FRAME_HEADER_BYTES + PAGE_BYTES_MAX];
	uint32_t bytes = batch_frame_bytes(a->record.page_bytes);
	uint32_t db_pages = a->writer.header.db_pages;

	if (!a->table.at || page_table_trust(&a->table) == PAGE_TABLE_LOST)
		return;
	for (uint32_t f = 1; f <= a->writer.header.mx_frame; f++) {
		if (pread(a->writer.wal_fd, frame, bytes,
			  (off_t)wal_frame_offset(f, a->record.page_bytes)) != (ssize_t)bytes) {
			page_table_mark(&a->table, PAGE_TABLE_LOST);
			return;
		}
		table_enter(a, frame, page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES,
						a->record.page_bytes));
	}
	if (db_pages)
		page_table_cut(&a->table, db_pages);
	table_trust(a, PAGE_TABLE_CLEAN);
}

/* Compare the file, page by page, with the table. */
static bool table_agrees(struct applier *a)
{
	static uint8_t page[PAGE_BYTES_MAX];
	uint32_t page_bytes = a->record.page_bytes, pages = 0;

	if (conn_file_pages(&a->writer.conn, page_bytes, &pages) ||
	    page_table_get(&a->table, pages) == 0 || page_table_get(&a->table, pages + 1) != 0)
		return false;
	for (uint32_t p = 1; p <= pages; p++) {
		uint64_t hash = page_table_get(&a->table, p);

		/* Pages that no commit ever carried have no hash: they hold nothing. */
		if (hash && (conn_read_file(&a->writer.conn, page, page_bytes,
					    (uint64_t)(p - 1) * page_bytes) ||
			     page_hash(p, page, page_bytes) != hash))
			return false;
	}
	return true;
}

uint64_t applier_fingerprint(const struct applier *a)
{
	if (!a->table.at || a->mode != APPLIER_LIVE ||
	    page_table_trust(&a->table) != PAGE_TABLE_CLEAN)
		return STATUS_UNKNOWN;
	return page_table_sum(&a->table);
}

/* ---- opening ---- */

/* The writer is open on the file of an earlier run: which of our states is it? */
static int identify(struct applier *a, bool rebooted, char *why, size_t why_bytes)
{
	const struct wal_index_header *h = &a->writer.header;

	a->known = true;
	if (positions_find(&a->positions, h, &a->applied) == 0) {
		table_catch_up(a);
		return 0;
	}
	if (h->mx_frame == 0 && a->record.pristine) {
		a->applied = (struct position){a->record.timeline, a->record.txid, a->record.chain};
		return 0;
	}
	/* A reader that was the last to close has moved the WAL into the file and removed it. */
	if (h->mx_frame == 0 && a->table.at && page_table_trust(&a->table) == PAGE_TABLE_CLEAN &&
	    positions_last(&a->positions, &a->applied) == 0 && table_agrees(a))
		return 0;
	a->known = false;
	/* Not provable: it will be seeded again, through its WAL. */
	if (rebooted || (h->mx_frame == 0 && (!a->table.at ||
					      page_table_trust(&a->table) != PAGE_TABLE_CLEAN)))
		return 0;
	snprintf(why, why_bytes,
		 "'%s' was written by another program since walwire last applied a commit; move it "
		 "away to have it copied again",
		 a->feed->path);
	return -EEXIST;
}

static int open_live(struct applier *a, char *why, size_t why_bytes)
{
	struct feed *feed = a->feed;
	uint64_t boot[2];
	bool rebooted;
	int err;

	read_boot(boot);
	rebooted = memcmp(boot, a->record.boot, sizeof(boot)) != 0;
	if (access(feed->path, F_OK) < 0 || (rebooted && !a->record.synced)) {
		/* Gone, or a copy that a power loss may have left in pieces. */
		remove_file(a);
		a->record.live = 0;
		save_record(a);
		return 0;
	}
	err = wal_writer_open(&a->writer, feed->path, a->record.page_bytes, why, why_bytes);
	if (err)
		return err;
	table_open(a, a->record.page_bytes);
	err = identify(a, rebooted, why, why_bytes);
	if (!err) {
		err = wal_writer_adopt(&a->writer, note_new_life, a);
		if (err)
			snprintf(why, why_bytes, "cannot go on in the WAL of '%s': %s", feed->path,
				 strerror(-err));
	}
	if (err) {
		wal_writer_close(&a->writer);
		return err;
	}
	if (a->record.pristine || rebooted) {
		a->record.pristine = 0;
		memcpy(a->record.boot, boot, sizeof(boot));
		save_record(a);
	}
	a->mode = APPLIER_LIVE;
	if (a->known) {
		feed->at = a->applied;
		feed->db_pages = a->writer.header.db_pages;
		if (feed->db_pages == 0)
			conn_file_pages(&a->writer.conn, a->record.page_bytes, &feed->db_pages);
		a->chain = a->applied.chain;
		feed->open = true;
	}
	return 0;
}

int applier_open(struct applier *a, struct feed *feed, struct loop *loop, struct worker *worker,
		 const char *state_dir, bool durable_mode, char *why, size_t why_bytes)
{
	char path[DB_PATH_MAX + 300];
	char *slash;
	int err;

	memset(a, 0, sizeof(*a));
	a->feed = feed;
	a->loop = loop;
	a->worker = worker;
	a->durable_mode = durable_mode;
	a->copy.fd = -1;
	a->writer.wal_fd = -1;
	a->durable = STATUS_UNKNOWN;
	a->checkpoint.applier = a;
	a->checkpoint.job.run = checkpoint_run;
	a->checkpoint.job.done = checkpoint_done;
	snprintf(a->seed_path, sizeof(a->seed_path), "%s", feed->path);
	slash = strrchr(a->seed_path, '/');
	snprintf(slash, sizeof(a->seed_path) - (size_t)(slash - a->seed_path), "/.%s.seed",
		 feed->name);
	snprintf(a->table_path, sizeof(a->table_path), "%s/%s.pages", state_dir, feed->name);
	snprintf(path, sizeof(path), "%s/%s.positions", state_dir, feed->name);
	err = positions_open(&a->positions, path);
	if (err) {
		snprintf(why, why_bytes, "cannot use '%s': %s", path, strerror(-err));
		return err;
	}
	snprintf(a->record_path, sizeof(a->record_path), "%s/%s.replica", state_dir, feed->name);
	if (access(a->record_path, F_OK) == 0) {
		err = slots_open(&a->slots, a->record_path, sizeof(a->record), feed->db_id);
		if (err) {
			snprintf(why, why_bytes, "cannot use '%s': %s", a->record_path,
				 strerror(-err));
			goto undo_positions;
		}
		if (slots_read(&a->slots, &a->record) == 0 && a->record.live)
			err = open_live(a, why, why_bytes);
	}
	if (!err && a->mode == APPLIER_EMPTY && access(feed->path, F_OK) == 0) {
		snprintf(why, why_bytes,
			 "'%s' exists and is no replica of walwire's; move it away or choose another "
			 "directory",
			 feed->path);
		err = -EEXIST;
	}
	if (err)
		goto undo_slots;
	if (a->mode == APPLIER_LIVE)
		feed_set_page_bytes(feed, a->record.page_bytes);
	a->reader = ring_attach(&feed->ring, 0);
	assert(a->reader >= 0);
	return 0;
undo_slots:
	slots_close(&a->slots);
undo_positions:
	positions_close(&a->positions);
	return err;
}

void applier_close(struct applier *a)
{
	if (a->copy.fd >= 0)
		copy_abort(&a->copy, a->seed_path);
	conn_close(&a->checkpoint.conn);
	wal_writer_close(&a->writer);
	page_table_close(&a->table);
	slots_close(&a->slots);
	positions_close(&a->positions);
}

/* ---- seeds ---- */

int applier_expect_seed(struct applier *a, const uint8_t db_id[16], uint32_t page_bytes, char *why,
			size_t why_bytes)
{
	struct feed *feed = a->feed;
	int err;

	if (a->mode == APPLIER_LIVE && a->record.page_bytes != page_bytes) {
		snprintf(why, why_bytes,
			 "the page size of the source is now %u, that of '%s' is %u; move it away to "
			 "have it copied again",
			 page_bytes, feed->path, a->record.page_bytes);
		return -EEXIST;
	}
	if (!a->slots.at) {
		memcpy(feed->db_id, db_id, DB_ID_BYTES);
		err = slots_open(&a->slots, a->record_path, sizeof(a->record), feed->db_id);
		if (err) {
			snprintf(why, why_bytes, "cannot use '%s': %s", a->record_path,
				 strerror(-err));
			return err;
		}
	}
	if (memcmp(feed->db_id, db_id, DB_ID_BYTES)) {
		snprintf(why, why_bytes,
			 "the source's '%s' is another database than the one this replica copied; "
			 "choose another directory and --state-dir",
			 feed->name);
		return -EEXIST;
	}
	a->record.page_bytes = page_bytes;
	save_record(a);
	feed_set_page_bytes(feed, page_bytes);
	return 0;
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

static int finish_copy(struct applier *a, const struct batch_header *h)
{
	char why[256];
	int err;

	/* A killed attempt may have left these; the new file must not meet them. */
	remove_file(a);
	a->record.live = 1;
	a->record.pristine = 1;
	a->record.synced = 0;
	a->record.timeline = h->timeline;
	a->record.txid = h->txid;
	a->record.chain = h->chain;
	read_boot(a->record.boot);
	positions_clear(&a->positions);
	save_record(a);
	err = copy_finish(&a->copy, a->seed_path, a->feed->path, h->db_pages);
	if (err)
		return err;
	err = wal_writer_open(&a->writer, a->feed->path, a->record.page_bytes, why, sizeof(why));
	if (!err) {
		a->applied = (struct position){h->timeline, h->txid, h->chain};
		a->known = true;
		err = wal_writer_adopt(&a->writer, note_new_life, a);
	}
	if (err)
		return err;
	a->record.pristine = 0;
	save_record(a);
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

static int apply_seed(struct applier *a, const uint8_t *batch, const struct batch_header *h)
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

/* Append the batch's frames and publish its commits one by one. */
static int apply_live(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	static uint32_t sums[WAL_WRITER_FRAMES][2];
	static uint64_t chains[WAL_WRITER_FRAMES], hashes[WAL_WRITER_FRAMES];
	uint32_t page_bytes = 1u << h->page_shift, skip = known_frames(a, batch, h);
	const uint8_t *frames = batch_frame(batch, skip, page_bytes);
	uint32_t n = h->frames - skip, first;
	uint64_t chain = h->chain_before, txid = a->applied.txid;
	int err;

	if (h->chain_before == a->applied.chain && h->txid - h->commits == a->applied.txid)
		wal_writer_rollback(&a->writer); /* the commit begins anew */
	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, page_bytes);

		hashes[i] = page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES, page_bytes);
		chain = chain_fold(chain, frame, hashes[i]);
		if (i >= skip)
			chains[i - skip] = chain;
	}
	table_trust(a, PAGE_TABLE_BUSY);
	wal_writer_prepare(&a->writer, frames, n, true, sums);
	first = a->writer.appended + 1;
	for (uint32_t i = 0; i < n; i++)
		if (frame_db_pages(batch_frame(batch, skip + i, page_bytes)))
			note(a, (struct position){h->timeline, ++txid, chains[i]},
			     a->writer.header.salt, first + i, sums[i]);
	err = wal_writer_append(&a->writer, frames, n);
	if (err)
		return err;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t db_pages = frame_db_pages(batch_frame(batch, skip + i, page_bytes));

		if (!db_pages)
			continue;
		wal_writer_publish(&a->writer, first + i, db_pages, sums[i]);
		a->applied = (struct position){h->timeline, a->applied.txid + 1, chains[i]};
	}
	a->chain = h->chain;
	for (uint32_t i = skip; i < h->frames; i++)
		table_enter(a, batch_frame(batch, i, page_bytes), hashes[i]);
	if (h->commits && a->table.at)
		page_table_cut(&a->table, h->db_pages);
	/* A part of a commit is not in the database yet. */
	if (h->commits)
		table_trust(a, PAGE_TABLE_CLEAN);
	return 0;
}

static int apply_commit(struct applier *a, const uint8_t *batch, const struct batch_header *h)
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

/* ---- checkpoints and syncs ---- */

static void checkpoint_run(struct job *job)
{
	struct checkpoint_job *c = (struct checkpoint_job *)job;
	struct applier *a = c->applier;
	char why[256];

	c->err = 0;
	if (!c->conn.db && conn_open(&c->conn, a->feed->path, why, sizeof(why))) {
		c->err = -EIO;
		return;
	}
	if (c->sync_copy)
		c->err = conn_sync_file(&c->conn);
	if (!c->err && fdatasync(a->writer.wal_fd) < 0)
		c->err = -errno;
	if (!c->err)
		c->err = positions_sync(&a->positions);
	if (!c->err)
		c->err = slots_sync(&a->slots);
	if (!c->err && c->backfill)
		c->err = conn_checkpoint(&c->conn, &c->frames, &c->backfilled);
}

static void checkpoint_done(struct job *job)
{
	struct checkpoint_job *c = (struct checkpoint_job *)job;
	struct applier *a = c->applier;

	if (c->err && c->err != -EBUSY) {
		a->hold = false;
		trouble(a, c->err);
		return;
	}
	if (!c->err && (a->durable == STATUS_UNKNOWN || c->txid > a->durable))
		a->durable = c->txid;
	if (c->sync_copy && !c->err) {
		a->record.synced = 1;
		save_record(a);
	}
	if (!c->backfill)
		return;
	counter_add(a->feed->counters, COUNTER_checkpoints, 1);
	if (c->err || c->backfilled < c->frames) {
		counter_add(a->feed->counters, COUNTER_checkpoints_busy, 1);
		if (a->hold)
			a->hold_again_ns = a->loop->now_ns + HOLD_AGAIN_MS * MS;
		a->hold = false;
	}
	/* A hold ends when the WAL has begun anew, in applier_do_work(). */
}

static void ask_checkpoint(struct applier *a, bool backfill)
{
	struct checkpoint_job *c = &a->checkpoint;

	c->backfill = backfill;
	c->sync_copy = !a->record.synced;
	c->txid = a->applied.txid;
	if (backfill)
		a->checkpointed = a->writer.header.mx_frame;
	worker_give(a->worker, &c->job);
}

/* Is there something for the worker? */
static void tend(struct applier *a)
{
	uint64_t now = a->loop->now_ns;
	uint32_t frames = a->writer.header.mx_frame;

	if (a->mode != APPLIER_LIVE || !a->known || a->checkpoint.job.out || now < a->retry_ns)
		return;
	if (a->hold) {
		/* Everything was backfilled, but a reader is still in the way. */
		a->hold = false;
		a->hold_again_ns = now + HOLD_AGAIN_MS * MS;
	}
	if (frames >= a->checkpointed + CHECKPOINT_FRAMES) {
		a->hold = wal_writer_bytes(&a->writer) > HOLD_BYTES && now >= a->hold_again_ns;
		ask_checkpoint(a, true);
	} else if (a->durable != a->applied.txid &&
		   (a->durable_mode || now - a->last_apply_ns > SYNC_IDLE_MS * MS)) {
		ask_checkpoint(a, false);
	}
}

/* Let the WAL begin a new life when it can. */
static void renew(struct applier *a)
{
	int done;

	if (a->mode != APPLIER_LIVE || a->checkpoint.job.out || !a->checkpointed)
		return;
	done = wal_writer_restart(&a->writer, note_new_life, a);
	if (done > 0) {
		a->checkpointed = 0;
		a->hold = false;
	} else if (done < 0) {
		trouble(a, done);
	}
}

/* ---- steps ---- */

static int apply_batch(struct applier *a, const struct batch_header *h)
{
	const uint8_t *batch = ring_at(&a->feed->ring, a->pos);
	int err = h->kind == BATCH_SEED ? apply_seed(a, batch, h) : apply_commit(a, batch, h);

	if (err)
		return err;
	a->pos += h->bytes;
	ring_release(&a->feed->ring, a->reader, a->pos);
	if (a->mode == APPLIER_LIVE && a->writer.appended == a->writer.header.mx_frame) {
		a->feed->visible_pos = a->pos;
		if (h->commits)
			a->applied_time_ns = h->time_ns;
	}
	a->last_apply_ns = a->loop->now_ns;
	counter_set(a->feed->counters, COUNTER_replica_wal_bytes, wal_writer_bytes(&a->writer));
	return 0;
}

unsigned int applier_do_work(struct applier *a)
{
	unsigned int work = 0;
	struct batch_header h;

	tend(a);
	if (a->loop->now_ns < a->retry_ns)
		return 0;
	a->problem[0] = 0;
	renew(a);
	a->feed->passes++;
	while (work < BATCHES_PER_STEP && !a->hold && a->pos < ring_published(&a->feed->ring)) {
		/* Checked when it was received. */
		int err = batch_header_get(ring_at(&a->feed->ring, a->pos), &h);

		assert(!err);
		err = apply_batch(a, &h);
		if (err) {
			counter_add(a->feed->counters, COUNTER_apply_retries, 1);
			trouble(a, err);
			break;
		}
		work++;
	}
	return work;
}

void applier_unlink(struct applier *a)
{
	if (a->mode == APPLIER_COPYING) {
		copy_abort(&a->copy, a->seed_path);
		a->mode = APPLIER_EMPTY;
	} else if (a->mode == APPLIER_RESEEDING) {
		wal_writer_rollback(&a->writer);
		a->mode = APPLIER_LIVE;
		a->feed->open = a->known;
	} else if (a->mode == APPLIER_LIVE) {
		wal_writer_rollback(&a->writer);
		a->chain = a->applied.chain;
	}
}

bool applier_idle(const struct applier *a)
{
	return a->pos == ring_published(&a->feed->ring) && !a->checkpoint.job.out;
}
