#include "daemon/base/status.h"

#include <inttypes.h>
#include <string.h>

static const struct {
	const char *name, *unit, *sentence;
} COUNTER[COUNTER_COUNT] = {
#define X(name, unit, sentence) {#name, unit, sentence},
	WALWIRE_COUNTERS(X)
#undef X
};

static bool is_replica(const struct node_status *s)
{
	return strcmp(s->role, "replica") == 0;
}

static bool continues(unsigned char c)
{
	return (c & 0xc0) == 0x80;
}

/* Bytes of the UTF-8 character at `s` (RFC 3629: nothing overlong, no surrogates); 0 if there is
 * none. Stops at the final NUL, which continues nothing. */
static int utf8_bytes(const unsigned char *s)
{
	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		return continues(s[1]) ? 2 : 0;
	if (s[0] >= 0xe0 && s[0] <= 0xef) {
		if (!continues(s[1]) || !continues(s[2]) || (s[0] == 0xe0 && s[1] < 0xa0) ||
		    (s[0] == 0xed && s[1] > 0x9f))
			return 0;
		return 3;
	}
	if (s[0] >= 0xf0 && s[0] <= 0xf4) {
		if (!continues(s[1]) || !continues(s[2]) || !continues(s[3]) ||
		    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
			return 0;
		return 4;
	}
	return 0;
}

/* A JSON string. A byte that is no UTF-8, which JSON cannot carry, becomes U+FFFD. */
static void json_string(FILE *out, const char *text)
{
	fputc('"', out);
	for (const unsigned char *s = (const unsigned char *)text; *s;) {
		int n = utf8_bytes(s);

		if (n == 0)
			fputs("\\ufffd", out);
		else if (*s == '"' || *s == '\\')
			fprintf(out, "\\%c", *s);
		else if (*s < 0x20 || *s == 0x7f)
			fprintf(out, "\\u%04x", *s);
		else
			fwrite(s, 1, (size_t)n, out);
		s += n ? n : 1;
	}
	fputc('"', out);
}

/* The members below write their own comma: none of them is ever the first of its object. */
static void member_string(FILE *out, const char *key, const char *text)
{
	fprintf(out, ", \"%s\": ", key);
	json_string(out, text);
}

/* Empty means that nobody has said. */
static void member_maybe(FILE *out, const char *key, const char *text)
{
	if (*text)
		member_string(out, key, text);
	else
		fprintf(out, ", \"%s\": null", key);
}

static void member_number(FILE *out, const char *key, uint64_t v)
{
	if (v == STATUS_UNKNOWN)
		fprintf(out, ", \"%s\": null", key);
	else
		fprintf(out, ", \"%s\": %" PRIu64, key, v);
}

static void member_hash(FILE *out, const char *key, uint64_t v)
{
	if (v == STATUS_UNKNOWN)
		fprintf(out, ", \"%s\": null", key);
	else
		fprintf(out, ", \"%s\": \"%016" PRIx64 "\"", key, v);
}

static void json_peer(FILE *out, const struct peer_status *p)
{
	fputs("{\"addr\": ", out);
	json_string(out, p->addr);
	member_string(out, "state", p->state);
	member_number(out, "sent", p->sent);
	member_number(out, "received", p->received);
	member_number(out, "applied", p->applied);
	member_number(out, "durable", p->durable);
	member_number(out, "lag_commits", p->lag_commits);
	member_number(out, "lag_bytes", p->lag_bytes);
	member_number(out, "lag_ns", p->lag_ns);
	member_number(out, "delay_ns", p->delay_ns);
	fprintf(out, ", \"zero_copy\": %s}", p->zero_copy ? "true" : "false");
}

static void json_database(FILE *out, const struct node_status *s, const struct db_status *d)
{
	fputs("{\"name\": ", out);
	json_string(out, d->name);
	member_string(out, "path", d->path);
	member_string(out, "state", d->state);
	member_string(out, "detail", d->detail);
	member_number(out, "timeline", d->timeline);
	member_number(out, "txid", d->txid);
	member_hash(out, "chain", d->chain);
	member_hash(out, "fingerprint", d->fingerprint);
	member_number(out, "wal_bytes", d->wal_bytes);
	if (is_replica(s)) {
		member_maybe(out, "source", d->source);
		member_number(out, "received", d->received);
		member_number(out, "applied", d->applied);
		member_number(out, "durable", d->durable);
		member_number(out, "lag_ns", d->lag_ns);
	}
	fputs(", \"replicas\": [", out);
	for (int i = 0; i < d->peers; i++) {
		fputs(i ? ", " : "", out);
		json_peer(out, &d->peer[i]);
	}
	fputs("], \"counters\": {", out);
	for (int i = 0; i < COUNTER_COUNT; i++) {
		fprintf(out, "%s\"%s\": ", i ? ", " : "", COUNTER[i].name);
		if (d->counter[i] == STATUS_UNKNOWN)
			fputs("null", out);
		else
			fprintf(out, "%" PRIu64, d->counter[i]);
	}
	fputs("}}", out);
}

void status_print_json(const struct node_status *s, FILE *out)
{
	fputs("{\"role\": ", out);
	json_string(out, s->role);
	member_maybe(out, "tap", s->tap);
	member_maybe(out, "idle", s->idle);
	member_maybe(out, "now", s->state_now);
	fputs(", \"databases\": [", out);
	for (int i = 0; i < s->databases; i++) {
		fputs(i ? ", " : "", out);
		json_database(out, s, &s->db[i]);
	}
	fputs("]}\n", out);
}

/* For a terminal: control characters (C0, DEL, C1) and what is no UTF-8 as \xNN. */
static void text_string(FILE *out, const char *text)
{
	for (const unsigned char *s = (const unsigned char *)text; *s;) {
		int n = utf8_bytes(s);

		if (n == 0 || *s < 0x20 || *s == 0x7f)
			fprintf(out, "\\x%02x", *s);
		else if (n == 2 && s[0] == 0xc2 && s[1] < 0xa0)
			fprintf(out, "\\x%02x\\x%02x", s[0], s[1]);
		else
			fwrite(s, 1, (size_t)n, out);
		s += n ? n : 1;
	}
}

struct word {
	char text[32];
};

static struct word text_number(uint64_t v)
{
	struct word w = {"?"};

	if (v != STATUS_UNKNOWN)
		snprintf(w.text, sizeof(w.text), "%" PRIu64, v);
	return w;
}

static struct word text_hash(uint64_t v)
{
	struct word w = {"?"};

	if (v != STATUS_UNKNOWN)
		snprintf(w.text, sizeof(w.text), "%016" PRIx64, v);
	return w;
}

/* `v` in the largest unit of which there is at least one. */
static struct word text_scaled(uint64_t v, double step, const char *const *unit, int units)
{
	struct word w = {"?"};
	double x = (double)v;
	int i = 0;

	if (v == STATUS_UNKNOWN)
		return w;
	while (x >= step && i + 1 < units) {
		x /= step;
		i++;
	}
	snprintf(w.text, sizeof(w.text), i ? "%.1f %s" : "%.0f %s", x, unit[i]);
	return w;
}

static struct word text_bytes(uint64_t v)
{
	static const char *const UNIT[] = {"B", "KiB", "MiB", "GiB", "TiB"};

	return text_scaled(v, 1024, UNIT, 5);
}

static struct word text_ns(uint64_t v)
{
	static const char *const UNIT[] = {"ns", "us", "ms", "s"};

	return text_scaled(v, 1000, UNIT, 4);
}

static struct word text_counter(int id, uint64_t v)
{
	if (strcmp(COUNTER[id].unit, "bytes") == 0)
		return text_bytes(v);
	return strcmp(COUNTER[id].unit, "ns") == 0 ? text_ns(v) : text_number(v);
}

static void text_peers(FILE *out, const struct db_status *d)
{
	fprintf(out, "  replicas     %d\n", d->peers);
	if (d->peers == 0)
		return;
	fprintf(out, "    %-22s %-10s %10s %10s %10s %10s %8s %10s %10s %10s\n", "address", "state",
		"sent", "received", "applied", "durable", "behind", "bytes", "lag", "delay");
	for (int i = 0; i < d->peers; i++) {
		const struct peer_status *p = &d->peer[i];

		fputs("    ", out);
		text_string(out, p->addr);
		fprintf(out, "%*s %-10s %10s %10s %10s %10s %8s %10s %10s %10s%s\n",
			strlen(p->addr) < 22 ? (int)(22 - strlen(p->addr)) : 0, "", p->state,
			text_number(p->sent).text, text_number(p->received).text,
			text_number(p->applied).text, text_number(p->durable).text,
			text_number(p->lag_commits).text, text_bytes(p->lag_bytes).text,
			text_ns(p->lag_ns).text, text_ns(p->delay_ns).text,
			p->zero_copy ? "  zero-copy" : "");
	}
}

static void text_database(FILE *out, const struct node_status *s, const struct db_status *d)
{
	fputc('\n', out);
	text_string(out, d->name);
	fprintf(out, ": %s", d->state);
	if (*d->detail) {
		fputs(", ", out);
		text_string(out, d->detail);
	}
	fputs("\n  path         ", out);
	text_string(out, d->path);
	fprintf(out, "\n  position     timeline %s, txid %s, chain %s\n",
		text_number(d->timeline).text, text_number(d->txid).text, text_hash(d->chain).text);
	fprintf(out, "  fingerprint  %s\n  WAL          %s\n", text_hash(d->fingerprint).text,
		text_bytes(d->wal_bytes).text);
	if (is_replica(s)) {
		fputs("  source       ", out);
		text_string(out, *d->source ? d->source : "?");
		fprintf(out, "\n  here         received %s, applied %s, durable %s, lag %s\n",
			text_number(d->received).text, text_number(d->applied).text,
			text_number(d->durable).text, text_ns(d->lag_ns).text);
	}
	text_peers(out, d);
	fputs("  counters\n", out);
	for (int i = 0; i < COUNTER_COUNT; i++)
		if (d->counter[i])
			fprintf(out, "    %-17s %14s  %s\n", COUNTER[i].name,
				text_counter(i, d->counter[i]).text, COUNTER[i].sentence);
}

void status_print_text(const struct node_status *s, FILE *out)
{
	fputs(s->role, out);
	if (*s->idle)
		fprintf(out, ", idle mode %s", s->idle);
	if (*s->state_now)
		fprintf(out, ", now %s", s->state_now);
	fputc('\n', out);
	if (*s->tap) {
		fputs("tap: ", out);
		text_string(out, s->tap);
		fputc('\n', out);
	}
	if (s->databases == 0)
		fputs("no databases yet\n", out);
	for (int i = 0; i < s->databases; i++)
		text_database(out, s, &s->db[i]);
}
