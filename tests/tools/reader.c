/* reader.c - a stock reader that judges every state it sees of a database as in state.h.
 *
 * Polls with one connection (closed and opened again now and then): n never goes backwards, every
 * promise holds for that n, the file stays the same file. With --hold a second connection keeps a
 * snapshot open and looks at its end whether it is still what it was.
 *
 * usage: reader DB [--name NAME] [--seconds S] [--until-n N] [--hold S] [--every-us N]
 *               [--integrity-every S] [--wait S] [--rw] [--seed N]
 *
 * Waits up to --wait seconds (60) for the database to appear. Ends at SIGTERM, --seconds or when n
 * reaches --until-n. One JSON line at the end; exit 1 after naming a violation, 2 for usage. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/tools/state.h"

struct reader {
	sqlite3 *db, *held;
	const char *path, *name;
	double seconds, hold, integrity_every, wait;
	int64_t until_n, every_us;
	bool rw;
	unsigned int rng;
	ino_t inode;
	struct state holding;
	uint64_t held_until_us, integrity_due_us;
	/* results: */
	int64_t n, n_first, reads, states, deep, integrity, busy, opens, holds, gap_max, held_moved;
	uint64_t busy_us_max, still_since_us, still_us_max;
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

static void print_result(const struct reader *r)
{
	printf("{\"name\": \"%s\", \"sqlite\": \"%s\", \"n_first\": %lld, \"n\": %lld, \"reads\": %lld, "
	       "\"states\": %lld, \"deep\": %lld, \"integrity_checks\": %lld, \"busy\": %lld, "
	       "\"busy_us_max\": %llu, \"opens\": %lld, \"holds\": %lld, \"held_moved\": %lld, "
	       "\"gap_max\": %lld, \"still_us_max\": %llu}\n",
	       r->name, sqlite3_libversion(), (long long)r->n_first, (long long)r->n,
	       (long long)r->reads, (long long)r->states, (long long)r->deep,
	       (long long)r->integrity, (long long)r->busy, (unsigned long long)r->busy_us_max,
	       (long long)r->opens, (long long)r->holds, (long long)r->held_moved,
	       (long long)r->gap_max, (unsigned long long)r->still_us_max);
	fflush(stdout);
}

__attribute__((noreturn)) static void violation(struct reader *r, sqlite3 *db, int rc,
						const char *why)
{
	fprintf(stderr, "reader %s: violation after n=%lld: %s%s%s\n", r->name, (long long)r->n,
		why, rc > 0 ? ": " : "",
		rc > 0 ? (db ? sqlite3_errmsg(db) : sqlite3_errstr(rc)) : "");
	print_result(r);
	exit(1);
}

static int reader_connect(struct reader *r, sqlite3 **ret_db)
{
	int rc = sqlite3_open_v2(r->path, ret_db,
				 r->rw ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY, NULL);

	if (rc) {
		sqlite3_close(*ret_db);
		*ret_db = NULL;
		return rc;
	}
	sqlite3_busy_timeout(*ret_db, 5000);
	r->opens++;
	return 0;
}

static void same_file(struct reader *r)
{
	struct stat st;

	if (stat(r->path, &st))
		violation(r, NULL, 0, "the file is gone");
	if (r->inode && st.st_ino != r->inode)
		violation(r, NULL, 0, "the file was replaced by another under its readers");
	r->inode = st.st_ino;
}

/* Busy is not a violation, but counted: nothing should make a reader wait. */
static bool passes(struct reader *r, sqlite3 *db, int rc, uint64_t since_us, const struct state *s)
{
	if (state_is_busy(rc)) {
		uint64_t us = state_now_us() - since_us;

		r->busy++;
		if (us > r->busy_us_max)
			r->busy_us_max = us;
		return false;
	}
	if (rc || s->why[0])
		violation(r, db, 0, rc == STATE_NONE ? "the tables are gone" : s->why);
	return true;
}

static void look(struct reader *r)
{
	bool deep = r->reads % 20 == 0;
	uint64_t now_us = state_now_us();
	struct state s = {.n = 0};
	char why[128];
	int rc = state_check_once(r->db, deep, &s);

	if (!passes(r, r->db, rc, now_us, &s))
		return;
	r->reads++;
	r->deep += deep;
	if (s.n < r->n) {
		snprintf(why, sizeof(why), "n went backwards to %lld", (long long)s.n);
		violation(r, r->db, 0, why);
	}
	if (s.n == r->n && r->states)
		return;
	if (r->states && s.n - r->n > r->gap_max)
		r->gap_max = s.n - r->n;
	if (r->states && now_us - r->still_since_us > r->still_us_max)
		r->still_us_max = now_us - r->still_since_us;
	if (!r->states++)
		r->n_first = s.n;
	r->still_since_us = now_us;
	r->n = s.n;
}

