/* capture.h - from an application's WAL into the ring.
 *
 * The life of a capture:
 *
 *   open      our connections read once; the WAL can no longer be removed. Inside a read transaction
 *             the pin is taken; from here on no frame can be overwritten unread.
 *   prove     if the record in the state directory names this life of the WAL, its frames are
 *             captured again from where the record's history begins. When the chain at the
 *             recorded frame agrees, history goes on; peers find their place in the refilled ring.
 *   break     otherwise commits may have been missed: a new history begins at the WAL's present
 *             end, with a chain nobody else has, so that every replica is seeded anew.
 *   follow    each step reads the published wal-index header, lets io_uring read the new frames
 *             into claimed ring space, folds them into the chain, records the position, and
 *             publishes: so nothing is ever sent that the record does not cover.
 *
 * Everything between open and close is one call of capture_do_work() at a time, on the loop's
 * thread. Nothing is written to the database or its WAL, and no checkpoint is run. Frames above
 * the published mxFrame are never read. Salts and checksums of frames are not trusted. */
#ifndef WALWIRE_CAPTURE_H
#define WALWIRE_CAPTURE_H

#include "daemon/base/slots.h"
#include "daemon/capture/forecast.h"
#include "daemon/wal/conn.h"
#include "daemon/wal/pin.h"
#include "daemon/wire/feed.h"

#define CAPTURE_UNREADABLE_NS 50000000ull /* so long unreadable: let SQLite rebuild it */

struct capture_record {
	uint32_t timeline;
	uint32_t db_pages;
	uint64_t txid, chain;
	uint32_t salt[2]; /* this life of the WAL */
	uint32_t frame;	  /* captured up to here */
	uint32_t base_frame; /* history within this life begins after this frame, */
	uint64_t base_txid, base_chain; /* at this position */
	uint64_t boot[2];
};

struct capture {
	struct feed *feed;
	struct loop *loop;
	struct conn conn; /* locks only; never a transaction after its first read */
	struct conn side; /* ordinary SQL: the read transaction of the attach, recovery */
	struct pin pin;
	struct slots slots;
	struct capture_record record;
	struct capture_record proof; /* what the WAL has to show while proving */
	bool proving;
	int wal_fd;
	uint32_t page_bytes;
	bool durable; /* sync the WAL before anything is published; set after opening */

	struct wal_index_header header; /* as last acted upon */
	struct forecast forecast;	/* of the application's next checkpoint */
	uint64_t unreadable_ns;	/* since when it cannot be read; 0: it can */

	struct loop_op read; /* one read, or the sync that follows it, at a time */
	uint64_t read_at;    /* where its batch begins in the ring */
	uint32_t read_frames;
	uint32_t read_have; /* bytes that have come */
	uint64_t read_time_ns;
	bool syncing;
	int failed; /* -errno: the WAL could not be read; capture rests */
	uint8_t last_head[FRAME_HEADER_BYTES]; /* of the frame read last, */
	bool last_known;		       /* if there is one */
	uint32_t commits_since, change_since;
	bool change_known;
};

/* `why` holds one sentence when it fails. `record_path` is the state file; feed->db_id is set.
 * A lock that stands in the way is waited for, busy_ms at most. */
enum conn_problem capture_open(struct capture *c, struct feed *feed, struct loop *loop,
			       const char *record_path, int busy_ms, char *why, size_t why_bytes);

/* One step. The work done; 0: nothing to do now. */
unsigned int capture_do_work(struct capture *c);

/* Is there a header we have not acted upon, or work under way? Cheap: one look at the mapping. */
bool capture_has_work(const struct capture *c);

/* Look at the mapped index, `looks` times at most, until there is work or a checkpoint went on. */
void capture_await(const struct capture *c, unsigned int looks);

void capture_close(struct capture *c);

#endif
