/* writer_acts.c - what a writer does to its database, one function per kind of thing. */
#include "tests/tools/writer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const mode_name[MODES] = {"small",	"medium",    "big",	"rollback",   "savepoint",
				      "vacuum", "incvacuum", "ddl",	"checkpoint", "pragma",
				      "reopen", "psow",	     "longread"};
const int mode_weight[MODES] = {500, 100, 3, 2, 3, 1, 5, 8, 12, 8, 6, 2, 4};

static void die(struct writer *w, const char *what)
{
	fprintf(stderr, "writer %s: %s: %s\n", w->name, what,
		w->db ? sqlite3_errmsg(w->db) : "no connection");
	exit(1);
}

uint64_t writer_random(struct writer *w, uint64_t below)
{
	/* xorshift64* (Vigna 2014) */
	w->rng ^= w->rng >> 12;
	w->rng ^= w->rng << 25;
	w->rng ^= w->rng >> 27;
	return (w->rng * 0x2545f4914f6cdd1du >> 11) % below;
}

/* SQLITE_OK, or a busy code after which the caller starts over. Anything else ends the program. */
static int check(struct writer *w, int rc, const char *what)
{
	if (rc == SQLITE_OK || rc == SQLITE_DONE || rc == SQLITE_ROW)
		return SQLITE_OK;
	if (!state_is_busy(rc))
		die(w, what);
	w->busy++;
	return rc;
}

static int run(struct writer *w, const char *sql)
{
	return check(w, sqlite3_exec(w->db, sql, NULL, NULL, NULL), sql);
}

static int runf(struct writer *w, const char *format, ...)
{
	char sql[512];
	va_list ap;

	va_start(ap, format);
	sqlite3_vsnprintf(sizeof(sql), sql, format, ap);
	va_end(ap);
	return run(w, sql);
}

static int64_t integer(struct writer *w, const char *sql)
{
	sqlite3_stmt *st;
	int64_t v = 0;

	if (check(w, sqlite3_prepare_v2(w->db, sql, -1, &st, NULL), sql))
		return 0;
	if (!check(w, sqlite3_step(st), sql))
		v = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return v;
}

static int step(struct writer *w, sqlite3_stmt *st)
{
	int rc = sqlite3_step(st);

	sqlite3_reset(st);
	return check(w, rc, sqlite3_sql(st));
}

/* SQLite's own busy handler lets the unlucky starve for seconds; this one gives everybody a turn.
 */
static int on_busy(void *ctx, int times)
{
	struct writer *w = ctx;

	if (!times)
		w->waiting_since_us = state_now_us();
	if (writer_stop || state_now_us() - w->waiting_since_us > (uint64_t)w->wait_ms * 1000)
		return 0;
	usleep((useconds_t)(20 + writer_random(w, times < 10 ? 100 : 1000)));
	return 1;
}

/* -- connection -- */

void writer_close(struct writer *w)
{
	for (int i = 0; i < 2; i++)
		sqlite3_finalize(w->bump[i]);
	sqlite3_finalize(w->add_blob);
	w->bump[0] = w->bump[1] = w->add_blob = NULL;
	if (w->db && sqlite3_close(w->db) != SQLITE_OK)
		die(w, "close");
	w->db = NULL;
}

/* The WAL mode and the schema, by whoever comes first. */
static void writer_create(struct writer *w)
{
	if (runf(w, "PRAGMA page_size=%lld", w->page_size) ||
	    runf(w, "PRAGMA auto_vacuum=%lld", w->auto_vacuum))
		die(w, "create");
	while (run(w, "PRAGMA journal_mode=WAL"))
		usleep(1000);
	while (run(w, "BEGIN IMMEDIATE"))
		usleep(1000);
	if (!integer(w, "SELECT count(*) FROM sqlite_schema WHERE name='c'"))
		run(w, state_schema);
	if (run(w, "COMMIT"))
		die(w, "create");
}

