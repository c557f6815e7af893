#include "daemon/base/control_request.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "daemon/base/control.h"

void control_word(char to[CONTROL_WORD_MAX], const char *name)
{
	size_t n = 0;

	assert(strlen(name) < DB_NAME_MAX);
	for (const unsigned char *s = (const unsigned char *)name; *s; s++) {
		if (*s <= 0x20 || *s == 0x7f || *s == '%')
			n += (size_t)sprintf(to + n, "%%%02X", *s);
		else
			to[n++] = (char)*s;
	}
	to[n] = 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int control_unword(char to[DB_NAME_MAX], const char *word, size_t bytes)
{
	char name[DB_NAME_MAX];
	size_t n = 0;

	for (size_t i = 0; i < bytes; i++) {
		unsigned char c = (unsigned char)word[i];

		if (n == DB_NAME_MAX - 1 || c <= 0x20 || c == 0x7f)
			return -EINVAL;
		if (c == '%') {
			int high = i + 2 < bytes ? hex_digit(word[i + 1]) : -1;
			int low = i + 2 < bytes ? hex_digit(word[i + 2]) : -1;

			if (high < 0 || low < 0 || high + low == 0)
				return -EINVAL;
			c = (unsigned char)(high * 16 + low);
			i += 2;
		}
		name[n++] = (char)c;
	}
	name[n] = 0;
	memcpy(to, name, n + 1);
	return 0;
}

struct word {
	const char *at;
	size_t bytes;
};

static bool word_is(const struct word *w, const char *text)
{
	return w->bytes == strlen(text) && memcmp(w->at, text, w->bytes) == 0;
}

static bool parse_txid(const struct word *w, uint64_t *ret_txid)
{
	uint64_t v = 0;

	if (w->bytes == 0)
		return false;
	for (size_t i = 0; i < w->bytes; i++) {
		if (w->at[i] < '0' || w->at[i] > '9' || __builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(w->at[i] - '0'), &v))
			return false;
	}
	*ret_txid = v;
	return true;
}

static bool parse_wait(const struct word *w, struct request *q)
{
	static const char *const LEVEL[LEVEL_COUNT] = {"received", "applied", "durable"};
	int level = 0;

	while (level < LEVEL_COUNT && !word_is(&w[2], LEVEL[level]))
		level++;
	if (level == LEVEL_COUNT)
		return false;
	q->level = (enum level)level;
	q->txid = STATUS_UNKNOWN;
	if (!word_is(&w[3], "-") && !parse_txid(&w[3], &q->txid))
		return false;
	return control_unword(q->name, w[1].at, w[1].bytes) == 0;
}

void request_parse(struct request *ret_q, const char *line, size_t bytes)
{
	struct request q = {.kind = REQUEST_BAD};
	struct word w[5];
	int words = 0;

	for (size_t from = 0; words < 5; words++) {
		const char *space = memchr(line + from, ' ', bytes - from);

		w[words].at = line + from;
		w[words].bytes = space ? (size_t)(space - line) - from : bytes - from;
		if (!space) {
			words++;
			break;
		}
		from += w[words].bytes + 1;
	}
	if (words == 2 && word_is(&w[0], "status") && word_is(&w[1], "json"))
		q.kind = REQUEST_JSON;
	else if (words == 2 && word_is(&w[0], "status") && word_is(&w[1], "text"))
		q.kind = REQUEST_TEXT;
	else if (words == 4 && word_is(&w[0], "wait") && parse_wait(w, &q))
		q.kind = REQUEST_WAIT;
	else if (words == 2 && word_is(&w[0], "ring") &&
		 control_unword(q.name, w[1].at, w[1].bytes) == 0)
		q.kind = REQUEST_RING;
	*ret_q = q;
}

const struct db_status *request_database(const struct node_status *s, const char *name)
{
	if (!*name)
		return s->databases == 1 ? &s->db[0] : NULL;
	for (int i = 0; i < s->databases; i++)
		if (strcmp(s->db[i].name, name) == 0)
			return &s->db[i];
	return NULL;
}

static void print_no_database(FILE *out, const struct node_status *s, const char *name)
{
	char word[CONTROL_WORD_MAX];

	if (s->databases == 0) {
		fputs("error there is no database here yet\n", out);
		return;
	}
	control_word(word, name);
	if (*name)
		fprintf(out, "error there is no database '%s' here; there is", word);
	else
		fputs("error there are several databases here, name one:", out);
	for (int i = 0; i < s->databases; i++) {
		control_word(word, s->db[i].name);
		fprintf(out, "%s %s", i ? "," : "", word);
	}
	fputc('\n', out);
}

static bool is_replica(const struct node_status *s)
{
	return strcmp(s->role, "replica") == 0;
}

static uint64_t level_of(enum level level, uint64_t received, uint64_t applied, uint64_t durable)
{
	return level == LEVEL_RECEIVED ? received : level == LEVEL_APPLIED ? applied : durable;
}

/* How far the database is, see the header. */
static uint64_t have(const struct node_status *s, const struct db_status *d, enum level level)
{
	uint64_t least = STATUS_UNKNOWN;

	if (is_replica(s))
		return level_of(level, d->received, d->applied, d->durable);
	for (int i = 0; i < d->peers; i++) {
		const struct peer_status *p = &d->peer[i];
		uint64_t txid = level_of(level, p->received, p->applied, p->durable);

		if (txid == STATUS_UNKNOWN)
			return STATUS_UNKNOWN;
		if (txid < least)
			least = txid;
	}
	return least;
}

static uint64_t captured(const struct node_status *s, const struct db_status *d)
{
	if (!is_replica(s))
		return d->txid;
	if (strcmp(d->state, "streaming") != 0 || d->txid == STATUS_UNKNOWN ||
	    d->received == STATUS_UNKNOWN)
		return STATUS_UNKNOWN;
	return d->txid > d->received ? d->txid : d->received;
}

static void print_txid(FILE *out, uint64_t txid)
{
	if (txid == STATUS_UNKNOWN)
		fputs(" -", out);
	else
		fprintf(out, " %" PRIu64, txid);
}

static void print_wait(FILE *out, const struct node_status *s, const struct db_status *d,
		       const struct request *q)
{
	uint64_t at = have(s, d, q->level);
	uint64_t want = q->txid != STATUS_UNKNOWN ? q->txid : captured(s, d);

	if (at != STATUS_UNKNOWN && want != STATUS_UNKNOWN && at >= want) {
		fprintf(out, "ok\nreached %" PRIu64 "\n", at);
		return;
	}
	fputs("ok\nnot", out);
	print_txid(out, at);
	print_txid(out, want);
	fputc('\n', out);
}

void request_answer(const struct request *q, const struct node_status *s, int ring_fd, FILE *out)
{
	const struct db_status *d = NULL;
	char word[CONTROL_WORD_MAX];

	if (q->kind == REQUEST_JSON || q->kind == REQUEST_TEXT) {
		fputs("ok\n", out);
		(q->kind == REQUEST_JSON ? status_print_json : status_print_text)(s, out);
		return;
	}
	d = request_database(s, q->name);
	if (!d) {
		print_no_database(out, s, q->name);
		return;
	}
	if (q->kind == REQUEST_WAIT) {
		print_wait(out, s, d, q);
		return;
	}
	control_word(word, d->name);
	if (ring_fd < 0)
		fprintf(out, "error the ring of '%s' is not to be had: %s\n", word,
			strerror(-ring_fd));
	else
		fprintf(out, "ok\nring %s\n", word);
}
