/* writer.c - an application as walwire finds it: stock SQLite, one-row autocommit INSERTs.
 *
 *	writer DB [option value]...
 *	--seconds S    how long to measure (3)
 *	--warmup S     commits before that, counted in commits_all only (0)
 *	--rate N       commits a second; 0, the default, is as fast as it goes
 *	--burst N      commits back to back at each tick of --rate (1)
 *	--sync WORD    OFF, NORMAL or FULL (NORMAL)
 *	--row-bytes N  size of each row's payload (64)
 *	--pin CPU
 *	--follow FILE  afterwards poll FILE, a replica, until the last row is readable there
 *	--wait yes     print "ready", start when a line comes on stdin; so several start together
 *
 * Prints one JSON object. A latency is that of the whole statement, busy waits included. The WAL's
 * size is looked at by stat(), never by opening it: closing a descriptor would drop SQLite's locks.
 * Several processes on one database are started by the caller. */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "bench/measure.h"

#define FOLLOW_NS_MAX  (60 * NS_PER_S)
#define WAL_LOOK_EVERY 64 /* commits */

struct options {
	const char *db, *sync, *follow;
	double seconds, warmup, rate;
	int burst, row_bytes, pin;
	bool wait;
};

struct result {
	struct histogram all, first; /* first: the first commit of each burst */
	uint64_t commits_all, ns, wal_bytes_peak;
	double cpu_s;
};

static struct result result;

static void parse(struct options *o, int argc, char **argv)
{
	int i;

	*o = (struct options){
		.sync = "NORMAL", .seconds = 3, .burst = 1, .row_bytes = 64, .pin = -1};
	if (argc < 2 || argv[1][0] == '-')
		give_up("usage", "writer DB [option value]...");
	o->db = argv[1];
	for (i = 2; i < argc; i += 2) {
		const char *value = argv[i + 1];

		if (!value)
			give_up(argv[i], "needs a value");
		if (!strcmp(argv[i], "--seconds"))
			o->seconds = atof(value);
		else if (!strcmp(argv[i], "--warmup"))
			o->warmup = atof(value);
		else if (!strcmp(argv[i], "--rate"))
			o->rate = atof(value);
		else if (!strcmp(argv[i], "--burst"))
			o->burst = atoi(value);
		else if (!strcmp(argv[i], "--sync"))
			o->sync = value;
		else if (!strcmp(argv[i], "--row-bytes"))
			o->row_bytes = atoi(value);
		else if (!strcmp(argv[i], "--pin"))
			o->pin = atoi(value);
		else if (!strcmp(argv[i], "--follow"))
			o->follow = value;
		else if (!strcmp(argv[i], "--wait"))
			o->wait = true;
		else
			give_up(argv[i], "unknown option");
	}
}

static sqlite3 *open_application(const struct options *o)
{
	sqlite3 *db = open_database(o->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
	char sql[64];

	run_sql(db, "PRAGMA journal_mode = WAL");
	snprintf(sql, sizeof(sql), "PRAGMA synchronous = %s", o->sync);
	run_sql(db, sql);
	run_sql(db, "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)");
	return db;
}

static void look_at_wal(const char *wal)
{
	struct stat st;

	if (!stat(wal, &st) && (uint64_t)st.st_size > result.wal_bytes_peak)
		result.wal_bytes_peak = st.st_size;
}

static double cpu_seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Commit for `seconds`; `measured` or only to warm up. Returns the time of the last COMMIT. */
static uint64_t commit_for(const struct options *o, sqlite3 *db, const char *wal, double seconds,
			   bool measured)
{
	uint64_t period = o->rate > 0 ? (uint64_t)(NS_PER_S / o->rate) : 0;
	uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * NS_PER_S), next = begin, t0,
		 t1 = begin;
	sqlite3_stmt *insert = prepare(db, "INSERT INTO t(v) VALUES(zeroblob(?1))");
	double cpu = cpu_seconds();
	int i;

	sqlite3_bind_int(insert, 1, o->row_bytes);
	while (t1 < end) {
		if (period) {
			next += period;
			if (next < t1) /* late by more than a tick: no hurry to catch up */
				next = t1;
			if (next >= end)
				break;
			sleep_until(next);
		}
		for (i = 0; i < o->burst; i++) {
			t0 = now_ns();
			if (sqlite3_step(insert) != SQLITE_DONE)
				give_up("COMMIT", sqlite3_errmsg(db));
			t1 = now_ns();
			sqlite3_reset(insert);
			if (measured)
				histogram_add(&result.all, t1 - t0);
			if (measured && !i)
				histogram_add(&result.first, t1 - t0);
			if (!(++result.commits_all % WAL_LOOK_EVERY) || period)
				look_at_wal(wal);
		}
	}
	look_at_wal(wal);
	sqlite3_finalize(insert);
	if (measured) {
		result.ns = now_ns() - begin;
		result.cpu_s = cpu_seconds() - cpu;
	}
	return t1;
}