void writer_open(struct writer *w, bool psow)
{
	int flags = SQLITE_OPEN_READWRITE | (w->create ? SQLITE_OPEN_CREATE : 0) | SQLITE_OPEN_URI;
	char uri[4200];

	snprintf(uri, sizeof(uri), "file:%s?psow=%d", w->path, psow);
	if (sqlite3_open_v2(uri, &w->db, flags, NULL))
		die(w, "open");
	w->wait_ms = w->busy_ms;
	sqlite3_busy_handler(w->db, on_busy, w);
	if (w->create)
		writer_create(w);
	while (runf(w, "PRAGMA wal_autocheckpoint=%lld", w->autocheckpoint) ||
	       runf(w, "PRAGMA synchronous=%s", w->sync))
		usleep(1000);
	static const char *const sql[3] = {
		"UPDATE c SET n=n+1, sum=sum+n+1 RETURNING n, lo, bytes",
		"INSERT INTO log SELECT n, ?1, ?2 FROM c",
		"INSERT INTO blobs(ck, data) VALUES(?1, ?2)",
	};
	sqlite3_stmt **const st[3] = {&w->bump[0], &w->bump[1], &w->add_blob};

	for (int i = 0; i < 3; i++)
		while (check(w,
			     sqlite3_prepare_v3(w->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, st[i],
						NULL),
			     sql[i]))
			usleep(1000);
	sqlite3_bind_text(w->bump[1], 1, w->name, -1, SQLITE_STATIC);
}

/* -- what a transaction is made of -- */

/* The counter, its log row, and now and then the trimming of both log and blobs. */
static int bump(struct writer *w, const char *kind, int64_t *ret_n)
{
	int rc = check(w, sqlite3_step(w->bump[0]), "bump");
	int64_t n = sqlite3_column_int64(w->bump[0], 0);
	int64_t lo = sqlite3_column_int64(w->bump[0], 1);
	int64_t bytes = sqlite3_column_int64(w->bump[0], 2);

	sqlite3_reset(w->bump[0]);
	sqlite3_bind_text(w->bump[1], 2, kind, -1, SQLITE_STATIC);
	if (rc || (rc = step(w, w->bump[1])))
		return rc;
	if (n < w->n)
		die(w, "the counter went backwards");
	if (n - lo > STATE_LOG_MAX)
		rc = runf(w, "DELETE FROM log WHERE n<%lld; UPDATE c SET lo=%lld",
			  n - STATE_LOG_KEEP, n - STATE_LOG_KEEP);
	if (!rc && bytes > w->max_mb << 20)
		rc = run(w, "DELETE FROM blobs WHERE id IN (SELECT id FROM blobs ORDER BY id"
			    " LIMIT (SELECT count(*)/2 FROM blobs))");
	*ret_n = n;
	return rc;
}

static int add_blobs(struct writer *w, int64_t count, int64_t bytes_max)
{
	int rc = 0;

	for (int64_t i = 0; i < count && !rc; i++) {
		size_t bytes = 1 + (size_t)writer_random(w, (uint64_t)bytes_max);
		uint64_t *p = (uint64_t *)w->data;

		for (size_t k = 0; k <= bytes / 8 && k < DATA_MAX / 8; k++)
			p[k] = (w->rng = w->rng * 6364136223846793005u + 1442695040888963407u);
		sqlite3_bind_int64(w->add_blob, 1, state_crc32(w->data, bytes));
		sqlite3_bind_blob64(w->add_blob, 2, w->data, bytes, SQLITE_STATIC);
		rc = step(w, w->add_blob);
	}
	return rc;
}

static int transfer(struct writer *w, int times)
{
	int rc = 0;

	while (times-- && !rc) {
		long long from = 1 + (long long)writer_random(w, STATE_ACCOUNTS);
		long long to = 1 + (long long)writer_random(w, STATE_ACCOUNTS);
		long long amount = (long long)writer_random(w, 50);

		rc = runf(w,
			  "UPDATE accounts SET balance=balance-%lld WHERE id=%lld; "
			  "UPDATE accounts SET balance=balance+%lld WHERE id=%lld",
			  amount, from, amount, to);
	}
	return rc;
}

static int change_blobs(struct writer *w)
{
	long long at = integer(w, "SELECT coalesce(min(id),0) FROM blobs") +
		       (long long)writer_random(w, 400);
	int rc = runf(w, "DELETE FROM blobs WHERE id BETWEEN %lld AND %lld", at,
		      at + (long long)writer_random(w, 10));

	if (!rc) /* CRC-32 of one zero byte */
		rc = runf(w, "UPDATE blobs SET data=x'00', ck=%lld WHERE id BETWEEN %lld AND %lld",
			  0xd202ef8dll, at + 20, at + 20 + (long long)writer_random(w, 4));
	return rc;
}