static void integrity(struct reader *r)
{
	uint64_t now_us = state_now_us();
	sqlite3_stmt *st;
	int rc;

	if (r->integrity_every <= 0 || now_us < r->integrity_due_us)
		return;
	rc = sqlite3_prepare_v2(r->db, "PRAGMA integrity_check(3)", -1, &st, NULL);
	if (!rc)
		rc = sqlite3_step(st);
	if (rc == SQLITE_ROW && strcmp((const char *)sqlite3_column_text(st, 0), "ok"))
		violation(r, r->db, 0, (const char *)sqlite3_column_text(st, 0));
	if (rc != SQLITE_ROW && !state_is_busy(rc))
		violation(r, r->db, rc, "integrity_check");
	r->busy += rc != SQLITE_ROW;
	r->integrity += rc == SQLITE_ROW;
	sqlite3_finalize(st);
	r->integrity_due_us = state_now_us() + (uint64_t)(r->integrity_every * 1e6);
}

/* The snapshot of the second connection: taken, kept, looked at, let go, taken anew. */
static void hold(struct reader *r)
{
	uint64_t now_us = state_now_us();
	struct state s = {.n = 0};
	int rc;

	if (r->hold <= 0 || (r->held && now_us < r->held_until_us))
		return;
	if (!r->held) {
		if (reader_connect(r, &r->held))
			return;
		sqlite3_exec(r->held, "BEGIN", NULL, NULL, NULL);
		if (passes(r, r->held, state_check(r->held, true, &r->holding), now_us,
			   &r->holding)) {
			r->held_until_us = now_us + (uint64_t)(r->hold * 1e6);
			return;
		}
	} else {
		rc = state_check(r->held, true, &s);
		if (!passes(r, r->held, rc, now_us, &s) || s.n != r->holding.n ||
		    s.digest != r->holding.digest)
			violation(r, r->held, rc, "a held snapshot is not what it was");
		r->holds++;
		if (r->n - s.n > r->held_moved)
			r->held_moved = r->n - s.n;
	}
	sqlite3_close(r->held);
	r->held = NULL;
}

/* Until the file is there and holds a first state. */
static void await(struct reader *r)
{
	uint64_t until_us = state_now_us() + (uint64_t)(r->wait * 1e6);

	while (!stop) {
		struct state s;
		int rc = SQLITE_CANTOPEN;

		if (!access(r->path, R_OK))
			rc = reader_connect(r, &r->db);
		if (!rc)
			rc = state_check_once(r->db, false, &s);
		if (!rc)
			return;
		if (state_now_us() > until_us)
			violation(r, r->db, rc, "waited for the database in vain");
		sqlite3_close(r->db);
		r->db = NULL;
		usleep(5000);
	}
}

static void work(struct reader *r)
{
	uint64_t start_us = state_now_us();

	await(r);
	r->integrity_due_us = start_us + (uint64_t)(r->integrity_every * 1e6);
	while (!stop && r->db) {
		look(r);
		if (r->until_n >= 0 && r->n >= r->until_n)
			break;
		if (r->seconds >= 0 && (double)(state_now_us() - start_us) > r->seconds * 1e6)
			break;
		hold(r);
		integrity(r);
		if (rand_r(&r->rng) % 50 == 0) {
			same_file(r);
			sqlite3_close(r->db);
			r->db = NULL;
			int rc = reader_connect(r, &r->db);

			if (rc)
				violation(r, NULL, rc, "cannot open any more");
		}
		if (r->every_us)
			usleep((useconds_t)r->every_us);
	}
	if (stop && r->db)
		look(r); /* what is there now counts */
	if (r->held) {	 /* told to stop while holding: look now */
		r->held_until_us = 0;
		hold(r);
	}
	sqlite3_close(r->held);
	sqlite3_close(r->db);
}

static void parse(struct reader *r, int argc, char **argv)
{
	static const char *const names[] = {"rw",   "name", "seconds",	       "until-n",
					    "hold", "wait", "integrity-every", "every-us",
					    "seed"};
	double until_n = -1, every_us = 1000, seed = 1;
	double *const numbers[] = {&r->seconds,		&until_n,  &r->hold, &r->wait,
				   &r->integrity_every, &every_us, &seed};
	enum { COUNT = sizeof(names) / sizeof(names[0]) };
	struct option options[COUNT + 1] = {{0}};
	int at;

	for (int i = 0; i < COUNT; i++)
		options[i] =
			(struct option){names[i], i ? required_argument : no_argument, NULL, 0};
	while (getopt_long(argc, argv, "", options, &at) == 0) {
		if (at == 0)
			r->rw = true;
		else if (at == 1)
			r->name = optarg;
		else
			*numbers[at - 2] = atof(optarg);
	}
	if (optind != argc - 1) {
		fprintf(stderr, "usage: reader DB [OPTION...]; see the head of reader.c\n");
		exit(2);
	}
	r->until_n = (int64_t)until_n;
	r->every_us = (int64_t)every_us;
	r->rng = (unsigned int)seed;
	r->path = argv[optind];
}

int main(int argc, char **argv)
{
	struct reader r = {.name = "r", .seconds = -1, .integrity_every = 3, .wait = 60};

	parse(&r, argc, argv);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	work(&r);
	print_result(&r);
	return 0;
}
