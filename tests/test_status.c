/* test_status - the picture as JSON, which is a contract, and as text. */
#include <stdlib.h>
#include <string.h>

#include "daemon/base/status.h"

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define EXPECT(c)                                                \
	do {                                                     \
		if (!(c))                                        \
			return "line " STRING(__LINE__) ": " #c; \
	} while (0)

static struct node_status s;
static char *text;

static const char *print(void (*how)(const struct node_status *, FILE *))
{
	size_t bytes;
	FILE *out;

	free(text);
	text = NULL;
	out = open_memstream(&text, &bytes);
	how(&s, out);
	fclose(out);
	return text;
}

static bool prints(const char *json)
{
	if (strcmp(print(status_print_json), json) == 0)
		return true;
	fprintf(stderr, "said %snot  %s", text, json);
	return false;
}

/* The JSON has `member` in it. */
static bool has(const char *member)
{
	print(status_print_json);
	if (strstr(text, member))
		return true;
	fprintf(stderr, "no %s in %s", member, text);
	return false;
}

static struct db_status *only_database(const char *role)
{
	memset(&s, 0, sizeof(s));
	strcpy(s.role, role);
	s.databases = 1;
	strcpy(s.db[0].name, "app.db");
	return &s.db[0];
}

/* A node that has nothing yet: what it does not know is null, not empty. */
static const char *test_empty(void)
{
	memset(&s, 0, sizeof(s));
	strcpy(s.role, "replica");
	EXPECT(prints("{\"role\": \"replica\", \"tap\": null, \"idle\": null, \"now\": null, "
		      "\"databases\": []}\n"));
	return NULL;
}

/* A primary with two replicas, member by member, in one line. */
static const char *test_primary(void)
{
	static const char JSON[] =
		"{\"role\": \"primary\", "
		"\"tap\": \"locks: posix_lock_inode; writes: fexit ext4_file_write_iter\", "
		"\"idle\": \"adaptive\", \"now\": \"napping\", \"databases\": [{"
		"\"name\": \"app.db\", \"path\": \"/srv/app.db\", \"state\": \"attached\", "
		"\"detail\": \"\", \"timeline\": 1, \"txid\": 1234, "
		"\"chain\": \"0000000000000abc\", \"fingerprint\": \"fedcba9876543210\", "
		"\"wal_bytes\": 4152, \"replicas\": [{"
		"\"addr\": \"10.0.0.2:7000\", \"state\": \"streaming\", \"sent\": 1234, "
		"\"received\": 1233, \"applied\": 1232, \"durable\": 1200, "
		"\"lag_commits\": 2, \"lag_bytes\": 8240, \"lag_ns\": 41000, "
		"\"delay_ns\": 52000, \"zero_copy\": true}, {"
		"\"addr\": \"[::1]:7000\", \"state\": \"seeding\", \"sent\": null, "
		"\"received\": null, \"applied\": null, \"durable\": null, "
		"\"lag_commits\": null, \"lag_bytes\": null, \"lag_ns\": null, "
		"\"delay_ns\": null, \"zero_copy\": false}], "
		"\"counters\": {\"commits\": 1234, \"frames\": 0, ";
	struct db_status *d = only_database("primary");

	strcpy(s.tap, "locks: posix_lock_inode; writes: fexit ext4_file_write_iter");
	strcpy(s.idle, "adaptive");
	strcpy(s.state_now, "napping");
	strcpy(d->path, "/srv/app.db");
	strcpy(d->state, "attached");
	d->timeline = 1;
	d->txid = 1234;
	d->chain = 0xabc;
	d->fingerprint = 0xfedcba9876543210;
	d->wal_bytes = 4152;
	d->source[0] = 'x';
	d->peers = 2;
	d->peer[0] = (struct peer_status){
		"10.0.0.2:7000", "streaming", 1234, 1233, 1232, 1200, 2, 8240, 41000, 52000, true};
	d->peer[1] =
		(struct peer_status){"[::1]:7000",   "seeding",	     STATUS_UNKNOWN, STATUS_UNKNOWN,
				     STATUS_UNKNOWN, STATUS_UNKNOWN, STATUS_UNKNOWN, STATUS_UNKNOWN,
				     STATUS_UNKNOWN, STATUS_UNKNOWN, false};
	d->counter[COUNTER_commits] = 1234;
	print(status_print_json);
	EXPECT(strncmp(text, JSON, strlen(JSON)) == 0);
	EXPECT(!strstr(text, "\"source\""));
	EXPECT(strchr(text, '\n') == text + strlen(text) - 1);
	return NULL;
}