static int ddl(struct writer *w)
{
	long long k = integer(w, "SELECT n+1 FROM c"), rows = (long long)writer_random(w, 300);
	char old[64] = "";
	sqlite3_stmt *st;

	if (integer(w, "SELECT count(*) FROM ddl") > 6) {
		const char *sql = "SELECT name FROM ddl ORDER BY random() LIMIT 1";

		if (sqlite3_prepare_v2(w->db, sql, -1, &st, NULL) == SQLITE_OK &&
		    sqlite3_step(st) == SQLITE_ROW)
			snprintf(old, sizeof(old), "%s", sqlite3_column_text(st, 0));
		sqlite3_finalize(st);
		return runf(w, "DROP %s %s; DELETE FROM ddl WHERE name='%s'",
			    old[0] == 'd' ? "TABLE" : "INDEX", old, old);
	}
	if (writer_random(w, 2))
		return runf(w, "CREATE INDEX i_%lld ON %s; INSERT INTO ddl VALUES('i_%lld', -1)", k,
			    writer_random(w, 2) ? "blobs(ck)" : "log(writer, n)", k);
	return runf(w,
		    "CREATE TABLE d_%lld(a INTEGER, b INTEGER); INSERT INTO ddl VALUES('d_%lld',"
		    " %lld); WITH RECURSIVE k(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM k WHERE"
		    " i<%lld) INSERT INTO d_%lld SELECT i, i FROM k WHERE i<=%lld",
		    k, k, rows, rows, k, rows);
}

/* A transaction far larger than the page cache: SQLite spills its pages into the WAL early. */
static int spill(struct writer *w)
{
	int64_t chunk = 200 * 1024, bytes = (w->big_mb << 20) / 2;
	int rc = run(w, "PRAGMA cache_size=10");

	if (bytes > 64 << 20) /* a giant one: fewer, larger rows, and all of them */
		return rc ? rc : add_blobs(w, w->big_mb * 2, DATA_MAX);
	bytes += (int64_t)writer_random(w, (uint64_t)bytes + 1);
	return rc ? rc : add_blobs(w, 1 + bytes / (chunk / 2), chunk);
}

/* -- the modes -- */

static int fill_transaction(struct writer *w, enum mode m)
{
	int rc = 0;

	switch (m) {
	case MEDIUM:
		rc = add_blobs(w, 1 + (int64_t)writer_random(w, 40), 3000);
		if (!rc)
			rc = transfer(w, 1 + (int)writer_random(w, 10));
		return rc ? rc : change_blobs(w);
	case BIG:
	case ROLLBACK:
		return spill(w);
	case SAVEPOINT:
		rc = transfer(w, 2);
		if (!rc)
			rc = run(w, "SAVEPOINT a");
		if (!rc)
			rc = spill(w);
		if (!rc)
			rc = run(w, "SAVEPOINT b");
		if (!rc)
			rc = add_blobs(w, 3, 50000);
		if (!rc)
			rc = run(w, writer_random(w, 2) ? "ROLLBACK TO b"
							: "ROLLBACK TO a; RELEASE a");
		return rc ? rc : add_blobs(w, 2, 2000);
	case DDL:
		return ddl(w);
	case INCVACUUM:
		rc = change_blobs(w);
		return rc ? rc
			  : runf(w, "PRAGMA incremental_vacuum(%lld)",
				 (long long)writer_random(w, 200));
	default:
		return writer_random(w, 4) ? 0 : transfer(w, 1);
	}
}

static void latency_add(struct writer *w, uint64_t us)
{
	int octave = us ? 63 - __builtin_clzll(us) : 0;
	int part = octave >= 3 ? (int)(us >> (octave - 3)) & 7 : 0;

	w->latency[octave * 8 + part]++;
	if (us > w->latency_max_us)
		w->latency_max_us = us;
}

static int transaction(struct writer *w, enum mode m)
{
	uint64_t from_us = state_now_us();
	int64_t n = 0;
	int rc = run(w, "BEGIN IMMEDIATE");

	if (rc)
		return rc;
	rc = fill_transaction(w, m);
	if (!rc && m != ROLLBACK)
		rc = bump(w, mode_name[m], &n);
	if (!rc)
		rc = run(w, m == ROLLBACK ? "ROLLBACK" : "COMMIT");
	if (!sqlite3_get_autocommit(w->db))
		sqlite3_exec(w->db, "ROLLBACK", NULL, NULL, NULL);
	if (m == BIG || m == ROLLBACK || m == SAVEPOINT)
		run(w, "PRAGMA cache_size=2000");
	if (rc || m == ROLLBACK)
		return rc;
	w->n = n;
	w->commits++;
	if (m == SMALL)
		latency_add(w, state_now_us() - from_us);
	return 0;
}

