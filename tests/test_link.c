/* test_link - what a source may send, what it may not, and where what it sends ends up.
 *
 * The source is the test, over loopback; it can send anything. The applier is a stand-in. The clock
 * is the test's: nothing here waits for time to pass. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/testing.h"

#include "daemon/apply/link.h"
#include "tests/batches.h"

#define MS	   1000000ull
#define RING_BYTES (4u << 20)
#define PAGE_BYTES 512u

struct place {
	struct loop loop;
	struct feed feed;
	struct applier applier;
	struct link link;
	struct address source;
	int listen_fd, fd;
	struct hello hello; /* the link's */
	struct maker maker; /* the source's history */
	uint64_t begin;	    /* of what this stream has published */
	uint8_t *out;	    /* what the source is to send */
	uint32_t out_bytes;
};

#define OUT_MAX (12u << 20)

/* ---- the stand-in for the applier ---- */

static int expect_err, expected, unlinked;

int applier_expect_seed(struct applier *a, const uint8_t db_id[16], uint32_t page_bytes, char *why,
			size_t why_bytes)
{
	expected++;
	if (expect_err) {
		snprintf(why, why_bytes, "that is not the one");
		return expect_err;
	}
	memcpy(a->feed->db_id, db_id, DB_ID_BYTES);
	feed_set_page_bytes(a->feed, page_bytes);
	return 0;
}

void applier_unlink(struct applier *a)
{
	unlinked++;
	a->mode = a->known ? APPLIER_LIVE : APPLIER_EMPTY;
}

uint32_t applier_db_pages(struct applier *a)
{
	return a->known ? 10 : 0;
}

/* All that is published is applied at once. */
static void apply(struct place *p)
{
	p->applier.pos = ring_published(&p->feed.ring);
	ring_release(&p->feed.ring, p->applier.reader, p->applier.pos);
}

/* ---- place ---- */

static void fresh_link(struct place *p)
{
	p->applier.known = p->maker.at.timeline != 0;
	p->applier.mode = p->applier.known ? APPLIER_LIVE : APPLIER_EMPTY;
	p->applier.applied = p->maker.at;
	p->feed.at = p->maker.at;
	apply(p);
	p->begin = ring_published(&p->feed.ring);
	link_init(&p->link, &p->feed, &p->loop, &p->applier, &p->source);
	p->out_bytes = 0;
}

/* Streams go on after `txid` commits; with no_history the replica has nothing yet. */
static const char *place_open(struct place *p, bool no_history)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t bytes = sizeof(sa);

	memset(p, 0, sizeof(*p));
	expect_err = expected = unlinked = 0;
	p->fd = -1;
	p->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	EXPECT(bind(p->listen_fd, (struct sockaddr *)&sa, bytes) == 0 && listen(p->listen_fd, 8) == 0);
	EXPECT(getsockname(p->listen_fd, (struct sockaddr *)&sa, &bytes) == 0);
	memcpy(&p->source.sa, &sa, bytes);
	p->source.bytes = bytes;
	EXPECT(loop_open(&p->loop) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", "/nowhere/app.db", RING_BYTES, -1) == 0);
	p->applier.feed = &p->feed;
	p->applier.reader = ring_attach(&p->feed.ring, 0);
	p->out = malloc(OUT_MAX);
	p->maker = (struct maker){.page_bytes = PAGE_BYTES, .db_pages = 10, .time_ns = 1};
	if (!no_history) {
		p->maker.at = (struct position){1, 100, 0x1234567890abcdef};
		p->maker.chain = p->maker.at.chain;
		feed_set_page_bytes(&p->feed, PAGE_BYTES);
		memset(p->feed.db_id, 7, DB_ID_BYTES);
	}
	fresh_link(p);
	return NULL;
}

static void hang_up(struct place *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
}

static void place_close(struct place *p)
{
	while (!link_stop(&p->link))
		loop_wait(&p->loop, MS);
	if (p->link.fd >= 0)
		close(p->link.fd);
	hang_up(p);
	close(p->listen_fd);
	feed_close(&p->feed);
	loop_close(&p->loop);
	free(p->out);
}

static void step(struct place *p)
{
	if (!link_do_work(&p->link))
		loop_wait(&p->loop, MS);
	else
		loop_reap(&p->loop);
}

/* Step until `condition`, as long as it may take. */
#define UNTIL(p, condition)                                                     \
	do {                                                                    \
		int left_ = LIMIT_MS;                                           \
		while (!(condition) && left_--)                                 \
			step(p);                                                \
		if (!(condition))                                               \
			return "line " STRING(__LINE__) ": never " #condition;  \
	} while (0)

