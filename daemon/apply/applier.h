/* applier.h - from the ring into the replica's database.
 *
 *   EMPTY      there is no file; a seed is awaited
 *   COPYING    the first copy is being made, unseen (copy.h)
 *   LIVE       commits are written to the WAL and published one by one
 *   RESEEDING  a new copy of an existing replica goes into its WAL, appended and not published,
 *              until its end makes it visible as one commit
 *
 * The applier reads the ring like any sender, in order. A position is noted before the state it
 * stands for can be seen. What came in parts is published with its last part. When the source begins
 * a commit anew (after a broken link), the parts that were appended are rolled back.
 *
 * The page table is kept beside: it tells, when somebody else's last close has removed our WAL,
 * whether the file still is what we applied last or was written to.
 *
 * Checkpoints and syncs are the worker's. They never hold up applying, except when the WAL has
 * passed HOLD_BYTES: then commits wait in the ring while the rest is backfilled, so that the
 * WAL can begin a new life; not when a reader's snapshot is what keeps it from that. */
#ifndef WALWIRE_APPLIER_H
#define WALWIRE_APPLIER_H

#include "daemon/apply/copy.h"
#include "daemon/apply/positions.h"
#include "daemon/base/page_table.h"
#include "daemon/base/slots.h"
#include "daemon/base/worker.h"
#include "daemon/wal/wal_writer.h"
#include "daemon/wire/feed.h"

#define CHECKPOINT_BYTES  (16u << 20) /* of WAL since the last one: each costs several fsyncs */
#define WRITEBACK_BYTES	  (1u << 20) /* of WAL: so much at a time is sent to the disk ahead */
#define HOLD_BYTES	  (48u << 20) /* of WAL */
#define HOLD_AGAIN_MS	  1000 /* after a hold that did not help */
#define SYNC_IDLE_MS	  1000 /* quiet for so long: what was applied is synced */
#define RETRY_MS	  1000 /* after a failed write */

enum applier_mode { APPLIER_EMPTY, APPLIER_COPYING, APPLIER_LIVE, APPLIER_RESEEDING };

struct applier_record {
	uint32_t page_bytes;
	uint32_t live;	   /* the file at `path` is ours */
	uint32_t pristine; /* its WAL has never been ours: the file alone is the state at `at` */
	uint32_t synced;   /* the copy has reached the disk */
	uint32_t timeline, zero;
	uint64_t txid, chain;
	uint64_t boot[2];
};

struct checkpoint_job {
	struct job job;
	struct applier *applier;
	struct conn conn;
	bool backfill, sync_copy, sync_record; /* asked for */
	uint64_t push_from, push_to; /* of the WAL file: only this, and only begin */
	uint64_t txid;
	int err;
	uint32_t frames, backfilled;
};

struct applier {
	struct feed *feed;
	struct loop *loop;
	struct worker *worker;
	bool durable_mode;
	char seed_path[DB_PATH_MAX + 16];
	char record_path[DB_PATH_MAX + 16];
	struct slots slots;
	struct applier_record record;
	bool record_unsynced;
	struct positions positions;
	struct page_table table; /* at NULL: there is none yet */
	char table_path[DB_PATH_MAX + 300];
	enum applier_mode mode;
	struct wal_writer writer;
	struct copy copy;
	int reader; /* of the ring */
	uint64_t pos;

	bool known; /* `applied` is the state of the file */
	struct position applied;
	uint64_t applied_time_ns;
	uint64_t chain; /* running, parts included */
	struct position seeding; /* where a seed under way stands */
	uint64_t durable;	 /* txid; STATUS_UNKNOWN */

	struct checkpoint_job checkpoint;
	uint64_t pushed;       /* bytes of the WAL, on their way to the disk */
	uint32_t checkpointed; /* frames when the last checkpoint was asked for */
	bool hold;
	bool hold_wanted; /* at the end of the commit that is being applied */
	uint64_t hold_again_ns;
	uint64_t last_apply_ns;

	char problem[256]; /* empty: none */
	uint64_t retry_ns;
};

/* Look at what is there. 0; -EEXIST: a file that is not ours or not as we left it; -errno. `why` gets
 * a sentence. feed->path, feed->db_id and feed->page_bytes are set when the replica is known. */
int applier_open(struct applier *a, struct feed *feed, struct loop *loop, struct worker *worker,
		 const char *state_dir, bool durable_mode, char *why, size_t why_bytes);

/* The source's identity and page size are now known, and a seed comes. 0 or -errno. */
int applier_expect_seed(struct applier *a, const uint8_t db_id[16], uint32_t page_bytes, char *why,
			size_t why_bytes);

/* The link was lost: what is still in the ring counts only as far as whole commits go. */
void applier_unlink(struct applier *a);

/* Size of the database as it can be read now, in pages; 0: there is none. */
uint32_t applier_db_pages(struct applier *a);

/* The sum of all pages' hashes; STATUS_UNKNOWN. */
uint64_t applier_fingerprint(const struct applier *a);

/* One step; the work done. */
unsigned int applier_do_work(struct applier *a);

/* Nothing in the ring is left to apply, and no job is out. */
bool applier_idle(const struct applier *a);

void applier_close(struct applier *a);

#endif
