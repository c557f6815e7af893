/* state.c - see state.h. */
#include "state.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* accounts start equal, so c.acc starts as their balance times 1 + 2 + ... + STATE_ACCOUNTS. */
const char state_schema[] =
	"CREATE TABLE c(id INTEGER PRIMARY KEY CHECK(id=1), n INTEGER, sum INTEGER, lo INTEGER,"
	" acc INTEGER, blobs INTEGER, bytes INTEGER, cks INTEGER);"
	"INSERT INTO c VALUES(1,0,0,1,5050000,0,0,0);"
	"CREATE TABLE log(n INTEGER PRIMARY KEY, writer TEXT, kind TEXT);"
	"CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER);"
	"WITH RECURSIVE k(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM k WHERE i<100)"
	" INSERT INTO accounts SELECT i, 1000 FROM k;"
	"CREATE TABLE blobs(id INTEGER PRIMARY KEY, ck INTEGER, data BLOB);"
	"CREATE TABLE ddl(name TEXT PRIMARY KEY, rows INTEGER);"
	"CREATE TRIGGER t_acc AFTER UPDATE OF balance ON accounts BEGIN"
	" UPDATE c SET acc=acc+new.id*new.balance-old.id*old.balance; END;"
	"CREATE TRIGGER t_ins AFTER INSERT ON blobs BEGIN UPDATE c SET blobs=blobs+1,"
	" bytes=bytes+length(new.data), cks=cks+new.ck; END;"
	"CREATE TRIGGER t_del AFTER DELETE ON blobs BEGIN UPDATE c SET blobs=blobs-1,"
	" bytes=bytes-length(old.data), cks=cks-old.ck; END;"
	"CREATE TRIGGER t_upd AFTER UPDATE ON blobs BEGIN UPDATE c SET"
	" bytes=bytes+length(new.data)-length(old.data), cks=cks+new.ck-old.ck; END;";

static uint32_t crc_table[8][256];

static void crc_fill(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t v = i;

		for (int k = 0; k < 8; k++)
			v = v & 1 ? 0xedb88320u ^ (v >> 1) : v >> 1;
		crc_table[0][i] = v;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int t = 1; t < 8; t++)
			crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 0xff] ^
					  (crc_table[t - 1][i] >> 8);
}

/* Eight bytes at a time ("slicing by 8", Kounavis and Berry 2005), for little-endian machines. */
uint32_t state_crc32(const void *data, size_t bytes)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const unsigned char *p = data;
	uint32_t v = 0xffffffffu;

	pthread_once(&once, crc_fill);
	for (; bytes >= 8; bytes -= 8, p += 8) {
		uint32_t a, b;

		memcpy(&a, p, 4);
		memcpy(&b, p + 4, 4);
		a ^= v;
		v = crc_table[7][a & 0xff] ^ crc_table[6][(a >> 8) & 0xff] ^
		    crc_table[5][(a >> 16) & 0xff] ^ crc_table[4][a >> 24] ^
		    crc_table[3][b & 0xff] ^ crc_table[2][(b >> 8) & 0xff] ^
		    crc_table[1][(b >> 16) & 0xff] ^ crc_table[0][b >> 24];
	}
	for (; bytes; bytes--, p++)
		v = crc_table[0][(v ^ *p) & 0xff] ^ (v >> 8);
	return ~v;
}

uint64_t state_now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void digest_add(struct state *s, const void *data, size_t bytes)
{
	s->digest = (s->digest ^ state_crc32(data, bytes)) * 0x9e3779b97f4a7c15u;
	s->digest ^= s->digest >> 29;
}

/* Up to `count` integers of the first row. */
static int row(sqlite3 *db, const char *sql, int64_t *v, int count)
{
	sqlite3_stmt *st;
	int rc = sqlite3_prepare_v2(db, sql, -1, &st, NULL);

	if (rc)
		return rc;
	rc = sqlite3_step(st);
	if (rc == SQLITE_ROW) {
		for (int i = 0; i < count; i++)
			v[i] = sqlite3_column_int64(st, i);
		rc = SQLITE_OK;
	} else if (rc == SQLITE_DONE) {
		rc = SQLITE_EMPTY;
	}
	int end = sqlite3_finalize(st);
	return rc ? rc : end;
}

__attribute__((format(printf, 2, 3))) static int disagree(struct state *s, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(s->why, sizeof(s->why), format, ap);
	va_end(ap);
	return SQLITE_OK;
}

#define LL(x) ((long long)(x))

static int check_log(sqlite3 *db, int64_t n, int64_t lo, struct state *s)
{
	int64_t v[4];
	int rc = row(db, "SELECT count(*), min(n), max(n), sum(n) FROM log", v, 4);

	if (rc)
		return rc;
	if (v[0] != n - lo + 1)
		return disagree(s, "n=%lld: log has %lld rows, not %lld", LL(n), LL(v[0]),
				LL(n - lo + 1));
	if (n == 0)
		return SQLITE_OK;
	if (v[1] != lo || v[2] != n || v[3] != n * (n + 1) / 2 - lo * (lo - 1) / 2)
		return disagree(s, "n=%lld: log spans %lld..%lld, not %lld..%lld", LL(n), LL(v[1]),
				LL(v[2]), LL(lo), LL(n));
	return SQLITE_OK;
}