static bool read_all(int fd, void *to, size_t bytes)
{
	return recv(fd, to, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static bool knock(const struct place *p)
{
	struct pollfd f = {.fd = p->listen_fd, .events = POLLIN};

	return poll(&f, 1, 0) > 0;
}

static bool heard(const struct place *p, size_t bytes)
{
	int n = 0;
	uint8_t peek[1024];

	n = (int)recv(p->fd, peek, bytes, MSG_PEEK | MSG_DONTWAIT);
	return n == (int)bytes;
}

/* The link has connected and said hello. */
static const char *greeted(struct place *p)
{
	uint8_t bytes[HELLO_BYTES];
	int one = 1;

	hang_up(p);
	p->loop.now_ns += 2 * LINK_RETRY_MS_MAX * MS;
	UNTIL(p, knock(p));
	p->fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	UNTIL(p, heard(p, HELLO_BYTES));
	EXPECT(read_all(p->fd, bytes, HELLO_BYTES));
	EXPECT(hello_get(bytes, &p->hello) == 0 && p->hello.what == HELLO_FOLLOW);
	return NULL;
}

static struct hello verdict(const struct place *p, enum verdict what)
{
	struct hello h = {.version = WIRE_VERSION,
			  .what = (uint16_t)what,
			  .page_bytes = PAGE_BYTES,
			  .at = p->maker.at};

	memset(h.db_id, 7, DB_ID_BYTES);
	return h;
}

static bool say(struct place *p, const void *bytes, size_t n)
{
	return send(p->fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static const char *answered(struct place *p, const struct hello *h)
{
	uint8_t bytes[HELLO_BYTES];

	CALL(greeted(p));
	hello_put(bytes, h);
	EXPECT(say(p, bytes, HELLO_BYTES));
	return NULL;
}

static const char *streaming(struct place *p, enum verdict what)
{
	struct hello h = verdict(p, what);

	CALL(answered(p, &h));
	UNTIL(p, p->link.state == LINK_STREAM);
	return NULL;
}

static uint64_t published(const struct place *p)
{
	return ring_published(&p->feed.ring) - p->begin;
}

static uint64_t bad(const struct place *p)
{
	return counter_get(p->feed.counters, COUNTER_bad_batches);
}

/* The stream ends here; the link has read it to its end. */
static const char *ended(struct place *p)
{
	shutdown(p->fd, SHUT_WR);
	UNTIL(p, p->link.state == LINK_WAITING);
	return NULL;
}

/* What was published is what was sent, and each frame's hash is kept beside. */
static bool same_bytes(const struct place *p, uint64_t bytes)
{
	static uint64_t ours[BATCH_BYTES_MAX / PAGE_BYTES_MIN];
	struct batch_header h;

	for (uint64_t at = p->begin; at < p->begin + bytes; at += h.bytes) {
		const uint8_t *batch = ring_at(&p->feed.ring, at);

		if (batch_header_get(batch, &h) || batch_check(batch, &h, ours) ||
		    memcmp(feed_hashes(&p->feed, at), ours, h.frames * sizeof(*ours)))
			return false;
	}
	return memcmp(ring_at(&p->feed.ring, p->begin), p->out, bytes) == 0;
}

static uint8_t *next(struct place *p)
{
	return p->out + p->out_bytes;
}

/* ---- tests ---- */

/* What is sent lies in the ring, byte for byte, however the stream is cut on its way. */
static const char *test_stream(void)
{
	uint32_t sent = 0, frames[4];
	struct place p;

	CALL(place_open(&p, false));
	for (int i = 0; i < 60; i++) {
		for (int k = 0; k < 4; k++)
			frames[k] = 1 + below(below(4) ? 4 : 200);
		p.out_bytes += i % 5 ? make_commits(&p.maker, next(&p), frames, 1 + below(4), false, NULL) :
				       make_part(&p.maker, next(&p), frames[0]);
	}
	p.out_bytes += make_commit(&p.maker, next(&p), 1);
	EXPECT(p.out_bytes < RING_BYTES);
	CALL(streaming(&p, VERDICT_CONTINUE));
	while (sent < p.out_bytes) {
		uint32_t n = 1 + below(below(2) ? 100 : 40000);

		if (n > p.out_bytes - sent)
			n = p.out_bytes - sent;
		EXPECT(say(&p, p.out + sent, n));
		sent += n;
		step(&p);
		step(&p);
		EXPECT(published(&p) <= sent);
	}
	UNTIL(&p, published(&p) == p.out_bytes);
	EXPECT(same_bytes(&p, p.out_bytes));
	EXPECT(p.feed.at.txid == p.maker.at.txid && p.feed.at.chain == p.maker.at.chain);
	EXPECT(p.link.at.txid == p.maker.at.txid && p.link.source_txid == p.maker.at.txid);
	EXPECT(bad(&p) == 0);
	place_close(&p);
	return NULL;
}

/* The hello says who we are and where we stand. */
static const char *test_hello(void)
{
	struct place p;

	CALL(place_open(&p, false));
	CALL(greeted(&p));
	EXPECT(p.hello.version == WIRE_VERSION && p.hello.page_bytes == PAGE_BYTES);
	EXPECT(!strcmp(p.hello.text, "app.db") && p.hello.db_id[3] == 7);
	EXPECT(p.hello.at.timeline == 1 && p.hello.at.txid == 100 &&
	       p.hello.at.chain == p.maker.at.chain);
	place_close(&p);
	CALL(place_open(&p, true));
	CALL(greeted(&p));
	EXPECT(p.hello.page_bytes == 0 && p.hello.at.timeline == 0 && p.hello.at.txid == 0);
	EXPECT(p.hello.db_id[3] == 0);
	place_close(&p);
	return NULL;
}

/* Three batches: a commit, a part, its rest with another commit. */
static void short_stream(struct place *p)
{
	static const uint32_t frames[2] = {1, 1};

	p->out_bytes += make_commit(&p->maker, next(p), 1);
	p->out_bytes += make_part(&p->maker, next(p), 1);
	p->out_bytes += make_commits(&p->maker, next(p), frames, 2, false, NULL);
}

/* One flipped bit anywhere: what was before it is published, what has it never is, and the
 * connection ends. */
static const char *test_flipped(void)
{
	struct batch_header h;
	struct maker start;
	struct place p;

	CALL(place_open(&p, false));
	start = p.maker;
	short_stream(&p);
	for (uint32_t at = 0, batch = 0, bytes = p.out_bytes; at < bytes; at++) {
		struct maker end = p.maker;
		uint64_t before = bad(&p);
		uint8_t bit = (uint8_t)(1u << below(8));

		EXPECT(batch_header_get(p.out + batch, &h) == 0);
		if (at == batch + h.bytes)
			batch = at;
		p.maker = start;
		fresh_link(&p);
		p.out_bytes = bytes;
		CALL(streaming(&p, VERDICT_CONTINUE));
		p.out[at] ^= bit;
		EXPECT(say(&p, p.out, bytes));
		/* Dropped at once, though the source goes on. */
		UNTIL(&p, p.link.state == LINK_WAITING);
		EXPECT(bad(&p) == before + 1);
		if (published(&p) != batch)
			fprintf(stderr, "byte %u: %llu published, not %u\n", at,
				(unsigned long long)published(&p), batch);
		EXPECT(published(&p) == batch);
		EXPECT(same_bytes(&p, published(&p)));
		CALL(ended(&p));
		p.out[at] ^= bit;
		p.maker = end;
		hang_up(&p);
	}
	place_close(&p);
	return NULL;
}

/* Cut off anywhere: whole batches are published, a cut one never; what came counts when we return. */
static const char *test_truncated(void)
{
	struct maker start;
	struct place p;

	CALL(place_open(&p, false));
	start = p.maker;
	short_stream(&p);
	for (uint32_t cut = 0, bytes = p.out_bytes; cut <= bytes; cut += cut % 64 ? 13 : 1) {
		struct maker end = p.maker;
		struct batch_header h;
		uint32_t whole = 0;
		uint64_t txid = start.at.txid;

		p.maker = start;
		fresh_link(&p);
		p.out_bytes = bytes;
		while (whole < bytes && batch_header_get(p.out + whole, &h) == 0 &&
		       whole + h.bytes <= cut) {
			whole += h.bytes;
			txid = h.txid;
		}
		CALL(streaming(&p, VERDICT_CONTINUE));
		EXPECT(cut == 0 || say(&p, p.out, cut));
		CALL(ended(&p));
		EXPECT(published(&p) == whole && same_bytes(&p, whole));
		CALL(greeted(&p));
		EXPECT(p.hello.at.txid == txid);
		hang_up(&p);
		UNTIL(&p, p.link.state == LINK_WAITING);
		p.maker = end;
	}
	EXPECT(bad(&p) == 0);
	place_close(&p);
	return NULL;
}

/* Anything else: dropped, nothing published. */
static const char *test_garbage(void)
{
	struct place p;

	CALL(place_open(&p, false));
	for (int i = 0; i < 200; i++) {
		uint32_t n = 64 + below(3000);

		fresh_link(&p);
		rnd_fill(p.out, n);
		if (i % 3 == 0)
			p.out[4] = BATCH_MAGIC;
		CALL(streaming(&p, VERDICT_CONTINUE));
		EXPECT(say(&p, p.out, n));
		UNTIL(&p, p.link.state == LINK_WAITING);
		EXPECT(published(&p) == 0 && bad(&p) == (uint64_t)i + 1);
	}
	place_close(&p);
	return NULL;
}

/* A header that is sound in itself and must not be believed. */
static const char *bad_header(struct place *p, const char *what, struct batch_header h)
{
	uint64_t before = bad(p);

	fresh_link(p);
	memset(p->out, 0, 4096);
	batch_header_put(p->out, &h);
	CALL(streaming(p, VERDICT_CONTINUE));
	EXPECT(say(p, p->out, 4096));
	UNTIL(p, p->link.state == LINK_WAITING);
	if (published(p) || bad(p) != before + 1) {
		fprintf(stderr, "believed: %s\n", what);
		return "a header was believed that must not be";
	}
	return NULL;
}

static const char *test_headers(void)
{
	struct batch_header h, good;
	struct place p;

	CALL(place_open(&p, false));
	struct maker m = p.maker;

	make_commit(&m, p.out, 1);
	EXPECT(batch_header_get(p.out, &good) == 0);
	h = good;
	h.frames = batch_frames_max(PAGE_BYTES) + 1;
	h.bytes = (uint32_t)batch_bytes(h.frames, PAGE_BYTES);
	CALL(bad_header(&p, "too many frames", h));
	h = good;
	h.bytes = 0;
	CALL(bad_header(&p, "no length", h));
	h = good;
	h.bytes += 64;
	CALL(bad_header(&p, "a length that is not that of its frames", h));
	h = good;
	h.bytes = 0xffffffc0;
	h.frames = 0xffffffff;
	CALL(bad_header(&p, "four gigabytes", h));
	h = good;
	h.page_shift = 10;
	h.bytes = (uint32_t)batch_bytes(1, 1024);
	CALL(bad_header(&p, "another page size", h));
	h = good;
	h.page_shift = 40;
	CALL(bad_header(&p, "an impossible page size", h));
	h = good;
	h.kind = 0;
	CALL(bad_header(&p, "kind 0", h));
	h = good;
	h.kind = 9;
	CALL(bad_header(&p, "kind 9", h));
	h = good;
	h.commits = 2;
	CALL(bad_header(&p, "more commits than frames", h));
	h = good;
	h.kind = BATCH_SEED;
	h.commits = 0;
	CALL(bad_header(&p, "a chunk of no seed", h));
	h = (struct batch_header){.bytes = 64, .kind = BATCH_SEED, .flags = BATCH_SEED_END,
				  .page_shift = 9, .txid = p.maker.at.txid,
				  .chain = p.maker.at.chain, .db_pages = 1, .timeline = 1};
	CALL(bad_header(&p, "the end of no seed", h));
	place_close(&p);
	return NULL;
}

/* ---- continuity ---- */

/* Our history ends after `p->maker`; `batch` comes next. Is it taken? */
static const char *comes_next(struct place *p, struct maker ours, const uint8_t *batch, bool taken,
			      const char *what)
{
	struct batch_header h;
	uint64_t before = bad(p);

	EXPECT(batch_header_get(batch, &h) == 0);
	p->maker = ours;
	fresh_link(p);
	CALL(streaming(p, VERDICT_CONTINUE));
	EXPECT(say(p, batch, h.bytes));
	if (taken) {
		UNTIL(p, published(p) == h.bytes || p->link.state == LINK_WAITING);
	} else {
		UNTIL(p, p->link.state == LINK_WAITING || published(p));
	}
	if ((published(p) == h.bytes) != taken || (bad(p) == before) != taken) {
		fprintf(stderr, "%s: %s\n", what, taken ? "refused" : "taken");
		return "continuity is not judged as it should be";
	}
	if (taken)
		EXPECT(p->link.at.txid == h.txid && p->feed.at.txid == h.txid);
	CALL(ended(p));
	return NULL;
}

static const char *test_continuity(void)
{
	static uint8_t batch[1 << 16], other[1 << 16];
	static const uint32_t three[3] = {2, 1, 3};
	struct position seen[3];
	struct maker before, ours, m, foreign;
	struct place p;

	CALL(place_open(&p, false));
	before = m = p.maker;
	make_commits(&m, batch, three, 3, false, seen); /* txids 101, 102, 103 */
	ours = before;
	CALL(comes_next(&p, ours, batch, true, "where ours ends"));
	for (int i = 0; i < 3; i++) {
		ours.at = seen[i];
		ours.chain = seen[i].chain;
		CALL(comes_next(&p, ours, batch, true, "it has our last commit"));
		ours.at.chain ^= 1;
		CALL(comes_next(&p, ours, batch, false, "it has our last commit in another history"));
		ours.at = seen[i];
		ours.at.timeline = 2;
		CALL(comes_next(&p, ours, batch, false, "another timeline"));
	}
	ours = before;
	ours.at.txid--;
	CALL(comes_next(&p, ours, batch, false, "a gap of one"));
	ours = before;
	ours.at.txid = 50;
	CALL(comes_next(&p, ours, batch, false, "a gap"));
	ours = before;
	ours.at.chain++;
	CALL(comes_next(&p, ours, batch, false, "the same txid in another history"));
	ours = m;
	make_commit(&m, other, 1);
	CALL(comes_next(&p, ours, other, true, "the next one"));
	CALL(comes_next(&p, m, other, true, "it is our last commit"));
	ours = m;
	make_commit(&m, batch, 1);
	CALL(comes_next(&p, m, other, false, "older than our last commit"));
	CALL(comes_next(&p, ours, other, true, "our last commit once more"));
	foreign = ours;
	foreign.chain ^= 5; /* the rest of a commit whose beginning we do not have */
	make_commit(&foreign, other, 1);
	CALL(comes_next(&p, ours, other, false, "the rest of a commit without its beginning"));
	place_close(&p);
	return NULL;
}

/* Parts: they go on from one another, or the commit begins anew; not in the middle of it. */
static const char *test_parts(void)
{
	struct maker start;
	struct place p;
	uint32_t first, rest;

	CALL(place_open(&p, false));
	start = p.maker;
	CALL(streaming(&p, VERDICT_CONTINUE));
	p.out_bytes += make_part(&p.maker, next(&p), 3);
	first = p.out_bytes;
	p.out_bytes += make_part(&p.maker, next(&p), 2);
	EXPECT(say(&p, p.out, p.out_bytes));
	UNTIL(&p, published(&p) == p.out_bytes);
	EXPECT(p.link.at.txid == start.at.txid && p.feed.at.txid == start.at.txid);
	EXPECT(p.feed.commit_pos == p.begin);
	/* The source breaks off and comes back: its hello stands at the last whole commit. */
	CALL(ended(&p));
	CALL(streaming(&p, VERDICT_CONTINUE));
	EXPECT(p.hello.at.txid == start.at.txid && p.hello.at.chain == start.at.chain);
	/* Not in the middle ... */
	EXPECT(say(&p, p.out + first, p.out_bytes - first));
	UNTIL(&p, p.link.state == LINK_WAITING);
	EXPECT(bad(&p) == 1 && published(&p) == p.out_bytes);
	/* ... but anew, cut otherwise. */
	CALL(streaming(&p, VERDICT_CONTINUE));
	p.maker = start;
	rest = p.out_bytes;
	p.out_bytes += make_part(&p.maker, next(&p), 1);
	p.out_bytes += make_commit(&p.maker, next(&p), 4);
	EXPECT(say(&p, p.out + rest, p.out_bytes - rest));
	UNTIL(&p, published(&p) == p.out_bytes);
	EXPECT(p.link.at.txid == start.at.txid + 1 && p.feed.at.chain == p.maker.at.chain);
	place_close(&p);
	return NULL;
}

/* ---- heartbeats ---- */

/* A heartbeat tells what the source has and how far behind we are; it never stands in the ring. */
static const char *test_heartbeat(void)
{
	struct place p;

	CALL(place_open(&p, false));
	CALL(streaming(&p, VERDICT_CONTINUE));
	for (int i = 0; i < 20; i++) {
		uint8_t beat[64];

		p.maker.at.txid += 5;
		make_heartbeat(&p.maker, beat, (uint64_t)i * 1000);
		p.maker.at.txid -= 5;
		EXPECT(say(&p, beat, 30));
		step(&p);
		EXPECT(say(&p, beat + 30, 34));
		UNTIL(&p, p.link.lag_ns == (uint64_t)i * 1000);
		EXPECT(p.link.source_txid == p.maker.at.txid + 5);
		uint32_t n = make_commit(&p.maker, next(&p), 1 + below(5));

		EXPECT(say(&p, next(&p), n));
		p.out_bytes += n;
		UNTIL(&p, published(&p) == p.out_bytes);
	}
	EXPECT(same_bytes(&p, p.out_bytes) && bad(&p) == 0);
	place_close(&p);
	return NULL;
}

/* Heartbeats between batches that pile up, as for a replica that was stopped for a while: nothing is
 * lost, nothing is misplaced, and what comes next is taken too. */
static const char *test_heartbeat_backlog(void)
{
	struct place p;

	for (uint32_t backlog = LINK_PARSE_BATCHES - 2; backlog <= 3 * LINK_PARSE_BATCHES;
	     backlog += backlog < LINK_PARSE_BATCHES + 2 ? 1 : 50) {
		uint32_t beats = 0, sent;

		CALL(place_open(&p, false));
		struct hello h = verdict(&p, VERDICT_CONTINUE);
		uint8_t *all = malloc(OUT_MAX);

		sent = 0;
		for (uint32_t i = 0; i < backlog; i++) {
			uint32_t n = make_commit(&p.maker, next(&p), 1);

			memcpy(all + sent, next(&p), n);
			sent += n;
			p.out_bytes += n;
			if (i + 1 == backlog || i % 70 == 69) {
				sent += make_heartbeat(&p.maker, all + sent, 5);
				beats++;
			}
		}
		CALL(answered(&p, &h));
		EXPECT(say(&p, all, sent));
		free(all);
		UNTIL(&p, published(&p) == p.out_bytes || p.link.state == LINK_WAITING);
		EXPECT(published(&p) == p.out_bytes);
		for (int i = 0; i < 10; i++) {
			uint32_t n = make_commit(&p.maker, next(&p), 1);

			EXPECT(say(&p, next(&p), n));
			p.out_bytes += n;
			UNTIL(&p, published(&p) == p.out_bytes || p.link.state == LINK_WAITING);
		}
		if (bad(&p) || published(&p) != p.out_bytes) {
			fprintf(stderr, "a backlog of %u batches with %u heartbeats\n", backlog, beats);
			place_close(&p);
			return "a heartbeat in a backlog shifts what comes after it: a receive is under "
			       "way while the bytes before it are moved";
		}
		EXPECT(same_bytes(&p, p.out_bytes));
		place_close(&p);
	}
	return NULL;
}

/* A heartbeat that claims to have frames is refused like anything else that must not be sent. */
static const char *test_heartbeat_frames(void)
{
	struct batch_header h = {.kind = BATCH_HEARTBEAT, .page_shift = 9, .frames = 1000,
				 .bytes = (uint32_t)batch_bytes(1000, 512), .txid = 555,
				 .timeline = 1};
	struct place p;

	CALL(place_open(&p, false));
	CALL(bad_header(&p, "a heartbeat with frames", h));
	EXPECT(p.link.source_txid != 555);
	place_close(&p);
	return NULL;
}

/* ---- seeds ---- */

/* A seed: a beginning, chunks with commits between them, an end. All of it goes into the ring. */
static const char *test_seed(void)
{
	struct place p;

	CALL(place_open(&p, true));
	p.maker.at = (struct position){3, 500, 0xabcdef};
	p.maker.chain = p.maker.at.chain;
	p.maker.db_pages = 40;
	CALL(streaming(&p, VERDICT_SEED));
	EXPECT(expected == 1 && p.feed.page_bytes == PAGE_BYTES && p.feed.db_id[0] == 7);
	p.out_bytes += make_mark(&p.maker, next(&p), BATCH_SEED_BEGIN);
	for (uint32_t i = 0; i < 4; i++) {
		p.out_bytes += make_chunk(&p.maker, next(&p), 1 + 10 * i, 10);
		if (i % 2)
			p.out_bytes += make_commit(&p.maker, next(&p), 3);
		else
			p.out_bytes += make_part(&p.maker, next(&p), 2);
	}
	EXPECT(say(&p, p.out, p.out_bytes));
	UNTIL(&p, published(&p) == p.out_bytes);
	EXPECT(p.link.seeding);
	p.out_bytes += make_mark(&p.maker, next(&p), BATCH_SEED_END);
	p.out_bytes += make_commit(&p.maker, next(&p), 3);
	EXPECT(say(&p, p.out + published(&p), p.out_bytes - published(&p)));
	UNTIL(&p, published(&p) == p.out_bytes);
	EXPECT(!p.link.seeding && same_bytes(&p, p.out_bytes) && bad(&p) == 0);
	EXPECT(p.feed.at.txid == p.maker.at.txid && p.feed.at.timeline == 3);
	EXPECT(p.feed.floor_pos > p.begin);
	place_close(&p);
	return NULL;
}

/* What makes a seed wrong, in so many ways. */
static void make_wrong(struct place *p, int how)
{
	switch (how) {
	case 0: /* without a beginning */
		p->out_bytes += make_chunk(&p->maker, next(p), 1, 5);
		break;
	case 1: /* the chunks' own chain does not begin at zero */
		p->maker.seed_chain = 5;
		p->out_bytes += make_chunk(&p->maker, next(p), 1, 5);
		break;
	case 2: /* a chunk is missing */
		make_chunk(&p->maker, next(p), 6, 5);
		p->out_bytes += make_chunk(&p->maker, next(p), 11, 5);
		break;
	case 3: /* the end is somewhere else */
		p->maker.at.txid++;
		p->out_bytes += make_mark(&p->maker, next(p), BATCH_SEED_END);
		break;
	case 4:
		p->maker.at.chain++;
		p->out_bytes += make_mark(&p->maker, next(p), BATCH_SEED_END);
		break;
	case 5: /* of an empty database */
		p->maker.db_pages = 0;
		p->out_bytes += make_mark(&p->maker, next(p), BATCH_SEED_END);
		break;
	case 8: /* the last chunk is missing */
		make_chunk(&p->maker, next(p), 6, 5);
		p->out_bytes += make_mark(&p->maker, next(p), BATCH_SEED_END);
		break;
	case 6: /* a commit is missing */
		make_commit(&p->maker, next(p), 2);
		p->out_bytes += make_commit(&p->maker, next(p), 2);
		break;
	case 7: { /* flags that nobody knows */
		struct batch_header h = {.kind = BATCH_SEED, .flags = 4, .txid = 77,
					 .chain_before = p->maker.seed_chain,
					 .chain = p->maker.seed_chain};

		make_finish(&p->maker, next(p), &h);
		p->out_bytes += h.bytes;
		break;
	}
	}
}

/* A seed that is not in order is dropped where it goes wrong. */
static const char *seed_goes_wrong(int how)
{
	uint64_t right;
	struct place p;

	CALL(place_open(&p, true));
	p.maker.at = (struct position){1, 500, 0xabcdef};
	p.maker.chain = p.maker.at.chain;
	CALL(streaming(&p, VERDICT_SEED));
	if (how)
		p.out_bytes += make_mark(&p.maker, next(&p), BATCH_SEED_BEGIN);
	if (how > 1) {
		p.out_bytes += make_chunk(&p.maker, next(&p), 1, 5);
		p.out_bytes += make_commit(&p.maker, next(&p), 2);
	}
	right = p.out_bytes;
	make_wrong(&p, how);
	EXPECT(say(&p, p.out, p.out_bytes));
	p.out_bytes = 0;
	UNTIL(&p, p.link.state == LINK_WAITING || published(&p) > right);
	if (published(&p) != right) {
		fprintf(stderr, "case %d\n", how);
		place_close(&p);
		return "a seed that is not in order was published";
	}
	EXPECT(bad(&p) == 1);
	/* The replica has nothing, says so, and is given another one. */
	EXPECT(p.applier.pos == ring_published(&p.feed.ring));
	CALL(greeted(&p));
	EXPECT(p.hello.at.timeline == 0 && p.hello.at.txid == 0);
	place_close(&p);
	return NULL;
}

static const char *test_seed_order(void)
{
	for (int how = 0; how < 7; how++)
		CALL(seed_goes_wrong(how));
	return seed_goes_wrong(8);
}

/* A kind of seed batch that is neither a mark nor has pages belongs to no protocol. */
static const char *test_seed_flags(void)
{
	return seed_goes_wrong(7);
}

/* Lost in the middle of a seed: nothing of it counts, and what the replica had before it still does. */
static const char *test_seed_lost(void)
{
	struct position ours;
	struct place p;

	CALL(place_open(&p, false));
	ours = p.maker.at;
	CALL(streaming(&p, VERDICT_SEED));
	p.maker.at = (struct position){1, 500, 0xabcdef};
	p.maker.chain = p.maker.at.chain;
	p.out_bytes += make_mark(&p.maker, next(&p), BATCH_SEED_BEGIN);
	p.out_bytes += make_chunk(&p.maker, next(&p), 1, 5);
	p.out_bytes += make_commit(&p.maker, next(&p), 2);
	EXPECT(say(&p, p.out, p.out_bytes));
	UNTIL(&p, published(&p) == p.out_bytes);
	p.applier.mode = APPLIER_RESEEDING;
	CALL(ended(&p));
	EXPECT(unlinked == 1 && p.applier.pos == ring_published(&p.feed.ring));
	EXPECT(p.feed.at.txid == ours.txid && p.feed.broken == 1);
	CALL(greeted(&p));
	EXPECT(p.hello.at.txid == ours.txid && p.hello.at.chain == ours.chain);
	place_close(&p);
	return NULL;
}

/* ---- answers ---- */

/* An answer with any byte changed is not taken, whatever it would have meant. */
static const char *test_answer_flipped(void)
{
	uint8_t bytes[HELLO_BYTES];
	struct place p;

	CALL(place_open(&p, false));
	struct hello h = verdict(&p, VERDICT_CONTINUE);

	hello_put(bytes, &h);
	for (uint32_t at = 0; at < HELLO_BYTES; at++) {
		fresh_link(&p);
		CALL(greeted(&p));
		bytes[at] ^= (uint8_t)(1u << below(8));
		EXPECT(say(&p, bytes, HELLO_BYTES));
		UNTIL(&p, p.link.state == LINK_REFUSED);
		EXPECT(p.link.sentence[0]);
		hello_put(bytes, &h);
	}
	place_close(&p);
	return NULL;
}

/* Verdicts: refused for good, later, and such as make no sense. */
static const char *test_verdicts(void)
{
	struct hello h;
	struct place p;

	CALL(place_open(&p, false));
	h = verdict(&p, VERDICT_REFUSED);
	strcpy(h.text, "no such thing");
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_REFUSED);
	EXPECT(strstr(p.link.sentence, "no such thing"));
	p.loop.now_ns += 1000 * LINK_RETRY_MS_MAX * MS;
	EXPECT(link_do_work(&p.link) == 0 && p.link.state == LINK_REFUSED);

	fresh_link(&p);
	h = verdict(&p, VERDICT_LATER);
	strcpy(h.text, "not yet");
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_WAITING);
	EXPECT(!strcmp(p.link.sentence, "not yet"));
	CALL(streaming(&p, VERDICT_CONTINUE)); /* it asks again */

	CALL(ended(&p));
	h = verdict(&p, VERDICT_CONTINUE);
	h.page_bytes = 4096;
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_WAITING);
	h = verdict(&p, VERDICT_LIST);
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_WAITING);
	h = verdict(&p, VERDICT_SEED);
	h.page_bytes = 0;
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_WAITING);
	EXPECT(counter_get(p.feed.counters, COUNTER_bad_messages) == 3);
	expect_err = -EEXIST;
	h = verdict(&p, VERDICT_SEED);
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_REFUSED);
	EXPECT(!strcmp(p.link.sentence, "that is not the one"));
	place_close(&p);

	CALL(place_open(&p, true)); /* there is nothing that could be continued */
	h = verdict(&p, VERDICT_CONTINUE);
	CALL(answered(&p, &h));
	UNTIL(&p, p.link.state == LINK_WAITING);
	place_close(&p);
	return NULL;
}

