/* seed.h - a full copy, read while the application keeps writing.
 *
 * The copy is taken in chunks of one batch. Each chunk is read by the worker inside an ordinary
 * short read transaction, so no checkpoint waits long and no page is torn; chunks are of different
 * moments. What makes them one state is the order in which the replica gets them:
 *
 * D1  A chunk stands in the stream at a position that is not later than the moment it was read:
 *     between asking for a chunk and sending it the sender sends no commit. Every commit after
 *     that position follows in the stream and overwrites what the chunk has too old or too new.
 * D2  The copy ends at a commit not earlier than the newest chunk. There every page is as that
 *     commit left it: either a commit since its chunk wrote it, or none has changed it.
 *
 * Where a replica serves replicas of its own, "commit" means one that is applied there. */
#ifndef WALWIRE_SEED_H
#define WALWIRE_SEED_H

#include "daemon/base/worker.h"
#include "daemon/wal/conn.h"
#include "daemon/wire/batch.h"
#include "daemon/wire/feed.h"

#define SEED_TRIES 1000 /* a chunk is read anew when the WAL restarts under it */

struct seed {
	struct job job;
	struct worker *worker;
	const struct feed *feed;
	bool used;
	/* the worker's, while the job is out: */
	struct conn conn;
	int wal_fd;
	bool begun;
	uint32_t next_pgno;
	uint64_t chain;
	uint8_t *buffer[2]; /* BATCH_BYTES_MAX each */
	uint8_t *scratch;   /* the same */
	int fill;	    /* which buffer is filled next */
	/* its result, read when the job is no longer out: */
	int err;
	bool last;	       /* no page after this chunk */
	struct batch_header h; /* of the chunk */
	char why[256];
	bool closing;
};

int seed_init(struct seed *s, struct worker *worker);
void seed_exit(struct seed *s);

/* Have the next chunk read; job.out until it is there, then err, last, h and seed_chunk(). */
void seed_begin(struct seed *s, const struct feed *feed);
void seed_ask(struct seed *s);
/* The chunk that was read last. */
const uint8_t *seed_chunk(const struct seed *s);
/* Let the worker close what it opened; `used` turns false when that has happened. */
void seed_end(struct seed *s);

#endif
