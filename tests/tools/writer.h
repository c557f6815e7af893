/* writer.h - what the two halves of the writer share: writer.c runs, writer_acts.c knows SQLite. */
#ifndef WALWIRE_TEST_WRITER_H
#define WALWIRE_TEST_WRITER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/tools/state.h"

enum mode {
	SMALL,
	MEDIUM,
	BIG,
	ROLLBACK,
	SAVEPOINT,
	VACUUM,
	INCVACUUM,
	DDL,
	CHECKPOINT,
	PRAGMA,
	REOPEN,
	PSOW,
	LONGREAD,
	MODES
};

struct writer {
	sqlite3 *db, *reader; /* the second only while a long read is open */
	const char *path, *name, *sync;
	uint64_t rng;
	int64_t page_size, auto_vacuum, autocheckpoint, commits_max, rate, big_mb, max_mb, busy_ms;
	double seconds;
	bool create;
	int weight[MODES];
	sqlite3_stmt *bump[2], *add_blob;
	unsigned char *data; /* where blobs are made; DATA_MAX bytes */
	int64_t reader_n;
	uint64_t reader_until_us, waiting_since_us;
	int64_t wait_ms;
	/* results: */
	int64_t n, commits, done[MODES], busy, checkpoints_busy;
	uint64_t latency[64 * 8], latency_max_us; /* of small commits; eight steps an octave */
};

#define DATA_MAX (1 << 20)

extern const char *const mode_name[MODES];
extern const int mode_weight[MODES]; /* how often in the mode "all" */
extern volatile sig_atomic_t writer_stop;

uint64_t writer_random(struct writer *w, uint64_t below);

/* Open the connection (and the database, with --create). Ends the program when it cannot. */
void writer_open(struct writer *w, bool psow);
void writer_close(struct writer *w);

/* Do one thing. 0; or a busy code: somebody else had the database, nothing was done. Anything that
 * is neither ends the program with a sentence. */
int writer_act(struct writer *w, enum mode m);

/* Look after the snapshot that a long read may have open. */
void writer_long_read(struct writer *w);

#endif
