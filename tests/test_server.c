/* test_server - what a peer may ask, what it is answered and sent, and when it is cut loose.
 *
 * The replica is the test, over loopback; it can say anything. What is served is made up, except
 * for seeds, which are read from a database. The clock is the test's: nothing here waits for time to
 * pass. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "tests/testing.h"

#include "daemon/ship/server.h"
#include "tests/batches.h"

#define MS	   1000000ull
#define RING_BYTES (32u << 20) /* many times SEND_BYTES_MAX: what is sent is released whole */
#define PAGE_BYTES 512u
#define TXID	   100

struct peer {
	int fd;
	uint8_t *in; /* all that came */
	size_t bytes, room, taken;
};

struct place {
	struct loop loop;
	struct worker worker;
	int wake_fd;
	struct feed feed, other;
	struct feed *feeds[2];
	struct counters stray;
	struct server server;
	struct sockaddr_in at;
	struct maker maker;
	struct position first;
	struct peer peer;
};

static struct place place;

/* At a port that is free; if somebody takes it meanwhile, at another. */
static bool serve(struct place *p)
{
	for (int i = 0; i < 20; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		socklen_t bytes = sizeof(p->at);
		char where[64], why[512];

		p->at = (struct sockaddr_in){.sin_family = AF_INET,
					     .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		if (bind(fd, (struct sockaddr *)&p->at, bytes) ||
		    getsockname(fd, (struct sockaddr *)&p->at, &bytes))
			abort();
		close(fd);
		snprintf(where, sizeof(where), "127.0.0.1:%u", ntohs(p->at.sin_port));
		if (server_open(&p->server, &p->loop, &p->worker, p->feeds, 2, where, &p->stray, why,
				sizeof(why)) == 0)
			return true;
		fprintf(stderr, "%s\n", why);
	}
	return false;
}

static const char *place_open(struct place *p)
{

	memset(p, 0, sizeof(*p));
	p->peer.fd = -1;
	EXPECT(loop_open(&p->loop) == 0);
	p->loop.now_ns = 1000 * MS;
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	EXPECT(worker_open(&p->worker, p->wake_fd) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", in_scratch("app.db"), RING_BYTES, -1) == 0);
	EXPECT(feed_open(&p->other, &p->loop, "new.db", "/nowhere", RING_BYTES, -1) == 0);
	p->feeds[0] = &p->feed;
	p->feeds[1] = &p->other;
	memset(p->feed.db_id, 7, DB_ID_BYTES);
	feed_set_page_bytes(&p->feed, PAGE_BYTES);
	p->feed.open = p->feed.own_clock = true;
	p->maker = (struct maker){.page_bytes = PAGE_BYTES, .db_pages = 10, .time_ns = 900 * MS};
	p->maker.at = p->first = (struct position){2, TXID, rnd()};
	p->maker.chain = p->first.chain;
	feed_break(&p->feed, p->first, 10);
	EXPECT(serve(p));
	return NULL;
}

static void hang_up(struct place *p)
{
	if (p->peer.fd >= 0)
		close(p->peer.fd);
	free(p->peer.in);
	memset(&p->peer, 0, sizeof(p->peer));
	p->peer.fd = -1;
}

static void place_close(struct place *p)
{
	hang_up(p);
	while (!server_stop(&p->server)) {
		loop_wait(&p->loop, MS);
		worker_collect(&p->worker);
	}
	worker_close(&p->worker);
	server_close(&p->server);
	feed_close(&p->feed);
	feed_close(&p->other);
	loop_close(&p->loop);
	close(p->wake_fd);
}

static void step(struct place *p)
{
	unsigned int work = server_do_work(&p->server) + worker_collect(&p->worker);

	if (!work && !loop_reap(&p->loop))
		loop_wait(&p->loop, MS);
}

/* Take in what has come. False: the connection has ended. */
static bool listen_to(struct peer *x)
{
	for (;;) {
		ssize_t n;

		if (x->bytes == x->room)
			x->in = realloc(x->in, x->room = 2 * x->room + (1 << 16));
		n = recv(x->fd, x->in + x->bytes, x->room - x->bytes, MSG_DONTWAIT);
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		x->bytes += (size_t)n;
	}
}

/* Step until `condition`, which may do something, as long as it may take. */
#define UNTIL(p, condition)                                                     \
	do {                                                                    \
		int left_ = LIMIT_MS;                                           \
		while (!(condition))                                            \
			if (left_-- > 0)                                        \
				step(p);                                        \
			else                                                    \
				return "line " STRING(__LINE__) ": never " #condition; \
	} while (0)

static bool there(struct place *p, size_t bytes)
{
	listen_to(&p->peer);
	return p->peer.bytes - p->peer.taken >= bytes;
}

static const char *say(struct place *p, const void *bytes, size_t n)
{
	if (p->peer.fd < 0) {
		/* Let the one before be gone, so that this is the first again. */
		UNTIL(p, p->server.sender[0].state == SENDER_FREE);
		p->peer.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		EXPECT(connect(p->peer.fd, (struct sockaddr *)&p->at, sizeof(p->at)) == 0);
	}
	EXPECT(send(p->peer.fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n);
	return NULL;
}

/* The hello of a replica that stands at `at`. */
static struct hello greeting(struct position at)
{
	struct hello h = {.version = WIRE_VERSION, .what = HELLO_FOLLOW, .page_bytes = PAGE_BYTES,
			  .at = at, .text = "app.db"};

	memset(h.db_id, 7, DB_ID_BYTES);
	return h;
}

/* Connect anew, say `h`; the answer. */
static const char *ask(struct place *p, const struct hello *h, struct hello *ret_answer)
{
	uint8_t bytes[HELLO_BYTES];

	hang_up(p);
	hello_put(bytes, h);
	CALL(say(p, bytes, sizeof(bytes)));
	UNTIL(p, there(p, HELLO_BYTES));
	EXPECT(hello_get(p->peer.in, ret_answer) == 0);
	p->peer.taken = HELLO_BYTES;
	return NULL;
}

static const char *verdict(struct place *p, const struct hello *h, enum verdict wanted)
{
	struct hello answer;

	CALL(ask(p, h, &answer));
	if (answer.what != wanted) {
		fprintf(stderr, "verdict %u, not %u: %s\n", answer.what, wanted, answer.text);
		return "another verdict";
	}
	EXPECT(wanted == VERDICT_CONTINUE || wanted == VERDICT_SEED || answer.text[0]);
	/* All but these two end it. */
	if (wanted != VERDICT_CONTINUE && wanted != VERDICT_SEED)
		UNTIL(p, !listen_to(&p->peer));
	return NULL;
}

static const char *follow(struct place *p)
{
	struct hello h = greeting(p->maker.at);

	CALL(verdict(p, &h, VERDICT_CONTINUE));
	UNTIL(p, p->server.sender[0].state == SENDER_STREAMING);
	return NULL;
}

/* Publish a batch; false: the ring is full. */
static bool publish(struct place *p, uint32_t frames, bool part)
{
	struct batch_header h;
	uint64_t pos = ring_published(&p->feed.ring);
	uint8_t *to = ring_at(&p->feed.ring, pos);

	if (ring_claim(&p->feed.ring, batch_bytes(frames, PAGE_BYTES)) < batch_bytes(frames, PAGE_BYTES))
		return false;
	if (part)
		make_part(&p->maker, to, frames);
	else
		make_commit(&p->maker, to, frames);
	if (batch_header_get(to, &h) || batch_check(to, &h, feed_hashes(&p->feed, pos)))
		abort();
	feed_publish(&p->feed, &h);
	p->feed.visible_pos = ring_published(&p->feed.ring);
	return true;
}

static uint64_t count(struct place *p, enum counter_id id)
{
	return counter_get(p->feed.counters, id);
}

/* The next batch that is no heartbeat; NULL: not there yet. */
static const uint8_t *next_batch(struct place *p, struct batch_header *ret_h)
{
	struct peer *x = &p->peer;

	while (there(p, BATCH_HEADER_BYTES)) {
		const uint8_t *at = x->in + x->taken;

		if (batch_header_get(at, ret_h))
			abort();
		if (!there(p, ret_h->bytes))
			return NULL;
		at = x->in + x->taken;
		x->taken += ret_h->bytes;
		if (ret_h->kind != BATCH_HEARTBEAT)
			return at;
	}
	return NULL;
}

/* ---- the first message ---- */

/* A list names every database and ends. */
static const char *test_list(void)
{
	struct place *p = &place;
	struct hello h = {.version = WIRE_VERSION, .what = HELLO_LIST}, answer;

	CALL(place_open(p));
	CALL(ask(p, &h, &answer));
	EXPECT(answer.what == VERDICT_LIST && answer.names == 2);
	UNTIL(p, there(p, 2 * WIRE_NAME_BYTES));
	EXPECT(!strcmp((char *)p->peer.in + HELLO_BYTES, "app.db"));
	EXPECT(!strcmp((char *)p->peer.in + HELLO_BYTES + WIRE_NAME_BYTES, "new.db"));
	UNTIL(p, !listen_to(&p->peer));
	EXPECT(p->peer.bytes == HELLO_BYTES + 2 * WIRE_NAME_BYTES);
	place_close(p);
	return NULL;
}

/* Whom we serve, and how; who has to wait; whom we refuse. */
static const char *test_verdicts(void)
{
	struct place *p = &place;
	struct hello h, ok;

	CALL(place_open(p));
	EXPECT(publish(p, 2, false) && publish(p, 1, false));
	ok = greeting(p->first);
	CALL(verdict(p, &ok, VERDICT_CONTINUE));
	h = greeting(p->maker.at);
	CALL(verdict(p, &h, VERDICT_CONTINUE));
	h = ok;
	h.at.chain++; /* another history */
	CALL(verdict(p, &h, VERDICT_SEED));
	h = ok;
	memset(h.db_id, 0, DB_ID_BYTES); /* nothing yet */
	h.page_bytes = 0;
	CALL(verdict(p, &h, VERDICT_SEED));
	h = ok;
	h.at.timeline--;
	CALL(verdict(p, &h, VERDICT_SEED));

	h = ok;
	strcpy(h.text, "no.db");
	CALL(verdict(p, &h, VERDICT_REFUSED));
	strcpy(h.text, "../app.db");
	CALL(verdict(p, &h, VERDICT_REFUSED));
	h = ok;
	h.what = 9;
	CALL(verdict(p, &h, VERDICT_REFUSED));
	h = ok;
	h.db_id[15]++;
	CALL(verdict(p, &h, VERDICT_REFUSED));
	h = ok;
	h.page_bytes *= 2;
	CALL(verdict(p, &h, VERDICT_REFUSED));
	h = ok;
	h.at.timeline++;
	CALL(verdict(p, &h, VERDICT_REFUSED));

	h = ok;
	strcpy(h.text, "new.db");
	CALL(verdict(p, &h, VERDICT_LATER));
	/* Ahead of a replica: it waits. Ahead of the primary, that has lost commits: it is copied anew. */
	h = greeting(p->maker.at);
	h.at.txid += 10;
	p->feed.own_clock = false;
	CALL(verdict(p, &h, VERDICT_LATER));
	p->feed.own_clock = true;
	CALL(verdict(p, &h, VERDICT_SEED));
	place_close(p);
	return NULL;
}

/* Strangers are dropped with their first wrong byte, the slow when their time is over. */
static const char *test_strangers(void)
{
	struct place *p = &place;
	struct hello h, answer;
	uint8_t bytes[HELLO_BYTES];
	uint64_t bad = 0;

	CALL(place_open(p));
	h = greeting(p->first);
	for (uint32_t i = 0; i < HELLO_BYTES; i++) {
		hello_put(bytes, &h);
		bytes[i] ^= (uint8_t)(1 + below(255));
		hang_up(p);
		CALL(say(p, bytes, i < 8 ? i + 1 : HELLO_BYTES));
		UNTIL(p, !listen_to(&p->peer));
		/* Of another version we say so. */
		EXPECT(p->peer.bytes == (i == 8 || i == 9 ? HELLO_BYTES : 0));
		EXPECT(counter_get(&p->stray, COUNTER_bad_messages) == ++bad);
	}
	h.version++;
	CALL(ask(p, &h, &answer));
	EXPECT(answer.what == VERDICT_REFUSED && strstr(answer.text, "version"));
	h.version--;
	hello_put(bytes, &h);
	for (uint32_t cut = 0; cut < HELLO_BYTES; cut += 1 + below(20)) {
		hang_up(p);
		CALL(say(p, bytes, cut));
		UNTIL(p, p->server.sender[0].state == SENDER_HELLO &&
				 p->server.sender[0].in_bytes == cut);
		p->loop.now_ns += HELLO_MS * MS;
		for (int i = 0; i < 10; i++)
			step(p);
		EXPECT(listen_to(&p->peer));
		p->loop.now_ns++;
		UNTIL(p, !listen_to(&p->peer));
		UNTIL(p, p->server.sender[0].state == SENDER_FREE);
	}
	place_close(p);
	return NULL;
}

/* ---- streams ---- */

/* What the ring gets, the peer gets, byte for byte; what it was given is free again. */
static const char *test_stream(void)
{
	struct place *p = &place;
	struct batch_header h;
	const uint8_t *at;
	uint64_t begin, pos;

	CALL(place_open(p));
	CALL(follow(p));
	begin = pos = ring_published(&p->feed.ring);
	while (pos < begin + 2 * RING_BYTES) {
		/* Large ones go out without a copy where that is possible. */
		for (uint32_t n = 1 + below(6); n; n--)
			EXPECT(publish(p, 1 + below(below(2) ? 300 : 3), below(4) == 0));
		while (pos < ring_published(&p->feed.ring)) {
			UNTIL(p, (at = next_batch(p, &h)));
			EXPECT(!memcmp(at, ring_at(&p->feed.ring, pos), h.bytes));
			pos += h.bytes;
		}
		UNTIL(p, ring_slowest(&p->feed.ring) == pos);
	}
	EXPECT(count(p, COUNTER_sends) > 0 && count(p, COUNTER_readers_cut) == 0);
	place_close(p);
	return NULL;
}

/* Positions that flow back are shown, and what was never sent cannot have arrived. */
static const char *test_acks(void)
{
	static struct db_status d;
	struct place *p = &place;
	struct ack ack = {0};
	uint8_t bytes[ACK_BYTES];
	struct batch_header h;
	uint64_t bad;

	CALL(place_open(p));
	CALL(follow(p));
	EXPECT(publish(p, 3, false) && publish(p, 1, false));
	UNTIL(p, next_batch(p, &h) && h.txid == TXID + 2);
	server_status(&p->server, &p->feed, &d);
	EXPECT(d.peers == 1 && d.peer[0].sent == TXID + 2 && d.peer[0].applied == STATUS_UNKNOWN &&
	       d.peer[0].lag_ns == STATUS_UNKNOWN && d.peer[0].delay_ns == STATUS_UNKNOWN);
	for (uint32_t i = 1; i <= 2; i++) {
		ack = (struct ack){TXID + 2, TXID + i, TXID + i - 1, p->loop.now_ns};
		p->loop.now_ns += 5000;
		ack_put(bytes, &ack);
		/* In two pieces. */
		CALL(say(p, bytes, 10));
		UNTIL(p, p->server.sender[0].in_bytes == 10);
		CALL(say(p, bytes + 10, sizeof(bytes) - 10));
		UNTIL(p, p->server.sender[0].in_bytes == 0);
	}
	memset(&d, 0, sizeof(d));
	server_status(&p->server, &p->feed, &d);
	EXPECT(d.peer[0].received == TXID + 2 && d.peer[0].applied == TXID + 2 &&
	       d.peer[0].durable == TXID + 1 && d.peer[0].lag_commits == 0 && d.peer[0].lag_ns == 0);
	EXPECT(d.peer[0].delay_ns >= 5000 && d.peer[0].delay_ns < 5010);
	for (uint32_t i = 0; i <= ACK_BYTES; i++) {
		CALL(follow(p));
		bad = count(p, COUNTER_bad_messages);
		ack.received = TXID + 2 + (i == ACK_BYTES);
		ack_put(bytes, &ack);
		if (i < ACK_BYTES)
			bytes[i] ^= (uint8_t)(1u << below(8));
		CALL(say(p, bytes, sizeof(bytes)));
		UNTIL(p, !listen_to(&p->peer));
		EXPECT(count(p, COUNTER_bad_messages) == bad + 1);
		UNTIL(p, p->server.sender[0].state == SENDER_FREE);
	}
	place_close(p);
	return NULL;
}

/* Heartbeats tell of life and of the lag; a history that is broken off ends the connection. */
static const char *test_heartbeat(void)
{
	struct place *p = &place;
	struct batch_header h;

	CALL(place_open(p));
	CALL(follow(p));
	for (int i = 1; i <= 3; i++) {
		p->loop.now_ns += HEARTBEAT_MS * MS;
		UNTIL(p, there(p, BATCH_HEADER_BYTES));
		EXPECT(batch_header_get(p->peer.in + p->peer.taken, &h) == 0);
		EXPECT(h.kind == BATCH_HEARTBEAT && h.txid == TXID && h.chain == BATCH_LAG_UNKNOWN);
		p->peer.taken += h.bytes;
		for (int k = 0; k < 5; k++)
			step(p);
		EXPECT(!there(p, 1));
	}
	feed_break(&p->feed, p->maker.at, 10);
	UNTIL(p, !listen_to(&p->peer));
	place_close(p);
	return NULL;
}

/* ---- cut loose ---- */

/* Let the ring fill up behind a peer that does not read; the producer waits. */
static const char *fill_up(struct place *p)
{
	int small = 65536;

	CALL(follow(p));
	setsockopt(p->peer.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	setsockopt(p->server.sender[0].fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	for (int i = 0; i < 10000 && publish(p, 100, false); i++)
		for (int k = 0; k < 4; k++)
			server_do_work(&p->server) ? loop_reap(&p->loop) : 0;
	for (int i = 0; i < 50; i++)
		step(p);
	while (publish(p, 100, false))
		;
	p->feed.blocked_ns = p->loop.now_ns;
	p->feed.waiting_bytes = 0;
	return NULL;
}

static bool cut(struct place *p)
{
	for (int i = 0; i < 20; i++)
		step(p);
	return count(p, COUNTER_readers_cut) > 0;
}

/* Let the peer read until `bytes` more have gone out, while the producer takes the place. */
static void move(struct place *p, size_t bytes)
{
	uint64_t until = ring_slowest(&p->feed.ring) + bytes;
	static uint8_t some[65536];

	for (int i = 0; i < LIMIT_MS && !count(p, COUNTER_readers_cut); i++) {
		if (ring_slowest(&p->feed.ring) < until)
			while (recv(p->peer.fd, some, sizeof(some), MSG_DONTWAIT) > 0)
				;
		else if (!publish(p, 100, false))
			break;
		publish(p, 100, false);
		step(p);
	}
}

/* One that stands still is waited for as long as nobody needs the room, and then READER_STALL_MS. */
static const char *test_stalled(void)
{
	struct place *p = &place;

	CALL(place_open(p));
	CALL(fill_up(p));
	p->feed.blocked_ns = 0;
	p->loop.now_ns += 100 * READER_WINDOW_MS * MS;
	EXPECT(!cut(p));
	p->feed.blocked_ns = p->loop.now_ns;
	EXPECT(!cut(p));
	p->loop.now_ns += READER_STALL_MS * MS;
	EXPECT(!cut(p));
	p->loop.now_ns++;
	EXPECT(cut(p) && ring_slowest(&p->feed.ring) == ring_published(&p->feed.ring));
	place_close(p);
	return NULL;
}

/* One that moves, but less than half a ring in READER_WINDOW_MS, is cut then; one that moves more is
 * not. */
static const char *test_crawling(void)
{
	struct place *p = &place;

	CALL(place_open(p));
	for (int fast = 1; fast >= 0; fast--) {
		uint64_t began;

		CALL(fill_up(p));
		EXPECT(!cut(p)); /* a window begins */
		began = p->loop.now_ns;
		for (int i = 0; i < 12 && !cut(p); i++) {
			p->loop.now_ns += READER_STALL_MS * MS / 2;
			move(p, fast ? RING_BYTES / 12 : RING_BYTES / 32);
		}
		EXPECT((count(p, COUNTER_readers_cut) > 0) == !fast);
		if (!fast)
			EXPECT(p->loop.now_ns - began > READER_WINDOW_MS * MS &&
			       p->loop.now_ns - began <= (READER_WINDOW_MS + READER_STALL_MS) * MS);
		p->feed.blocked_ns = 0;
		hang_up(p);
		UNTIL(p, p->server.sender[0].state == SENDER_FREE);
	}
	place_close(p);
	return NULL;
}

/* One that is fast, but slower than the application: it is waited for while what waits in the WAL
 * becomes less, and READER_LOSING_MS when it does not. */
static const char *test_losing(void)
{
	struct place *p = &place;
	uint64_t waiting = 100 * RING_BYTES, began;

	CALL(place_open(p));
	CALL(fill_up(p));
	for (int i = 0; i < 24; i++, waiting -= RING_BYTES / 4) {
		p->feed.waiting_bytes = waiting;
		EXPECT(!cut(p));
		p->loop.now_ns += READER_STALL_MS * MS / 2;
		move(p, RING_BYTES / 12);
	}
	p->feed.waiting_bytes = READER_LOSING_RINGS * RING_BYTES; /* so much is nobody's harm, */
	for (int i = 0; i < 24; i++) {
		EXPECT(!cut(p));
		p->loop.now_ns += READER_STALL_MS * MS / 2;
		move(p, RING_BYTES / 12);
	}
	p->feed.waiting_bytes = waiting = READER_LOSING_RINGS * RING_BYTES - 1;
	EXPECT(!cut(p));
	began = p->loop.now_ns;
	for (int i = 0; i < 100 && !cut(p); i++) {
		p->feed.waiting_bytes = waiting += RING_BYTES / 8; /* and more and more is. */
		p->loop.now_ns += READER_STALL_MS * MS / 2;
		move(p, RING_BYTES / 12);
	}
	EXPECT(count(p, COUNTER_readers_cut) == 1);
	EXPECT(p->loop.now_ns - began > READER_LOSING_MS * MS &&
	       p->loop.now_ns - began <= (READER_LOSING_MS + READER_STALL_MS) * MS);
	place_close(p);
	return NULL;
}

/* Cut again and again, a replica is copied anew less and less often. */
static const char *test_cut_again(void)
{
	struct place *p = &place;
	struct hello none = greeting((struct position){0, 0, 0});
	uint64_t pause = 0;

	CALL(place_open(p));
	memset(none.db_id, 0, DB_ID_BYTES);
	for (int i = 0; i < 8; i++) {
		CALL(fill_up(p));
		EXPECT(!cut(p));
		p->loop.now_ns += READER_STALL_MS * MS + 1;
		EXPECT(cut(p) && p->feed.seed_pause_ns == pause);
		if (pause) {
			CALL(verdict(p, &none, VERDICT_LATER));
			p->loop.now_ns += pause - 1;
			CALL(verdict(p, &none, VERDICT_LATER));
			p->loop.now_ns++;
		}
		CALL(verdict(p, &none, VERDICT_SEED));
		pause = pause ? 2 * pause : SEED_PAUSE_MS_MIN * MS;
		if (pause > SEED_PAUSE_MS_MAX * MS)
			pause = SEED_PAUSE_MS_MAX * MS;
		if (i == 6) {
			p->loop.now_ns += CUT_FORGET_MS * MS;
			pause = 0;
		}
		counter_set(p->feed.counters, COUNTER_readers_cut, 0);
		p->feed.blocked_ns = 0;
	}
	place_close(p);
	return NULL;
}

/* ---- seeds ---- */

/* A replica that has nothing gets a mark, the pages, with the commits between them, and a mark. */
static const char *test_seed(void)
{
	struct place *p = &place;
	struct batch_header h;
	struct hello hello;
	struct image copy = {.page_bytes = PAGE_BYTES};
	struct cli app;
	uint64_t chain = 0;
	const uint8_t *at;
	bool ended = false;
	uint32_t commits = 0;

	CALL(place_open(p));
	cli_open(&app, in_scratch("app.db"));
	cli_ask(&app, "PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t "
		      "VALUES(hex(randomblob(2000000)));");
	cli_ask(&app, "PRAGMA wal_checkpoint(PASSIVE);");
	hello = greeting((struct position){0, 0, 0});
	memset(hello.db_id, 0, DB_ID_BYTES);
	CALL(verdict(p, &hello, VERDICT_SEED));
	UNTIL(p, (at = next_batch(p, &h)));
	EXPECT(h.kind == BATCH_SEED && h.flags == BATCH_SEED_BEGIN && h.txid == TXID &&
	       h.chain == p->first.chain);
	while (!ended) {
		if (commits < 5 && publish(p, 1, false))
			commits++; /* of another database, in truth: only the order counts here */
		p->feed.passes++;
		UNTIL(p, (p->feed.passes++, (at = next_batch(p, &h))));
		EXPECT(batch_check(at, &h, NULL) == 0);
		if (h.kind == BATCH_COMMIT)
			continue;
		EXPECT(h.flags == BATCH_SEED_END || (h.flags == 0 && h.chain_before == chain));
		for (uint32_t i = 0; i < h.frames; i++) {
			const uint8_t *frame = batch_frame(at, i, PAGE_BYTES);

			image_put(&copy, frame_pgno(frame), frame + FRAME_HEADER_BYTES);
		}
		ended = h.flags == BATCH_SEED_END;
		if (!ended)
			chain = h.chain;
	}
	EXPECT(h.chain_before == chain && h.txid == TXID + commits && h.chain == p->maker.at.chain);
	EXPECT(image_is_file(&copy, in_scratch("app.db")));
	EXPECT(count(p, COUNTER_seeds) == 1);
	UNTIL(p, !p->server.seed[0].used);
	EXPECT(publish(p, 1, false));
	UNTIL(p, next_batch(p, &h) && h.kind == BATCH_COMMIT);
	image_free(&copy);
	cli_close(&app);
	place_close(p);
	return NULL;
}

int main(void)
{
	run("server_list", test_list);
	run("server_verdicts", test_verdicts);
	run("server_strangers", test_strangers);
	run("server_stream", test_stream);
	run("server_acks", test_acks);
	run("server_heartbeat", test_heartbeat);
	run("server_stalled", test_stalled);
	run("server_crawling", test_crawling);
	run("server_losing", test_losing);
	run("server_cut_again", test_cut_again);
	run("server_seed", test_seed);
	return failed;
}
