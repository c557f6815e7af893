#include "daemon/apply/applier_parts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MS		1000000ull
#define BATCHES_PER_STEP 16

/* Something could not be written: say so, and try again later. */
void applier_trouble(struct applier *a, int err)
{
	a->retry_ns = a->loop->now_ns + RETRY_MS * MS;
	snprintf(a->problem, sizeof(a->problem), "cannot write '%s': %s; %sit goes on by itself",
		 a->feed->path, strerror(-err),
		 err == -ENOSPC ? "make room, " :
		 err == -EEXIST ? "move it away, " :
				  "");
}

void applier_save(struct applier *a)
{
	slots_write(&a->slots, &a->record);
	a->record_unsynced = true;
}

/* The WAL is about to begin a life without frames: the state stays. */
void applier_note_new_life(void *ctx, const uint32_t salt[2])
{
	struct applier *a = ctx;
	const uint32_t none[2] = {0, 0};

	if (a->known)
		positions_note(&a->positions, a->applied, salt, 0, none);
}

void applier_remove_file(struct applier *a)
{
	static const char *const suffix[] = {"", "-wal", "-shm"};
	char path[DB_PATH_MAX + 16];

	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s%s", a->feed->path, suffix[i]);
		unlink(path);
	}
}

/* The writer is open on the file of an earlier run: which of our states is it? */
static int identify(struct applier *a, bool rebooted, char *why, size_t why_bytes)
{
	struct wal_index_header found = a->writer.header, *h = &found;
	uint8_t bytes[WAL_HEADER_BYTES];
	struct wal_header file;

	/* A recovery takes no salts from a WAL without frames. */
	if (h->mx_frame == 0 &&
	    pread(a->writer.wal_fd, bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes) &&
	    wal_header_get(bytes, &file) == 0)
		memcpy(h->salt, file.salt, sizeof(h->salt));
	a->known = true;
	if (positions_find(&a->positions, h, &a->applied) == 0) {
		/* Noted once more, so that the last note is what the file shows: later ones may be
		 * of commits that never got into it. */
		positions_note(&a->positions, a->applied, h->salt, h->mx_frame, h->frame_checksum);
		table_catch_up(a);
		return 0;
	}
	if (h->mx_frame == 0 && a->record.pristine &&
	    (!a->table.at || page_table_trust(&a->table) != PAGE_TABLE_CLEAN || table_agrees(a))) {
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

uint32_t applier_db_pages(struct applier *a)
{
	uint32_t pages = a->writer.wal_fd >= 0 ? a->writer.header.db_pages : 0;

	if (a->writer.wal_fd >= 0 && pages == 0)
		conn_file_pages(&a->writer.conn, a->record.page_bytes, &pages);
	return pages;
}

static int open_live(struct applier *a, char *why, size_t why_bytes)
{
	struct feed *feed = a->feed;
	uint64_t boot[2];
	bool rebooted;
	int err;

	boot_id(boot);
	rebooted = memcmp(boot, a->record.boot, sizeof(boot)) != 0;
	if (access(feed->path, F_OK) < 0 || (rebooted && !a->record.synced)) {
		/* Gone, or a copy that a power loss may have left in pieces. */
		applier_remove_file(a);
		a->record.live = 0;
		applier_save(a);
		return 0;
	}
	err = wal_writer_open(&a->writer, feed->path, a->record.page_bytes, why, why_bytes);
	if (err)
		return err;
	table_open(a, a->record.page_bytes);
	err = identify(a, rebooted, why, why_bytes);
	if (!err) {
		err = wal_writer_adopt(&a->writer, applier_note_new_life, a);
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
		applier_save(a);
	}
	a->mode = APPLIER_LIVE;
	if (a->known) {
		feed->at = a->applied;
		feed->db_pages = applier_db_pages(a);
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
	upkeep_init(a);
	snprintf(a->seed_path, sizeof(a->seed_path), "%s", feed->path);
	slash = strrchr(a->seed_path, '/');
	snprintf(slash, sizeof(a->seed_path) - (size_t)(slash - a->seed_path), "/.%s.seed",
		 feed->name);
	snprintf(a->table_path, sizeof(a->table_path), "%s/%s.pages", state_dir, feed->name);
	snprintf(path, sizeof(path), "%s/%s.positions", state_dir, feed->name);
	err = positions_open(&a->positions, path);
	if (err) {
		snprintf(why, why_bytes,
			 "cannot use '%s': %s; make room or choose another --state-dir", path,
			 strerror(-err));
		return err;
	}
	snprintf(a->record_path, sizeof(a->record_path), "%s/%s.replica", state_dir, feed->name);
	if (access(a->record_path, F_OK) == 0) {
		err = slots_open(&a->slots, a->record_path, sizeof(a->record), feed->db_id);
		if (err) {
			snprintf(why, why_bytes, "cannot use '%s': %s; make room or choose another "
						 "--state-dir",
				 a->record_path, strerror(-err));
			goto undo_positions;
		}
		if (slots_read(&a->slots, &a->record)) {
			/* Made, and never written: it names nobody's copy. */
			slots_close(&a->slots);
			unlink(a->record_path);
			memset(feed->db_id, 0, DB_ID_BYTES);
		} else if (a->record.live) {
			err = open_live(a, why, why_bytes);
		}
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
	page_table_close(&a->table);
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
			snprintf(why, why_bytes,
				 "cannot use '%s': %s; make room or choose another --state-dir",
				 a->record_path, strerror(-err));
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
	applier_save(a);
	feed_set_page_bytes(feed, page_bytes);
	return 0;
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

	if (a->loop->now_ns >= a->retry_ns)
		upkeep_renew(a);
	upkeep_ask(a);
	if (a->loop->now_ns < a->retry_ns)
		return 0;
	a->problem[0] = 0;
	a->feed->passes++;
	while (work < BATCHES_PER_STEP && !a->hold && a->pos < ring_published(&a->feed->ring)) {
		/* Checked when it was received. */
		int err = batch_header_get(ring_at(&a->feed->ring, a->pos), &h);

		assert(!err);
		err = apply_batch(a, &h);
		if (err) {
			counter_add(a->feed->counters, COUNTER_apply_retries, 1);
			applier_trouble(a, err);
			break;
		}
		work++;
		if (a->hold_wanted && a->writer.appended == a->writer.header.mx_frame)
			break;
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
		apply_rollback(a);
	}
}

bool applier_idle(const struct applier *a)
{
	return a->pos == ring_published(&a->feed->ring) && !a->checkpoint.job.out;
}