/* How long after `committed_ns` row `id` is readable in `path`; -1 when it never is. `ret_behind`
 * is how many rows were missing at the first look. */
static int64_t follow(const char *path, int64_t id, uint64_t committed_ns, int64_t *ret_behind)
{
	sqlite3 *db = open_database(path, SQLITE_OPEN_READONLY);
	sqlite3_stmt *newest = prepare(db, "SELECT max(id) FROM t");
	int64_t seen, delay = -1;

	*ret_behind = -1;
	do {
		seen = ask_number(newest);
		if (*ret_behind < 0 && seen >= 0)
			*ret_behind = id - seen;
		if (seen >= id)
			delay = now_ns() - committed_ns;
	} while (delay < 0 && now_ns() < committed_ns + FOLLOW_NS_MAX);
	sqlite3_finalize(newest);
	sqlite3_close(db);
	return delay;
}

static void print_result(int64_t keepup_ns, int64_t behind)
{
	printf("{\"sqlite\": \"%s\", \"commits\": %llu, \"commits_all\": %llu, \"seconds\": %.6f, "
	       "\"rate\": %.1f, ",
	       sqlite3_libversion(), (unsigned long long)result.all.count,
	       (unsigned long long)result.commits_all, result.ns / 1e9,
	       result.all.count * 1e9 / result.ns);
	histogram_print(&result.all, "commit");
	printf(", ");
	histogram_print(&result.first, "first");
	printf(", \"wal_bytes_peak\": %llu, \"cpu_us_per_commit\": %.3f, \"keepup_ns\": ",
	       (unsigned long long)result.wal_bytes_peak,
	       result.cpu_s * 1e6 / (result.all.count ? result.all.count : 1));
	keepup_ns < 0 ? printf("null") : printf("%lld", (long long)keepup_ns);
	printf(", \"behind\": ");
	behind < 0 ? printf("null") : printf("%lld", (long long)behind);
	printf("}\n");
}

int main(int argc, char **argv)
{
	int64_t keepup_ns = -1, behind = -1, last;
	struct options o;
	uint64_t t;
	sqlite3 *db;
	char *wal;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	parse(&o, argc, argv);
	pin_to(o.pin);
	db = open_application(&o);
	if (asprintf(&wal, "%s-wal", o.db) < 0)
		give_up(o.db, strerror(ENOMEM));
	if (o.wait) {
		printf("ready\n");
		fflush(stdout);
		if (getchar() == EOF)
			return 1;
	}
	if (o.warmup > 0)
		commit_for(&o, db, wal, o.warmup, false);
	t = commit_for(&o, db, wal, o.seconds, true);
	last = sqlite3_last_insert_rowid(db);
	if (o.follow)
		keepup_ns = follow(o.follow, last, t, &behind);
	print_result(keepup_ns, behind);
	free(wal);
	sqlite3_close(db);
	return 0;
}
