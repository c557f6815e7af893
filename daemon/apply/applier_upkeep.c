#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/apply/applier_parts.h"

#define MS 1000000ull

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
	c->txid = a->applied.txid;
	if (backfill)
		a->checkpointed = a->writer.header.mx_frame;
	worker_give(a->worker, &c->job);
}

void upkeep_ask(struct applier *a)
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

void upkeep_renew(struct applier *a)
{
	int done;

	if (a->mode != APPLIER_LIVE || a->checkpoint.job.out || !a->checkpointed)
		return;
	done = wal_writer_restart(&a->writer, applier_note_new_life, a);
	if (done > 0) {
		a->checkpointed = 0;
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
