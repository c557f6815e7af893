/* status.h - what a node says of itself: a plain picture, taken by the pinned loop on request.
 *
 * STATUS_UNKNOWN is shown as null: what is not known is never shown as zero. */
#ifndef WALWIRE_STATUS_H
#define WALWIRE_STATUS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "shm/counters.h"
#include "shm/ring.h"

#define STATUS_UNKNOWN	UINT64_MAX
#define DATABASES_MAX	32
#define DB_NAME_MAX	256 /* bytes, the final NUL included */
#define DB_PATH_MAX	4096

struct peer_status {
	char addr[80];
	char state[24]; /* "seeding", "streaming" */
	uint64_t sent, received, applied, durable; /* txids */
	uint64_t lag_commits, lag_bytes, lag_ns;
	uint64_t delay_ns; /* capture to applied, as last measured on the primary's clock */
	bool zero_copy;	   /* sends go out without a copy */
};

struct db_status {
	char name[DB_NAME_MAX];
	char path[DB_PATH_MAX];
	char state[24];	  /* primary: "waiting", "attached", "detached"; replica: "connecting",
			   * "seeding", "streaming", "stopped" */
	char detail[256]; /* why, when the state is not the good one; else empty */
	uint64_t timeline, txid, chain, fingerprint;
	uint64_t wal_bytes; /* size of the database's WAL in use */
	/* a replica's own: */
	char source[80];
	uint64_t received, applied, durable, lag_ns;
	/* its readers: */
	int peers;
	struct peer_status peer[RING_READERS_MAX];
	uint64_t counter[COUNTER_COUNT];
};

struct node_status {
	char role[16]; /* "primary", "replica" */
	char tap[160];
	char idle[16]; /* "spin", "adaptive", "sleep" */
	char state_now[16]; /* "awake", "napping", "asleep" */
	int databases;
	struct db_status db[DATABASES_MAX];
};

/* Print as JSON on one line (the contract is in the README) or as text for people. */
void status_print_json(const struct node_status *s, FILE *out);
void status_print_text(const struct node_status *s, FILE *out);

#endif