/* An answer that is cut short, or none at all. */
static const char *test_no_answer(void)
{
	uint8_t bytes[HELLO_BYTES];
	struct place p;

	CALL(place_open(&p, false));
	struct hello h = verdict(&p, VERDICT_CONTINUE);

	hello_put(bytes, &h);
	for (uint32_t cut = 0; cut < HELLO_BYTES; cut += 49) {
		fresh_link(&p);
		CALL(greeted(&p));
		EXPECT(cut == 0 || say(&p, bytes, cut));
		CALL(ended(&p));
	}
	fresh_link(&p);
	CALL(greeted(&p));
	EXPECT(say(&p, bytes, 100));
	UNTIL(&p, p.link.answer_bytes == 100);
	p.loop.now_ns += (LINK_ANSWER_MS + 1) * MS;
	UNTIL(&p, p.link.state == LINK_WAITING);
	EXPECT(strstr(p.link.sentence, "does not answer"));
	place_close(&p);
	return NULL;
}

/* Nobody there: it says so, and tries again, less and less often, for ever. */
static const char *test_nobody(void)
{
	struct place p;
	uint64_t before;

	CALL(place_open(&p, false));
	close(p.listen_fd);
	for (int i = 0; i < 12; i++) {
		p.loop.now_ns += p.link.retry_ms * MS;
		before = p.link.retry_ms;
		UNTIL(&p, p.link.state != LINK_WAITING);
		UNTIL(&p, p.link.state == LINK_WAITING);
		EXPECT(strstr(p.link.sentence, "cannot connect"));
		EXPECT(p.link.retry_ms >= before && p.link.retry_ms <= LINK_RETRY_MS_MAX);
		EXPECT(link_do_work(&p.link) == 0 && p.link.state == LINK_WAITING);
	}
	EXPECT(p.link.retry_ms == LINK_RETRY_MS_MAX);
	EXPECT(counter_get(p.feed.counters, COUNTER_reconnects) == 12);
	p.listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	place_close(&p);
	return NULL;
}

