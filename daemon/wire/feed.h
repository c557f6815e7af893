/* feed.h - a database's ring, and where its history stands in it.
 *
 * The one place where a producer (capture on a primary, receive and apply on a replica) and the
 * senders meet. The producer writes, senders read, all on the pinned loop's thread.
 *
 *     floor_pos          visible_pos      commit_pos       published
 *   ------|-------------------|---------------|----------------|----> ring positions
 *     history begins     what the local   end of the last   may be a part
 *                        file shows       whole commit      of a commit
 */
#ifndef WALWIRE_FEED_H
#define WALWIRE_FEED_H

#include "daemon/base/loop.h"
#include "daemon/base/status.h"
#include "daemon/wire/batch.h"
#include "shm/ring.h"
#include "shm/segment.h"

#define DB_ID_BYTES 16

struct feed {
	char name[DB_NAME_MAX];
	char path[DB_PATH_MAX]; /* the local database file; seeds are read from it */
	uint8_t db_id[DB_ID_BYTES];
	struct segment segment;
	struct ring ring;
	uint64_t *hashes; /* feed_hashes() */
	int buffer; /* registered with the loop; -1: not */
	struct counters *counters;
	uint32_t page_bytes; /* 0: not known yet */
	bool open;	     /* replicas can be served */
	bool own_clock;	     /* times in batches are this host's */
	uint64_t blocked_ns; /* since when the producer lacks space; 0: it does not */
	uint64_t waiting_bytes; /* of a primary's WAL: what is not yet in the ring */

	uint64_t cut_ns, seed_pause_ns; /* when a reader was cut last; so long no seed begins */

	struct position at;   /* after the last whole commit in the ring */
	uint32_t db_pages;    /* size of the database there */
	uint64_t time_ns;     /* when it was captured */
	uint64_t commit_pos;
	uint64_t visible_pos;
	uint64_t floor_pos;
	uint64_t passes; /* grows each time all that was visible when a pass began is in the ring */
	uint64_t broken; /* grows when the history is broken off: replicas must start anew */
};

/* Create the segment (`ring_bytes`, near `cpu`), register it with the loop. 0; -ENOMEM etc. */
int feed_open(struct feed *f, struct loop *loop, const char *name, const char *path,
	      uint64_t ring_bytes, int cpu);
void feed_close(struct feed *f);

/* Set the page size once it is known (and for readers of the segment). */
void feed_set_page_bytes(struct feed *f, uint32_t page_bytes);

/* The page_hash() of each frame of the batch at `pos`, in the frames' order. The producer, who has
 * hashed them all, puts them there before it publishes the batch; they last as long as it does. */
static inline uint64_t *feed_hashes(const struct feed *f, uint64_t pos)
{
	/* A frame is longer than a page of the smallest size, so there is a place for each. */
	return f->hashes + (pos & (f->ring.shared->size - 1)) / PAGE_BYTES_MIN;
}

/* Producer: publish the batch that stands at the ring's end, whose header is `h`. */
void feed_publish(struct feed *f, const struct batch_header *h);

/* Producer: a new history begins at `at`; what is in the ring no longer counts. */
void feed_break(struct feed *f, struct position at, uint32_t db_pages);

/* Producer: it got on. `blocked_ns` is cleared when the slowest reader is within half a ring. */
void feed_moves(struct feed *f);

/* Find where a peer at `at` goes on: the ring position of the batch that holds the next commit
 * (its first commits may be known to the peer already). 0; -ESTALE when the ring does not reach
 * back or the histories differ. */
int feed_find(const struct feed *f, struct position at, uint64_t *ret_pos);

#endif