static int check_accounts(sqlite3 *db, int64_t n, int64_t acc, struct state *s)
{
	int64_t v[3];
	int rc = row(db, "SELECT count(*), sum(balance), sum(id*balance) FROM accounts", v, 3);

	if (rc)
		return rc;
	if (v[0] != STATE_ACCOUNTS || v[1] != STATE_TOTAL || v[2] != acc)
		return disagree(s, "n=%lld: %lld accounts hold %lld, weighted %lld instead of %lld",
				LL(n), LL(v[0]), LL(v[1]), LL(v[2]), LL(acc));
	return SQLITE_OK;
}

/* c[0..2]: the rows, bytes and sum of checksums that c promises. */
static int check_blobs(sqlite3 *db, int64_t n, const int64_t *c, struct state *s)
{
	int64_t v[3];
	int rc = row(db,
		     "SELECT count(*), coalesce(sum(length(data)),0), coalesce(sum(ck),0)"
		     " FROM blobs",
		     v, 3);

	if (rc)
		return rc;
	if (v[0] != c[0] || v[1] != c[1] || v[2] != c[2])
		return disagree(
			s, "n=%lld: %lld blobs of %lld bytes (sum %lld), not %lld of %lld (%lld)",
			LL(n), LL(v[0]), LL(v[1]), LL(v[2]), LL(c[0]), LL(c[1]), LL(c[2]));
	return SQLITE_OK;
}

static int check_blobs_deep(sqlite3 *db, struct state *s)
{
	sqlite3_stmt *st;
	int rc = sqlite3_prepare_v2(db, "SELECT id, ck, data FROM blobs", -1, &st, NULL);

	if (rc)
		return rc;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		int64_t id_ck[2] = {sqlite3_column_int64(st, 0), sqlite3_column_int64(st, 1)};
		const void *data = sqlite3_column_blob(st, 2);
		int bytes = sqlite3_column_bytes(st, 2);

		if (!data && bytes)
			break;
		digest_add(s, id_ck, sizeof(id_ck));
		if ((int64_t)state_crc32(data, (size_t)bytes) != id_ck[1] && !s->why[0])
			disagree(s, "n=%lld: blob %lld of %d bytes does not match its checksum",
				 LL(s->n), LL(id_ck[0]), bytes);
	}
	int end = sqlite3_finalize(st);
	return end ? end : rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Each name in ddl exists in the schema, with the rows promised; nothing else of that kind does. */
static int check_ddl(sqlite3 *db, struct state *s)
{
	sqlite3_stmt *st;
	int64_t v[2] = {0};
	int rc = row(db,
		     "SELECT (SELECT count(*) FROM sqlite_schema WHERE name GLOB 'd_*' OR name GLOB"
		     " 'i_*'), (SELECT count(*) FROM ddl JOIN sqlite_schema USING(name))",
		     v, 2);

	if (rc)
		return rc;
	if (v[0] != v[1])
		return disagree(s, "n=%lld: the schema has %lld extra objects, ddl names %lld",
				LL(s->n), LL(v[0]), LL(v[1]));
	rc = sqlite3_prepare_v2(db, "SELECT name, rows FROM ddl", -1, &st, NULL);
	if (rc)
		return rc;
	while (!rc && sqlite3_step(st) == SQLITE_ROW) {
		const char *name = (const char *)sqlite3_column_text(st, 0);
		int64_t rows = sqlite3_column_int64(st, 1);
		char sql[256];

		digest_add(s, name, strlen(name));
		if (rows < 0)
			continue;
		snprintf(sql, sizeof(sql), "SELECT count(*), coalesce(sum(a=b),0) FROM \"%s\"",
			 name);
		rc = row(db, sql, v, 2);
		if (!rc && (v[0] != rows || v[1] != rows))
			disagree(s, "n=%lld: table %s has %lld rows (%lld whole), not %lld",
				 LL(s->n), name, LL(v[0]), LL(v[1]), LL(rows));
	}
	int end = sqlite3_finalize(st);
	return rc ? rc : end;
}

int state_check(sqlite3 *db, bool deep, struct state *ret_s)
{
	struct state s = {.n = 0};
	int64_t c[7];
	int rc = row(db, "SELECT n, sum, lo, acc, blobs, bytes, cks FROM c", c, 7);

	if (rc == SQLITE_ERROR && strstr(sqlite3_errmsg(db), "no such table"))
		return STATE_NONE;
	if (rc)
		return rc;
	s.n = c[0];
	digest_add(&s, c, sizeof(c));
	if (c[1] != c[0] * (c[0] + 1) / 2)
		disagree(&s, "n=%lld: sum is %lld", LL(c[0]), LL(c[1]));
	if (!s.why[0])
		rc = check_log(db, c[0], c[2], &s);
	if (!rc && !s.why[0])
		rc = check_accounts(db, c[0], c[3], &s);
	if (!rc && !s.why[0])
		rc = check_blobs(db, c[0], c + 4, &s);
	if (!rc && !s.why[0])
		rc = check_ddl(db, &s);
	if (!rc && !s.why[0] && deep)
		rc = check_blobs_deep(db, &s);
	if (rc)
		disagree(&s, "%s (%d)", sqlite3_errmsg(db), sqlite3_extended_errcode(db));
	*ret_s = s;
	return rc;
}

int state_check_once(sqlite3 *db, bool deep, struct state *ret_s)
{
	int rc = sqlite3_exec(db, "BEGIN", NULL, NULL, NULL);

	if (rc)
		return rc;
	rc = state_check(db, deep, ret_s);
	sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
	return rc;
}
