#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/apply/applier_parts.h"

#define MS 1000000ull

/* Let the directory that holds `path` reach the disk. */
static int sync_dir(const char *path)
{
	char dir[DB_PATH_MAX];
	char *slash;
	int fd, err = 0;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	slash[slash == dir] = 0;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0)
		err = -errno;
	close(fd);
	return err;
}

static void checkpoint_run(struct job *job)
{
	struct checkpoint_job *c = (struct checkpoint_job *)job;
	struct applier *a = c->applier;
	char why[256];

	c->err = 0;
	c->frames = c->backfilled = 0;
	if (c->push_to) {
		/* A hint; what it cannot do the next sync will. */
		sync_file_range(a->writer.wal_fd, (off_t)c->push_from,
				(off_t)(c->push_to - c->push_from), SYNC_FILE_RANGE_WRITE);
		return;
	}
	if (!c->conn.db && conn_open(&c->conn, a->feed->path, CONN_BUSY_MS, why, sizeof(why))) {
		c->err = -EIO;
		return;
	}
	if (c->sync_copy)
		c->err = conn_sync_file(&c->conn);
	if (c->sync_copy && !c->err)
		c->err = sync_dir(a->feed->path); /* the names of the copy and of its -wal */
	if (!c->err)
		c->err = positions_sync(&a->positions);
	if (!c->err && c->sync_record)
		c->err = slots_sync(&a->slots);
	/* A checkpoint that copies anything syncs the WAL before. */
	if (!c->err && c->backfill)
		c->err = conn_checkpoint(&c->conn, &c->frames, &c->backfilled);
	if ((!c->err || c->err == -EBUSY) && (!c->backfill || c->backfilled < c->frames) &&
	    fdatasync(a->writer.wal_fd) < 0)
		c->err = -errno;
}

static void checkpoint_done(struct job *job)
{
	struct checkpoint_job *c = (struct checkpoint_job *)job;
	struct applier *a = c->applier;

	if (c->push_to) {
		c->push_to = 0;
		return;
	}
	if (c->err && c->err != -EBUSY) {
		a->hold = false;
		applier_trouble(a, c->err);
		return;
	}
	if (!c->err && (a->durable == STATUS_UNKNOWN || c->txid > a->durable))
		a->durable = c->txid;
	if (c->sync_copy && !c->err) {
		a->record.synced = 1;
		applier_save(a);
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
	c->sync_record = a->record_unsynced;
	a->record_unsynced = false;
	c->txid = a->applied.txid;
	if (backfill)
		a->checkpointed = a->writer.header.mx_frame;
	worker_give(a->worker, &c->job);
}

/* A sync of a long WAL at once would keep the disk from others for milliseconds. */
static void ask_writeback(struct applier *a)
{
	struct checkpoint_job *c = &a->checkpoint;

	c->push_from = a->pushed;
	c->push_to = a->pushed = wal_writer_bytes(&a->writer);
	worker_give(a->worker, &c->job);
}

void upkeep_ask(struct applier *a)
{
	uint64_t now = a->loop->now_ns;
	uint32_t frames = a->writer.header.mx_frame;
	uint64_t fresh = (uint64_t)(frames - a->checkpointed) * batch_frame_bytes(a->record.page_bytes);

	if (a->mode != APPLIER_LIVE || !a->known || a->checkpoint.job.out || now < a->retry_ns)
		return;
	if (a->hold) {
		/* Everything was backfilled, but a reader is still in the way. */
		a->hold = false;
		a->hold_again_ns = now + HOLD_AGAIN_MS * MS;
	}
	a->hold_wanted = fresh >= CHECKPOINT_BYTES &&
			 wal_writer_bytes(&a->writer) > HOLD_BYTES && now >= a->hold_again_ns;
	/* A new life cannot begin in the middle of a commit: then hold at its end. */
	if (a->hold_wanted && a->writer.appended != frames)
		return;
	if (fresh >= CHECKPOINT_BYTES) {
		a->hold = a->hold_wanted;
		ask_checkpoint(a, true);
	} else if (a->durable != a->applied.txid &&
		   (a->durable_mode || now - a->last_apply_ns > SYNC_IDLE_MS * MS)) {
		ask_checkpoint(a, false);
	} else if (wal_writer_bytes(&a->writer) >= a->pushed + WRITEBACK_BYTES) {
		ask_writeback(a);
	}
}

void upkeep_renew(struct applier *a)
{
	int done;

	if (a->mode != APPLIER_LIVE || a->checkpoint.job.out || !a->checkpointed)
		return;
	done = wal_writer_restart(&a->writer, applier_note_new_life, a);
	if (done > 0) {
		a->checkpointed = 0;
		a->pushed = 0;
		a->hold = false;
	} else if (done < 0) {
		applier_trouble(a, done);
	}
}

void upkeep_init(struct applier *a)
{
	a->checkpoint.applier = a;
	a->checkpoint.job.run = checkpoint_run;
	a->checkpoint.job.done = checkpoint_done;
}