static int vacuum(struct writer *w)
{
	if (writer_random(w, 3) == 0)
		runf(w, "PRAGMA auto_vacuum=%lld", (long long)writer_random(w, 3));
	return run(w, "VACUUM");
}

static int checkpoint(struct writer *w)
{
	static const int kind[] = {SQLITE_CHECKPOINT_PASSIVE, SQLITE_CHECKPOINT_FULL,
				   SQLITE_CHECKPOINT_RESTART, SQLITE_CHECKPOINT_TRUNCATE};
	int rc;

	/* One that waits for readers holds the write lock meanwhile: never for long. */
	w->wait_ms = (int64_t)writer_random(w, 300);
	rc = sqlite3_wal_checkpoint_v2(w->db, NULL, kind[writer_random(w, 4)], NULL, NULL);
	w->wait_ms = w->busy_ms;
	if (state_is_busy(rc)) {
		w->checkpoints_busy++;
		return 0;
	}
	return check(w, rc, "checkpoint");
}

static int pragma(struct writer *w)
{
	static const char *const some[] = {
		"wal_autocheckpoint=0",	     "wal_autocheckpoint=1",
		"wal_autocheckpoint=10",     "wal_autocheckpoint=1000",
		"wal_autocheckpoint=1000",   "synchronous=OFF",
		"synchronous=NORMAL",	     "synchronous=FULL",
		"journal_size_limit=-1",     "journal_size_limit=0",
		"journal_size_limit=100000", "secure_delete=ON",
		"secure_delete=OFF",	     "mmap_size=0",
		"mmap_size=4194304",
	};

	return runf(w, "PRAGMA %s", some[writer_random(w, sizeof(some) / sizeof(some[0]))]);
}

static int reopen(struct writer *w, bool psow)
{
	int persist = writer_random(w, 4) == 0;

	sqlite3_file_control(w->db, "main", SQLITE_FCNTL_PERSIST_WAL, &persist);
	writer_close(w);
	writer_open(w, psow);
	return 0;
}

/* A snapshot held by a connection of our own while we go on; it must not have moved at its end. */
void writer_long_read(struct writer *w)
{
	struct state s = {.n = 0};

	if (w->reader && state_now_us() < w->reader_until_us)
		return;
	if (w->reader) {
		int rc = state_check(w->reader, false, &s);

		if (rc || s.why[0] || s.n != w->reader_n) {
			fprintf(stderr, "writer %s: snapshot of n=%lld is now n=%lld: %s %s\n",
				w->name, (long long)w->reader_n, (long long)s.n, s.why,
				sqlite3_errstr(rc));
			exit(1);
		}
		sqlite3_close(w->reader);
		w->reader = NULL;
		return;
	}
	if (sqlite3_open_v2(w->path, &w->reader, SQLITE_OPEN_READONLY, NULL))
		die(w, "open for reading");
	sqlite3_busy_timeout(w->reader, (int)w->busy_ms);
	sqlite3_exec(w->reader, "BEGIN", NULL, NULL, NULL);
	int rc = state_check(w->reader, false, &s);

	if (rc || s.why[0]) {
		if (!state_is_busy(rc)) {
			fprintf(stderr, "writer %s: %s %s\n", w->name, s.why, sqlite3_errstr(rc));
			exit(1);
		}
		sqlite3_close(w->reader);
		w->reader = NULL;
		return;
	}
	w->reader_n = s.n;
	w->reader_until_us = state_now_us() + writer_random(w, 400000);
}

int writer_act(struct writer *w, enum mode m)
{
	switch (m) {
	case VACUUM:
		return vacuum(w);
	case CHECKPOINT:
		return checkpoint(w);
	case PRAGMA:
		return pragma(w);
	case REOPEN:
	case PSOW:
		return reopen(w, m == REOPEN);
	case LONGREAD:
		writer_long_read(w);
		return 0;
	default:
		return transaction(w, m);
	}
}