/* A replica speaks of itself and its source too; what it does not know is null. */
static const char *test_replica(void)
{
	struct db_status *d = only_database("replica");

	d->timeline = d->txid = d->chain = d->fingerprint = d->wal_bytes = STATUS_UNKNOWN;
	d->received = 7;
	d->applied = 6;
	d->durable = 0;
	d->lag_ns = STATUS_UNKNOWN;
	EXPECT(has("\"timeline\": null, \"txid\": null, \"chain\": null, \"fingerprint\": null, "
		   "\"wal_bytes\": null, \"source\": null, \"received\": 7, \"applied\": 6, "
		   "\"durable\": 0, \"lag_ns\": null, \"replicas\": [], \"counters\": {"));
	strcpy(d->source, "10.0.0.1:7000");
	EXPECT(has("\"source\": \"10.0.0.1:7000\", \"received\": 7"));
	return NULL;
}

/* Every counter is there, by its name, and a number of its own. */
static const char *test_counters(void)
{
	static const char *const NAME[] = {
#define X(name, unit, sentence) #name,
		WALWIRE_COUNTERS(X)
#undef X
	};
	struct db_status *d = only_database("primary");
	char member[128];

	for (int i = 0; i < COUNTER_COUNT; i++)
		d->counter[i] = 1000 + (uint64_t)i;
	for (int i = 0; i < COUNTER_COUNT; i++) {
		snprintf(member, sizeof(member), "\"%s\": %d%c", NAME[i], 1000 + i,
			 i + 1 < COUNTER_COUNT ? ',' : '}');
		EXPECT(has(member));
	}
	d->counter[0] = STATUS_UNKNOWN;
	EXPECT(has("\"counters\": {\"commits\": null, "));
	return NULL;
}

/* Strings are JSON whatever bytes a name has: quotes and controls escaped, UTF-8 as it is, and what
 * is no UTF-8 (cut off, overlong, a surrogate, too high) replaced. */
static const char *test_strings(void)
{
	static const struct {
		const char *raw, *json;
	} CASES[] = {
		{"a \"b\" \\c/", "a \\\"b\\\" \\\\c/"},
		{"\x01\t\n\x1f\x7f", "\\u0001\\u0009\\u000a\\u001f\\u007f"},
		{"\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80",
		 "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"},
		{"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf",
		 "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"},
		{"x\xe2\x82", "x\\ufffd\\ufffd"},
		{"\xc3(", "\\ufffd("},
		{"\x80\xff", "\\ufffd\\ufffd"},
		{"\xc0\xaf", "\\ufffd\\ufffd"},
		{"\xe0\x80\xaf", "\\ufffd\\ufffd\\ufffd"},
		{"\xed\xa0\x80", "\\ufffd\\ufffd\\ufffd"},
		{"\xf4\x90\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd"},
		{"\xf0\x80\x80\xaf", "\\ufffd\\ufffd\\ufffd\\ufffd"},
	};
	struct db_status *d = only_database("primary");
	char member[256];

	for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
		strcpy(d->name, CASES[i].raw);
		snprintf(member, sizeof(member), "[{\"name\": \"%s\", \"path\"", CASES[i].json);
		EXPECT(has(member));
	}
	return NULL;
}

/* Text shows what is unknown as "?", numbers with their units, and no control character. */
static const char *test_text(void)
{
	struct db_status *d = only_database("replica");

	strcpy(d->name, "a\x1b[2J\xc2\x9b\xff.db");
	strcpy(d->state, "stopped");
	strcpy(d->detail, "no space left");
	d->txid = STATUS_UNKNOWN;
	d->wal_bytes = 4152;
	d->lag_ns = 41000;
	d->peers = 1;
	strcpy(d->peer[0].addr, "10.0.0.2:7000");
	d->peer[0].lag_ns = STATUS_UNKNOWN;
	d->counter[COUNTER_cycle_ns_max] = 1500;
	print(status_print_text);
	EXPECT(strstr(text, "a\\x1b[2J\\xc2\\x9b\\xff.db: stopped, no space left\n"));
	EXPECT(strstr(text, "txid ?, chain 0000000000000000\n"));
	EXPECT(strstr(text, "WAL          4.1 KiB\n"));
	EXPECT(strstr(text, "lag 41.0 us\n"));
	EXPECT(strstr(text, "cycle_ns_max") && strstr(text, " 1.5 us  longest cycle"));
	EXPECT(!strstr(text, "tap_wakeups"));
	EXPECT(!strchr(text, '\x1b'));
	s.databases = 0;
	EXPECT(strcmp(print(status_print_text), "replica\nno databases yet\n") == 0);
	return NULL;
}

static int failed;

static void run(const char *name, const char *(*test)(void))
{
	const char *why = test();

	if (why)
		printf("FAIL %s: %s\n", name, why);
	else
		printf("ok %s\n", name);
	failed |= why != NULL;
}

int main(void)
{
	run("status_empty", test_empty);
	run("status_primary", test_primary);
	run("status_replica", test_replica);
	run("status_counters", test_counters);
	run("status_strings", test_strings);
	run("status_text", test_text);
	free(text);
	return failed;
}
