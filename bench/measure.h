/* measure.h - what both benchmark programs need: a clock, a histogram, pinning, a way to give up.
 *
 * The histogram counts nanoseconds in buckets that are at most 1/64 of their value wide, so a
 * percentile is right to 0.8 %; the largest value is kept exactly. No allocation, one thread. */
#ifndef WALWIRE_BENCH_MEASURE_H
#define WALWIRE_BENCH_MEASURE_H

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sqlite3.h>

#define NS_PER_S	1000000000ull
#define HISTOGRAM_STEPS 64 /* buckets per doubling */

struct histogram {
	uint64_t count;
	uint64_t max;
	uint64_t bucket[HISTOGRAM_STEPS * 60];
};

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
	unsigned int shift = ns < HISTOGRAM_STEPS ? 0 : 57 - __builtin_clzll(ns);

	/* shift 0 covers 0..127 one by one, each further shift 64 buckets twice as wide. */
	h->bucket[shift * HISTOGRAM_STEPS + (ns >> shift)]++;
	h->count++;
	if (ns > h->max)
		h->max = ns;
}

/* The value that `share` (0..1) of all values do not exceed, in ns; 0 when there are none. */
static inline uint64_t histogram_at(const struct histogram *h, double share)
{
	uint64_t want = (uint64_t)(share * h->count + 0.5), sum = 0;
	unsigned int shift, i;

	for (i = 0; i < sizeof(h->bucket) / sizeof(h->bucket[0]); i++) {
		sum += h->bucket[i];
		if (!h->bucket[i] || sum < want)
			continue;
		if (sum == h->count)
			return h->max;
		shift = i < 2 * HISTOGRAM_STEPS ? 0 : i / HISTOGRAM_STEPS - 1;
		return ((uint64_t)(i - shift * HISTOGRAM_STEPS) << shift) + ((1ull << shift) >> 1);
	}
	return h->max;
}

/* JSON members `NAME_p50_ns` and so on, without braces; null when nothing was counted. */
static inline void histogram_print(const struct histogram *h, const char *name)
{
	static const struct {
		const char *label;
		double share;
	} row[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};
	unsigned int i;

	for (i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		printf("\"%s_%s_ns\": ", name, row[i].label);
		h->count ? printf("%llu, ", (unsigned long long)histogram_at(h, row[i].share))
			 : printf("null, ");
	}
	printf("\"%s_max_ns\": ", name);
	h->count ? printf("%llu", (unsigned long long)h->max) : printf("null");
}

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static inline void sleep_until(uint64_t ns)
{
	struct timespec ts = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
		;
}

_Noreturn static inline void give_up(const char *what, const char *why)
{
	fflush(stdout);
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, why);
	exit(1);
}

/* cpu -1: stay where the scheduler likes. */
static inline void pin_to(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		give_up("--pin", "no such cpu");
}

static inline sqlite3 *open_database(const char *path, int flags)
{
	sqlite3 *db;

	if (sqlite3_open_v2(path, &db, flags, NULL))
		give_up(path, sqlite3_errmsg(db));
	sqlite3_busy_timeout(db, 30000);
	return db;
}

static inline void run_sql(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL))
		give_up(sql, sqlite3_errmsg(db));
}

static inline sqlite3_stmt *prepare(sqlite3 *db, const char *sql)
{
	sqlite3_stmt *stmt;

	if (sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL))
		give_up(sql, sqlite3_errmsg(db));
	return stmt;
}

/* A query of one number; -1 when it could not be answered this time (busy). */
static inline int64_t ask_number(sqlite3_stmt *stmt)
{
	int64_t n = sqlite3_step(stmt) == SQLITE_ROW ? sqlite3_column_int64(stmt, 0) : -1;

	sqlite3_reset(stmt);
	return n;
}

#endif
