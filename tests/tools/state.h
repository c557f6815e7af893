/* state.h - the database that writer and reader agree on: every state of it can be judged alone.
 *
 * c         one row. n counts the commits of the whole database, over all processes and languages;
 *           every counted commit adds exactly 1. The other columns say what must be found elsewhere
 *           at that n.
 * log       exactly one row for each of n = c.lo .. c.n
 * accounts  STATE_ACCOUNTS rows; balances add up to STATE_TOTAL, sum(id * balance) is c.acc
 * blobs     c.blobs rows of c.bytes bytes together; ck is the row's own CRC-32, their sum is c.cks
 * ddl       one row for each table d_* (with its number of rows) and each index i_* (-1)
 *
 * c.acc, c.blobs, c.bytes and c.cks are kept by triggers, so they follow every savepoint and
 * rollback and need no care in a writer of another language. */
#ifndef WALWIRE_TEST_STATE_H
#define WALWIRE_TEST_STATE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_ACCOUNTS 100
#define STATE_TOTAL    100000
#define STATE_LOG_MAX  2000 /* rows of log after which a writer trims it ... */
#define STATE_LOG_KEEP 1000 /* ... to this many */

/* The statements that create it; run inside one transaction. */
extern const char state_schema[];

/* CRC-32 as zlib's. */
uint32_t state_crc32(const void *data, size_t bytes);

/* What one look found. `why` is a sentence when something does not agree. */
struct state {
	int64_t n;
	uint64_t digest; /* over n and, when deep, every byte of content */
	char why[256];
};

/* Judge the state that this connection's open read transaction sees. `deep` reads every blob and
 * recomputes its CRC. SQLITE_OK: *ret_s is filled, ret_s->why is empty if all agrees;
 * STATE_NONE: the tables do not exist; otherwise SQLite's error, with its sentence in why. */
#define STATE_NONE (-1)
int state_check(sqlite3 *db, bool deep, struct state *ret_s);

/* The same inside a read transaction of its own. */
int state_check_once(sqlite3 *db, bool deep, struct state *ret_s);

/* Errors that only mean "not now": somebody else has it. */
static inline bool state_is_busy(int rc)
{
	rc &= 0xff;
	return rc == SQLITE_BUSY || rc == SQLITE_LOCKED || rc == SQLITE_PROTOCOL;
}

uint64_t state_now_us(void); /* CLOCK_MONOTONIC */

#endif