/* A source that says nothing for too long is given up; one that beats is not. */
static const char *test_silent(void)
{
	uint8_t beat[64];
	struct place p;

	CALL(place_open(&p, false));
	CALL(streaming(&p, VERDICT_CONTINUE));
	for (int i = 0; i < 10; i++) {
		make_heartbeat(&p.maker, beat, (uint64_t)i + 1);
		EXPECT(say(&p, beat, 64));
		UNTIL(&p, p.link.lag_ns == (uint64_t)i + 1);
		p.loop.now_ns += LINK_SILENT_MS / 2 * MS;
		step(&p);
		EXPECT(p.link.state == LINK_STREAM);
	}
	UNTIL(&p, p.link.recv.busy);
	p.loop.now_ns += (LINK_SILENT_MS + 1) * MS;
	UNTIL(&p, p.link.state == LINK_WAITING);
	EXPECT(strstr(p.link.sentence, "silent"));
	place_close(&p);
	return NULL;
}

/* ---- the ring ---- */

/* The applier is slow: what it has not read is not overwritten, the source is held back, and it all
 * arrives in the end. */
static const char *test_ring_full(void)
{
	uint64_t seen = 0;
	uint32_t sent = 0;
	struct place p;

	CALL(place_open(&p, false));
	CALL(streaming(&p, VERDICT_CONTINUE));
	while (p.out_bytes < 11u << 20)
		p.out_bytes += make_commit(&p.maker, next(&p), 1 + below(below(3) ? 3 : 1900));
	for (int quiet = 0; seen < p.out_bytes;) {
		ssize_t n = send(p.fd, p.out + sent, p.out_bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		uint64_t now;

		if (n > 0)
			sent += (uint32_t)n;
		now = published(&p);
		step(&p);
		EXPECT(p.link.state == LINK_STREAM);
		quiet = published(&p) == now ? quiet + 1 : 0;
		if (quiet < 20)
			continue;
		/* It stands still: compare what is there, and let half of it go. */
		EXPECT(published(&p) - seen <= RING_BYTES);
		EXPECT(ring_oldest(&p.feed.ring) <= p.begin + seen);
		for (uint64_t end = published(&p); seen < end;) {
			struct batch_header h;

			EXPECT(!batch_header_get(ring_at(&p.feed.ring, p.begin + seen), &h));
			EXPECT(!memcmp(ring_at(&p.feed.ring, p.begin + seen), p.out + seen, h.bytes));
			seen += h.bytes;
			if (below(2))
				break;
		}
		ring_release(&p.feed.ring, p.applier.reader, p.begin + seen);
		quiet = 10;
	}
	EXPECT(counter_get(p.feed.counters, COUNTER_ring_full) > 0);
	EXPECT(p.feed.at.txid == p.maker.at.txid && bad(&p) == 0);
	p.applier.pos = p.begin + seen;
	place_close(&p);
	return NULL;
}

/* ---- acks ---- */

static const char *ack_comes(struct place *p, struct ack *ret_a)
{
	uint8_t bytes[ACK_BYTES];

	UNTIL(p, heard(p, ACK_BYTES));
	EXPECT(read_all(p->fd, bytes, ACK_BYTES) && ack_get(bytes, ret_a) == 0);
	return NULL;
}

/* An ack goes up whenever one of its numbers has changed, and only then. */
static const char *test_acks(void)
{
	struct place p;
	struct ack a;
	uint32_t n;

	CALL(place_open(&p, false));
	p.applier.durable = 99;
	p.applier.applied_time_ns = 12345;
	CALL(streaming(&p, VERDICT_CONTINUE));
	CALL(ack_comes(&p, &a));
	EXPECT(a.received == 100 && a.applied == 100 && a.durable == 99 && a.applied_time_ns == 12345);
	n = make_commit(&p.maker, p.out, 1);
	EXPECT(say(&p, p.out, n));
	CALL(ack_comes(&p, &a));
	EXPECT(a.received == 101 && a.applied == 100);
	p.applier.applied = p.maker.at;
	CALL(ack_comes(&p, &a));
	EXPECT(a.received == 101 && a.applied == 101 && a.durable == 99);
	p.applier.durable = 101;
	CALL(ack_comes(&p, &a));
	EXPECT(a.durable == 101);
	for (int i = 0; i < 20; i++)
		step(&p);
	EXPECT(!heard(&p, 1));
	p.applier.mode = APPLIER_RESEEDING; /* then it has no whole state to speak of */
	CALL(ack_comes(&p, &a));
	EXPECT(a.received == 101 && a.applied == STATUS_UNKNOWN && a.durable == STATUS_UNKNOWN);
	place_close(&p);
	return NULL;
}

/* Stopped in any state, with operations under way or not. */
static const char *test_stop(void)
{
	struct place p;

	CALL(place_open(&p, false));
	place_close(&p);
	CALL(place_open(&p, false));
	step(&p);
	place_close(&p);
	CALL(place_open(&p, false));
	CALL(greeted(&p));
	place_close(&p);
	CALL(place_open(&p, false));
	CALL(streaming(&p, VERDICT_CONTINUE));
	step(&p);
	place_close(&p);
	return NULL;
}

int main(void)
{
	run("link_hello", test_hello);
	run("link_stream", test_stream);
	run("link_flipped", test_flipped);
	run("link_truncated", test_truncated);
	run("link_garbage", test_garbage);
	run("link_headers", test_headers);
	run("link_continuity", test_continuity);
	run("link_parts", test_parts);
	run("link_heartbeat", test_heartbeat);
	run("link_heartbeat_backlog", test_heartbeat_backlog);
	run("link_heartbeat_frames", test_heartbeat_frames);
	run("link_seed", test_seed);
	run("link_seed_order", test_seed_order);
	run("link_seed_flags", test_seed_flags);
	run("link_seed_lost", test_seed_lost);
	run("link_answer_flipped", test_answer_flipped);
	run("link_verdicts", test_verdicts);
	run("link_no_answer", test_no_answer);
	run("link_nobody", test_nobody);
	run("link_silent", test_silent);
	run("link_ring_full", test_ring_full);
	run("link_acks", test_acks);
	run("link_stop", test_stop);
	return failed;
}
