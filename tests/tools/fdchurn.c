/* fdchurn.c - opens and closes a database very often, each time with one SELECT.
 *
 * usage: fdchurn DB [--count N] [--ro]
 *
 * POSIX locks vanish when any descriptor of the file is closed in the same process; whoever keeps
 * locks for long must survive neighbours that come and go. c.n must never go backwards. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tools/state.h"

static int once(const char *path, int flags, int64_t *ret_n)
{
	sqlite3 *db;
	sqlite3_stmt *st = NULL;
	int rc = sqlite3_open_v2(path, &db, flags, NULL);

	sqlite3_busy_timeout(db, 10000);
	if (!rc)
		rc = sqlite3_prepare_v2(db, "SELECT n FROM c", -1, &st, NULL);
	if (!rc && (rc = sqlite3_step(st)) == SQLITE_ROW) {
		*ret_n = sqlite3_column_int64(st, 0);
		rc = 0;
	}
	sqlite3_finalize(st);
	if (rc && !state_is_busy(rc))
		fprintf(stderr, "fdchurn: %s: %s\n", path, sqlite3_errmsg(db));
	sqlite3_close(db);
	return rc;
}

int main(int argc, char **argv)
{
	int flags = SQLITE_OPEN_READWRITE;
	int64_t n = 0, last = 0;
	long count = 10000, busy = 0;
	const char *path = NULL;
	uint64_t start_us = state_now_us();

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--ro"))
			flags = SQLITE_OPEN_READONLY;
		else if (!strcmp(argv[i], "--count") && i + 1 < argc)
			count = atol(argv[++i]);
		else
			path = argv[i];
	}
	if (!path) {
		fprintf(stderr, "usage: fdchurn DB [--count N] [--ro]\n");
		return 2;
	}
	for (long i = 0; i < count; i++) {
		int rc = once(path, flags, &n);

		if (state_is_busy(rc)) {
			busy++;
			continue;
		}
		if (rc)
			return 1;
		if (n < last) {
			fprintf(stderr, "fdchurn: %s: n went backwards from %lld to %lld\n", path,
				(long long)last, (long long)n);
			return 1;
		}
		last = n;
	}
	printf("{\"opens\": %ld, \"busy\": %ld, \"n\": %lld, \"seconds\": %.3f}\n", count, busy,
	       (long long)last, (double)(state_now_us() - start_us) / 1e6);
	return 0;
}
