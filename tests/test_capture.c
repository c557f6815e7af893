/* test_capture - from an application's WAL into the ring, one step at a time.
 *
 * The application is the sqlite3 program; what it wrote is compared with what the ring tells of it:
 * a copy of the database, kept up by the ring's batches alone, and the WAL itself. */
#include "tests/testing.h"

#include "daemon/capture/capture.h"

#define RING_BYTES (4u << 20)

/* A peer made of a copy: it takes the ring's batches in order and checks that each goes on where the
 * last one ended, as a link does. */
struct peer {
	struct image image;
	struct position at;
	uint64_t chain; /* parts included */
	uint64_t pos;
	uint64_t batches, parts, together; /* of these parts, and with several commits */
	const char *wrong;
};

struct place {
	struct cli app;
	struct loop loop;
	struct feed feed;
	struct capture capture;
	bool attached;
	struct peer peer;
	bool lazy; /* the peer takes its batches only when the capture waits for it */
	int reader;
};

static char why[512];

static const char *attach(struct place *p)
{
	if (capture_open(&p->capture, &p->feed, &p->loop, in_scratch("record"), CONN_BUSY_MS, why,
			 sizeof(why))) {
		fprintf(stderr, "%s\n", why);
		return "capture_open";
	}
	p->attached = true;
	return NULL;
}

static void detach(struct place *p)
{
	if (p->attached)
		capture_close(&p->capture);
	p->attached = false;
}

/* The same again as another run of the daemon would see it: its ring is new. */
static const char *reattach(struct place *p)
{
	detach(p);
	feed_close(&p->feed);
	p->reader = -1;
	loop_close(&p->loop);
	EXPECT(loop_open(&p->loop) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", in_scratch("app.db"), RING_BYTES, -1) == 0);
	return attach(p);
}

static const char *place_open(struct place *p, const char *pragma)
{
	memset(p, 0, sizeof(*p));
	p->reader = -1;
	cli_open(&p->app, in_scratch("app.db"));
	cli_ask(&p->app,
		"%s; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v, w);"
		"CREATE INDEX i ON t(v); INSERT INTO t VALUES(1, 1, 'first');",
		pragma);
	EXPECT(loop_open(&p->loop) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", in_scratch("app.db"), RING_BYTES, -1) == 0);
	return attach(p);
}

static void place_close(struct place *p)
{
	detach(p);
	feed_close(&p->feed);
	loop_close(&p->loop);
	cli_close(&p->app);
	image_free(&p->peer.image);
}

static uint32_t frames_of(const struct place *p)
{
	struct wal_index_header h = {0};

	wal_index_read(p->capture.conn.index, &h);
	return h.mx_frame;
}

/* The peer takes over the database as it is now; everything is backfilled, the capture at rest. */
static const char *peer_begin(struct place *p)
{
	image_free(&p->peer.image);
	EXPECT(cli_ask(&p->app, "PRAGMA wal_checkpoint(PASSIVE);")[0] == '0');
	EXPECT(wal_index_backfill(p->capture.conn.index) == frames_of(p));
	EXPECT(image_load(&p->peer.image, in_scratch("app.db"), p->capture.page_bytes));
	p->peer.at = p->feed.at;
	p->peer.chain = p->feed.at.chain;
	p->peer.pos = ring_published(&p->feed.ring);
	p->peer.wrong = NULL;
	if (p->reader >= 0)
		ring_detach(&p->feed.ring, p->reader);
	p->reader = ring_attach(&p->feed.ring, p->peer.pos);
	EXPECT(p->reader >= 0);
	return NULL;
}

static const char *peer_batch(struct peer *peer, const uint8_t *batch, const struct batch_header *h,
			      const uint64_t *hashes)
{
	static uint64_t ours[BATCH_BYTES_MAX / PAGE_BYTES_MIN];

	EXPECT(h->kind == BATCH_COMMIT && h->frames > 0);
	EXPECT(batch_check(batch, h, ours) == 0);
	EXPECT(!memcmp(hashes, ours, h->frames * sizeof(*ours)));
	EXPECT(1u << h->page_shift == peer->image.page_bytes);
	EXPECT(h->timeline == peer->at.timeline);
	EXPECT(h->chain_before == peer->chain && h->txid - h->commits == peer->at.txid);
	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, peer->image.page_bytes);

		image_put(&peer->image, frame_pgno(frame), frame + FRAME_HEADER_BYTES);
		if (frame_db_pages(frame))
			image_cut(&peer->image, frame_db_pages(frame));
	}
	peer->chain = h->chain;
	if (h->commits)
		peer->at = (struct position){h->timeline, h->txid, h->chain};
	peer->batches++;
	peer->parts += h->commits == 0;
	peer->together += h->commits > 1;
	return NULL;
}

/* What is in the ring since the last time; space is given back. */
static void peer_follow(struct place *p)
{
	struct peer *peer = &p->peer;
	struct batch_header h;

	while (!peer->wrong && peer->pos < ring_published(&p->feed.ring)) {
		const uint8_t *batch = ring_at(&p->feed.ring, peer->pos);

		peer->wrong = batch_header_get(batch, &h) ? "header" : peer_batch(peer, batch, &h, feed_hashes(&p->feed, peer->pos));
		peer->pos += h.bytes;
	}
	if (p->reader >= 0)
		ring_release(&p->feed.ring, p->reader, peer->pos);
}

/* Step until there is nothing more to do. Bounded: something that never ends is wrong. */
static bool pump(struct place *p)
{
	for (int i = 0; i < 100000; i++) {
		unsigned int work;

		p->loop.now_ns += 1000;
		work = capture_do_work(&p->capture);
		loop_reap(&p->loop);
		if (p->capture.read.busy)
			loop_wait(&p->loop, LIMIT_MS * 1000000ull);
		if (p->peer.image.bytes && (!p->lazy || p->feed.blocked_ns || !work))
			peer_follow(p);
		if (!work && !p->capture.read.busy && !p->feed.blocked_ns)
			return true;
	}
	return false;
}

/* The peer's copy is the database: let the WAL be backfilled and compare with the file. */
static const char *peer_agrees(struct place *p)
{
	EXPECT(pump(p));
	CALL(p->peer.wrong);
	EXPECT(!p->capture.failed);
	EXPECT(p->peer.at.txid == p->feed.at.txid && p->peer.at.chain == p->feed.at.chain);
	EXPECT(p->peer.image.pages == p->feed.db_pages);
	/* A WAL in the gate cannot be backfilled, and then it is. */
	cli_ask(&p->app, "PRAGMA wal_checkpoint(PASSIVE);");
	EXPECT(wal_index_backfill(p->capture.conn.index) == frames_of(p));
	EXPECT(image_is_file(&p->peer.image, in_scratch("app.db")));
	return NULL;
}

/* A peer at `from` finds its place and is led to the end of the ring, nothing missing or twice. */
static const char *walk(const struct place *p, struct position from)
{
	struct peer peer = {.at = from, .chain = from.chain};
	const char *wrong = NULL;
	struct batch_header h;

	peer.image.page_bytes = p->feed.page_bytes;
	EXPECT(feed_find(&p->feed, from, &peer.pos) == 0);
	while (!wrong && peer.pos < ring_published(&p->feed.ring)) {
		const uint8_t *batch = ring_at(&p->feed.ring, peer.pos);

		EXPECT(batch_header_get(batch, &h) == 0);
		if (h.chain_before != peer.chain && h.txid - h.commits < from.txid) {
			/* The first may begin earlier, if our position is in it. */
			EXPECT(h.txid > from.txid && peer.batches == 0);
			peer.chain = h.chain_before;
			peer.at.txid = h.txid - h.commits;
		}
		wrong = peer_batch(&peer, batch, &h, feed_hashes(&p->feed, peer.pos));
		if (wrong)
			fprintf(stderr, "at txid %llu comes a batch that begins at %llu\n",
				(unsigned long long)peer.at.txid,
				(unsigned long long)(h.txid - h.commits));
		peer.pos += h.bytes;
	}
	image_free(&peer.image);
	CALL(wrong);
	EXPECT(peer.at.txid == p->feed.at.txid && peer.at.chain == p->feed.at.chain);
	return NULL;
}

/* Commits are captured each for itself, in order, with the pages they have. */
static const char *commits(const char *pragma)
{
	struct place p;

	CALL(place_open(&p, pragma));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int i = 0; i < 40; i++) {
		uint64_t txid = p.feed.at.txid;

		cli_ask(&p.app,
			"INSERT INTO t(v, w) VALUES(%u, printf('%%0*d', %u, %d)); "
			"UPDATE t SET v = v + 1 WHERE id <= %u;",
			below(1000), 1 + below(30000), i, 1 + below(9));
		EXPECT(pump(&p));
		EXPECT(p.feed.at.txid == txid + 2);
		EXPECT(p.feed.commit_pos == ring_published(&p.feed.ring));
	}
	CALL(peer_agrees(&p));
	EXPECT(counter_get(p.feed.counters, COUNTER_commits) == 80);
	place_close(&p);
	return NULL;
}

static const char *test_commits(void)
{
	static const char *const pragma[] = {"PRAGMA page_size=512", "PRAGMA page_size=4096",
					     "PRAGMA page_size=65536"};

	for (int i = 0; i < 3; i++) {
		CALL(commits(pragma[i]));
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* Commits that pile up travel together, yet each is counted and its state can be told. */
static const char *test_several(void)
{
	struct place p;
	uint64_t txid;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	for (int i = 0; i < 25; i++)
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, 'x');", i);
	CALL(peer_agrees(&p));
	EXPECT(p.feed.at.txid == txid + 25);
	EXPECT(p.peer.batches == 1 && p.peer.together == 1);
	place_close(&p);
	return NULL;
}

/* Commits that end in the middle of a batch's limit: cut at commits, the rest comes with the next. */
static const char *test_cut(void)
{
	struct place p;
	uint64_t txid;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	for (int i = 0; i < 12; i++)
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(%u));", i,
			100000 + below(700000));
	CALL(peer_agrees(&p));
	EXPECT(p.feed.at.txid == txid + 12);
	place_close(&p);
	return NULL;
}

/* Families around the size of a batch: one that fits, fills and exceeds it. */
static const char *test_batch_sizes(void)
{
	uint32_t most = batch_frames_max(4096);
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	cli_ask(&p.app, "CREATE TABLE b(x); INSERT INTO b VALUES(zeroblob(3000000));");
	for (int d = -6; d <= 6; d++) {
		uint64_t txid, parts = p.peer.parts;
		uint32_t before;

		EXPECT(pump(&p));
		CALL(peer_begin(&p));
		txid = p.feed.at.txid;
		before = frames_of(&p);
		/* Overflow pages are rewritten; together with a few others. */
		cli_ask(&p.app, "UPDATE b SET x = zeroblob(%u); DELETE FROM b; VACUUM; INSERT INTO b "
				"VALUES(zeroblob(3000000));",
			(most + (uint32_t)d) * 4092);
		EXPECT(pump(&p));
		EXPECT(frames_of(&p) != before);
		CALL(peer_agrees(&p));
		EXPECT(p.feed.at.txid == txid + 4);
		EXPECT(p.peer.parts > parts); /* 3 MB do not fit */
	}
	place_close(&p);
	return NULL;
}

/* A transaction larger than a batch comes in parts, and the last one makes it a commit; one larger
 * than the ring passes while the reader gives space back. */
static const char *test_large(void)
{
	struct place p;
	uint64_t txid;

	CALL(place_open(&p, "PRAGMA page_size=4096; PRAGMA cache_size=10"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	p.lazy = true;
	for (int i = 0; i < 3; i++)
		cli_ask(&p.app,
			"BEGIN; WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<2000) "
			"INSERT INTO t(v, w) SELECT random(), printf('%%05000d', i) FROM n; COMMIT;");
	CALL(peer_agrees(&p));
	EXPECT(p.feed.at.txid == txid + 3 && p.peer.parts > 20);
	EXPECT(counter_get(p.feed.counters, COUNTER_ring_full) > 0);
	place_close(&p);
	return NULL;
}

/* A reader that gives nothing back stops the capture, and nothing is lost when it does again. */
static const char *test_ring_full(void)
{
	struct place p;
	uint64_t published;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int i = 0; i < 20; i++)
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(500000));", i);
	for (int i = 0; i < 200; i++) {
		p.loop.now_ns += 1000;
		capture_do_work(&p.capture);
		loop_reap(&p.loop);
		if (p.capture.read.busy)
			loop_wait(&p.loop, LIMIT_MS * 1000000ull);
	}
	published = ring_published(&p.feed.ring);
	EXPECT(published - p.peer.pos <= RING_BYTES && published - p.peer.pos > RING_BYTES / 2);
	EXPECT(p.feed.blocked_ns && counter_get(p.feed.counters, COUNTER_ring_full) == 1);
	EXPECT(p.capture.pin.state == PIN_PINNED);
	EXPECT(ring_oldest(&p.feed.ring) <= p.peer.pos);
	CALL(peer_agrees(&p));
	EXPECT(p.feed.blocked_ns == 0);
	place_close(&p);
	return NULL;
}

/* What was spilled and rolled back is never seen; what overwrote it is. */
static const char *test_rollback(void)
{
	struct place p;
	uint64_t txid;

	CALL(place_open(&p, "PRAGMA page_size=1024; PRAGMA cache_size=5; PRAGMA cache_spill=1"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	for (int i = 0; i < 10; i++) {
		struct wal_file before, after;

		EXPECT(wal_file_load(&before, in_scratch("app.db")));
		cli_ask(&p.app,
			"BEGIN; WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<300) "
			"INSERT INTO t(v, w) SELECT random(), printf('%%0900d', i + %d) FROM n;",
			i);
		EXPECT(wal_file_load(&after, in_scratch("app.db")));
		EXPECT(after.total > before.total || i); /* it was spilled */
		wal_file_free(&before);
		wal_file_free(&after);
		EXPECT(pump(&p));
		EXPECT(p.feed.at.txid == txid && p.feed.commit_pos == ring_published(&p.feed.ring));
		cli_ask(&p.app, "ROLLBACK;");
		EXPECT(pump(&p));
		EXPECT(p.feed.at.txid == txid);
		cli_ask(&p.app, "UPDATE t SET v = v + 1; INSERT INTO t(v, w) VALUES(%d, 'kept');", i);
		EXPECT(pump(&p));
		txid += 2;
		EXPECT(p.feed.at.txid == txid);
	}
	CALL(peer_agrees(&p));
	place_close(&p);
	return NULL;
}

/* Savepoints, with spilled frames behind them: some versions leave frames without salts and
 * checksums in the WAL then, and they are committed all the same. */
static const char *test_savepoint(void)
{
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=1024; PRAGMA cache_size=5"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int i = 0; i < 10; i++) {
		cli_ask(&p.app,
			"BEGIN; WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<100) "
			"INSERT INTO t(v, w) SELECT random(), printf('%%0900d', i) FROM n; "
			"SAVEPOINT s; UPDATE t SET w = printf('%%0800d', id), v = v + 1; %s "
			"INSERT INTO t(v, w) VALUES(%d, 'after'); UPDATE t SET v = v + 1 WHERE id < 20; "
			"COMMIT;",
			i % 2 ? "ROLLBACK TO s;" : "RELEASE s;", i);
		EXPECT(pump(&p));
	}
	CALL(peer_agrees(&p));
	place_close(&p);
	return NULL;
}

/* VACUUM is a commit like any other, of a smaller database. */
static const char *test_vacuum(void)
{
	struct place p;
	uint32_t pages;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	cli_ask(&p.app, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<1000) "
			"INSERT INTO t(v, w) SELECT random(), printf('%%05000d', i) FROM n;");
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	pages = p.feed.db_pages;
	cli_ask(&p.app, "DELETE FROM t WHERE id %% 7; VACUUM;");
	CALL(peer_agrees(&p));
	EXPECT(p.feed.db_pages < pages / 2);
	place_close(&p);
	return NULL;
}

/* With the application's own checkpoints the WAL begins anew again and again, stays small, and no
 * commit is missed. */
static const char *test_restarts(void)
{
	struct place p;
	struct stat st;
	uint64_t txid;

	CALL(place_open(&p, "PRAGMA page_size=1024; PRAGMA cache_size=50"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	cli_ask(&p.app, "PRAGMA wal_autocheckpoint=20;");
	for (int i = 0; i < 300; i++) {
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, printf('%%0*d', %u, %d));", i,
			1 + below(5000), i);
		if (below(4))
			EXPECT(pump(&p));
	}
	cli_ask(&p.app, "PRAGMA wal_autocheckpoint=0;");
	CALL(peer_agrees(&p));
	EXPECT(p.feed.at.txid == txid + 300);
	EXPECT(counter_get(p.feed.counters, COUNTER_wal_restarts) > 10);
	EXPECT(counter_get(p.feed.counters, COUNTER_gates) > 10);
	EXPECT(p.feed.broken == 1); /* only its beginning */
	EXPECT(stat(in_scratch("app.db-wal"), &st) == 0 && st.st_size < 300 * 1024);
	place_close(&p);
	return NULL;
}

/* TRUNCATE, RESTART and a limit on the WAL's size, between any two commits. */
static const char *test_truncate(void)
{
	static const char *const between[] = {"PRAGMA wal_checkpoint(TRUNCATE);",
					      "PRAGMA wal_checkpoint(RESTART);",
					      "PRAGMA wal_checkpoint(FULL);",
					      "PRAGMA wal_checkpoint(PASSIVE);", ""};
	struct place p;
	uint64_t txid, commits = 0;

	CALL(place_open(&p, "PRAGMA page_size=1024"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	txid = p.feed.at.txid;
	cli_ask(&p.app, "PRAGMA journal_size_limit=3000;");
	for (int i = 0; i < 200; i++) {
		if (below(2)) {
			cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(%u));", i,
				below(20000));
			commits++;
		}
		cli_ask(&p.app, "%s", between[below(5)]);
		if (below(3))
			EXPECT(pump(&p));
	}
	CALL(peer_agrees(&p));
	EXPECT(p.feed.at.txid == txid + commits);
	EXPECT(counter_get(p.feed.counters, COUNTER_wal_restarts) > 5);
	EXPECT(p.feed.broken == 1);
	place_close(&p);
	return NULL;
}

/* Random work of an application with two connections, which come, go and are killed. */
static const char *test_random(void)
{
	struct cli app[2];
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=1024"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int i = 0; i < 2; i++)
		cli_open(&app[i], in_scratch("app.db"));
	for (int i = 0; i < 300; i++) {
		struct cli *c = &app[below(2)];

		switch (below(12)) {
		case 0:
			cli_end(c, below(2));
			cli_open(c, in_scratch("app.db"));
			cli_ask(c, "PRAGMA wal_autocheckpoint=%u; PRAGMA cache_size=%u;", below(50),
				5 + below(50));
			break;
		case 1:
			cli_ask(c, "BEGIN; SELECT count(*) FROM t;");
			break;
		case 2:
			cli_ask(c, "ROLLBACK;");
			break;
		case 3:
			cli_ask(c, "PRAGMA wal_checkpoint(%s);", below(2) ? "TRUNCATE" : "FULL");
			break;
		case 4:
			cli_ask(c, "DELETE FROM t WHERE id %% 5 = %u;", below(5));
			break;
		case 5:
			cli_ask(c, "BEGIN; UPDATE t SET w = zeroblob(%u); %s", below(1500),
				below(3) ? "COMMIT;" : "");
			break;
		default:
			cli_ask(c, "INSERT INTO t(v, w) VALUES(random(), zeroblob(%u));", below(9000));
		}
		if (below(3))
			EXPECT(pump(&p));
	}
	for (int i = 0; i < 2; i++)
		cli_end(&app[i], i);
	CALL(peer_agrees(&p));
	EXPECT(p.feed.broken == 1);
	place_close(&p);
	return NULL;
}

/* The application's last connection closes and comes back: its WAL is still there, no gap. */
static const char *test_last_close(void)
{
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int i = 0; i < 5; i++) {
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, 'x');", i);
		if (i % 2)
			EXPECT(pump(&p));
		cli_close(&p.app);
		EXPECT(access(in_scratch("app.db-wal"), F_OK) == 0);
		cli_open(&p.app, in_scratch("app.db"));
	}
	CALL(peer_agrees(&p));
	EXPECT(p.feed.broken == 1);
	place_close(&p);
	return NULL;
}

/* --durable: the WAL is synced before anything is published; else nothing changes. */
static const char *test_durable(void)
{
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	p.capture.durable = true;
	CALL(peer_begin(&p));
	for (int i = 0; i < 10; i++) {
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(100000));", i);
		EXPECT(pump(&p));
	}
	CALL(peer_agrees(&p));
	place_close(&p);
	return NULL;
}

/* A header torn by a dying writer: after a while SQLite rebuilds it, and history goes on. */
static const char *test_torn(void)
{
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(1, 'x');");
	EXPECT(pump(&p));
	cli_close(&p.app);
	atomic_fetch_add(wal_index_word((volatile void *)p.capture.conn.index,
					WAL_INDEX_HEADER_BYTES + 8), 1);
	EXPECT(pump(&p));
	EXPECT(counter_get(p.feed.counters, COUNTER_recoveries) == 0);
	p.loop.now_ns += CAPTURE_UNREADABLE_NS;
	EXPECT(pump(&p));
	EXPECT(counter_get(p.feed.counters, COUNTER_recoveries) == 1);
	cli_open(&p.app, in_scratch("app.db"));
	cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(2, 'y');");
	CALL(peer_agrees(&p));
	EXPECT(p.feed.broken == 1);
	place_close(&p);
	return NULL;
}

/* SQLite's recovery drops commits that had been visible, if their frames' checksums are not right (some
 * versions leave such behind, see savepoints), and lets others stand in their place. Then history is broken off; it never goes
 * on as if nothing had been. */
static const char *test_recovery_drops(void)
{
	static const uint8_t zeros[16];

	for (int i = 0; i < 12; i++) {
		struct place p;
		uint32_t frame;
		long rows;
		int fd;

		CALL(place_open(&p, "PRAGMA page_size=1024; PRAGMA cache_size=5"));
		EXPECT(pump(&p));
		CALL(peer_begin(&p));
		for (int k = 0; k < 10; k++)
			cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(9000));", k);
		EXPECT(pump(&p));
		rows = cli_number(&p.app, "SELECT count(*) FROM t;");
		cli_end(&p.app, true);
		frame = frames_of(&p) - below(40);
		fd = open(in_scratch("app.db-wal"), O_WRONLY | O_CLOEXEC);
		EXPECT(pwrite(fd, zeros, 16, 32 + (off_t)(frame - 1) * (24 + 1024) + 8) == 16);
		close(fd);
		/* As a writer leaves it that dies while it publishes. */
		atomic_fetch_add(wal_index_word((volatile void *)p.capture.conn.index,
						WAL_INDEX_HEADER_BYTES + 8), 1);
		cli_open(&p.app, in_scratch("app.db"));
		EXPECT(cli_number(&p.app, "SELECT count(*) FROM t;") < rows);
		if (i % 2) /* fewer frames than before, about as many, or more */
			cli_ask(&p.app, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n "
					"WHERE i < %d) INSERT INTO t(v, w) SELECT 5, zeroblob(900) FROM n;",
				i * 20);
		if (i % 3)
			EXPECT(pump(&p));
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(2, 'then');");
		EXPECT(pump(&p));
		EXPECT(p.feed.broken > 1);
		CALL(peer_begin(&p));
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(3, 'last');");
		CALL(peer_agrees(&p));
		place_close(&p);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* ---- restarts of the capture ---- */

/* Back again with the WAL untouched or grown: the history is proved, and peers find their place. */
static const char *test_proved(void)
{
	struct position seen[64];
	struct place p;
	int n = 0;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	seen[n++] = p.feed.at;
	for (int round = 0; round < 4; round++) {
		struct position last;

		for (int i = 0; i < 5; i++) {
			cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, zeroblob(%u));", i,
				below(50000));
			EXPECT(pump(&p));
			seen[n++] = p.feed.at;
		}
		last = p.feed.at;
		detach(&p);
		if (round % 2) /* while nobody looked */
			cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(-1, 'away'); "
					"DELETE FROM t WHERE v = 3;");
		CALL(reattach(&p));
		EXPECT(!p.feed.open); /* nobody is served before the frames agree */
		EXPECT(pump(&p));
		EXPECT(p.feed.open);
		EXPECT(p.feed.at.txid == last.txid + (round % 2 ? 2 : 0));
		EXPECT(round % 2 || p.feed.at.chain == last.chain);
		for (int i = 0; i < n; i++)
			CALL(walk(&p, seen[i]));
		seen[n++] = p.feed.at;
	}
	place_close(&p);
	return NULL;
}

/* The chain after a restart goes on from the one before: a peer that stayed does not notice. */
static const char *test_goes_on(void)
{
	struct place p;
	uint64_t pos;

	CALL(place_open(&p, "PRAGMA page_size=1024; PRAGMA cache_size=10"));
	EXPECT(pump(&p));
	CALL(peer_begin(&p));
	for (int round = 0; round < 6; round++) {
		/* In every second round the WAL began anew before the restart. */
		if (round % 2) {
			cli_ask(&p.app, "PRAGMA wal_checkpoint(PASSIVE);");
			EXPECT(pump(&p) && p.capture.pin.state == PIN_GATED);
		}
		for (int i = 0; i < 5; i++)
			cli_ask(&p.app, "UPDATE t SET v = v + 1; INSERT INTO t(v, w) VALUES(1, "
					"zeroblob(%u));", below(100000));
		EXPECT(pump(&p));
		CALL(p.peer.wrong);
		detach(&p);
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(-1, 'away');");
		if (round == 3) /* part of a commit is no obstacle */
			cli_ask(&p.app, "BEGIN; INSERT INTO t(v, w) VALUES(1, zeroblob(300000));");
		struct image image = p.peer.image;

		memset(&p.peer.image, 0, sizeof(image)); /* the peer is not there for a while */
		CALL(reattach(&p));
		EXPECT(pump(&p));
		p.peer.image = image;
		EXPECT(p.feed.open);
		EXPECT(feed_find(&p.feed, p.peer.at, &pos) == 0);
		p.peer.pos = pos;
		p.reader = ring_attach(&p.feed.ring, pos);
		EXPECT(p.reader >= 0);
		if (round == 3)
			cli_ask(&p.app, "COMMIT;");
		EXPECT(pump(&p));
		CALL(p.peer.wrong);
	}
	CALL(peer_agrees(&p));
	place_close(&p);
	return NULL;
}

/* Whatever happened while nobody looked: a history that cannot be proved is broken off, at a higher
 * txid, with a chain that no peer has. */
static const char *broken_by(struct place *p, const char *what)
{
	struct position last = p->feed.at;
	uint64_t pos;

	CALL(reattach(p));
	image_free(&p->peer.image);
	EXPECT(pump(p));
	if (feed_find(&p->feed, last, &pos) != -ESTALE) {
		fprintf(stderr, "not broken after: %s\n", what);
		return "history goes on though it cannot be proved";
	}
	EXPECT(p->feed.open);
	EXPECT(p->feed.at.txid > last.txid);
	EXPECT(feed_find(&p->feed, p->feed.at, &pos) == 0);
	CALL(peer_begin(p));
	cli_ask(&p->app, "INSERT INTO t(v, w) VALUES(1, 'again');");
	CALL(peer_agrees(p));
	return NULL;
}

static const char *test_broken(void)
{
	static const char *const away[] = {
		"PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v, w) VALUES(1, 'missed');",
		"PRAGMA wal_checkpoint(PASSIVE); INSERT INTO t(v, w) VALUES(1, 'missed');",
		"PRAGMA journal_mode=DELETE; INSERT INTO t(v, w) VALUES(1, 'missed'); "
		"PRAGMA journal_mode=WAL; INSERT INTO t(v, w) VALUES(2, 'missed');",
		"PRAGMA wal_checkpoint(TRUNCATE);",
	};
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	for (size_t i = 0; i < sizeof(away) / sizeof(*away); i++) {
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(1, 'seen');");
		EXPECT(pump(&p));
		detach(&p);
		cli_ask(&p.app, "%s", away[i]);
		CALL(broken_by(&p, away[i]));
	}
	place_close(&p);
	return NULL;
}

/* The same salts and other frames, as after a power loss: one changed byte anywhere breaks it. */
static const char *test_broken_frames(void)
{
	struct place p;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	for (int i = 0; i < 6; i++) {
		struct stat st;
		uint32_t frame;
		uint8_t byte;
		off_t at;
		int fd;

		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(1, zeroblob(30000));");
		EXPECT(pump(&p));
		CALL(peer_begin(&p));
		frame = p.capture.record.base_frame + 1 +
			below(p.capture.record.frame - p.capture.record.base_frame);
		detach(&p);
		fd = open(in_scratch("app.db-wal"), O_RDWR | O_CLOEXEC);
		EXPECT(fd >= 0 && fstat(fd, &st) == 0);
		/* Its page, its number or its size. */
		at = 32 + (off_t)(frame - 1) * (24 + 4096) + (i % 3 == 0 ? 24 + below(4096) : i % 3 == 1 ? 3 : 7);
		EXPECT(pread(fd, &byte, 1, at) == 1);
		byte ^= 1;
		EXPECT(pwrite(fd, &byte, 1, at) == 1);
		struct position last = p.feed.at;
		const char *wrong = reattach(&p);
		uint64_t pos;

		if (!wrong) {
			image_free(&p.peer.image);
			/* A page number of 0 is no frame at all: that is said instead. */
			if (!pump(&p) || (!p.capture.failed && (p.feed.at.txid <= last.txid ||
								!feed_find(&p.feed, last, &pos))))
				wrong = "a changed frame was not noticed";
		}
		byte ^= 1;
		EXPECT(pwrite(fd, &byte, 1, at) == 1);
		close(fd);
		CALL(wrong);
		if (p.capture.failed)
			CALL(reattach(&p));
	}
	place_close(&p);
	return NULL;
}

/* No record, or one that is damaged in both slots: a new history. With one whole slot it is used. */
static const char *test_record(void)
{
	uint8_t byte, id[16];
	struct place p;
	struct position at;
	uint64_t pos;
	int fd;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(1, 'x');");
	EXPECT(pump(&p));
	memcpy(id, p.feed.db_id, sizeof(id));
	at = p.feed.at;
	/* The newer slot was being written when the machine stopped. */
	uint64_t torn = 64 + ((p.capture.slots.sequence) & 1) * (16 + SLOTS_RECORD_MAX);

	detach(&p);
	fd = open(in_scratch("record"), O_RDWR | O_CLOEXEC);
	EXPECT(pread(fd, &byte, 1, (off_t)torn + 20) == 1);
	byte ^= 4;
	EXPECT(pwrite(fd, &byte, 1, (off_t)torn + 20) == 1);
	close(fd);
	CALL(reattach(&p));
	EXPECT(pump(&p));
	EXPECT(memcmp(id, p.feed.db_id, sizeof(id)) == 0);
	EXPECT(feed_find(&p.feed, at, &pos) == 0);
	detach(&p);
	EXPECT(unlink(in_scratch("record")) == 0);
	CALL(reattach(&p));
	EXPECT(pump(&p));
	EXPECT(memcmp(id, p.feed.db_id, sizeof(id)) != 0);
	EXPECT(p.feed.at.txid == 0 && p.feed.broken == 1);
	detach(&p);
	EXPECT(shell("echo rubbish > '%s'", in_scratch("record")) == 0);
	EXPECT(capture_open(&p.capture, &p.feed, &p.loop, in_scratch("record"), CONN_BUSY_MS, why,
			 sizeof(why)) ==
	       CONN_FAILED);
	place_close(&p);
	return NULL;
}

/* Detached and attached again by the same daemon: the ring still has what came before, and whoever
 * finds his place in it must be able to go on from there to its end. */
static const char *test_same_feed(void)
{
	struct position seen[16];
	struct place p;
	int n = 0;

	CALL(place_open(&p, "PRAGMA page_size=4096"));
	EXPECT(pump(&p));
	seen[n++] = p.feed.at;
	for (int i = 0; i < 5; i++) {
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(%d, 'x');", i);
		EXPECT(pump(&p));
		seen[n++] = p.feed.at;
	}
	detach(&p);
	CALL(attach(&p));
	EXPECT(pump(&p));
	cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(9, 'x');");
	EXPECT(pump(&p));
	seen[n++] = p.feed.at;
	for (int i = 0; i < n; i++) {
		if (walk(&p, seen[i])) {
			place_close(&p);
			return "after a second attach the ring has commits twice, and a peer that goes "
			       "on in it is sent the same once more";
		}
	}
	place_close(&p);
	return NULL;
}

/* ---- what cannot be attached ---- */

static const char *refused(enum conn_problem expected, const char *sentence)
{
	struct capture c;
	struct loop loop;
	struct feed feed;
	enum conn_problem problem;

	EXPECT(loop_open(&loop) == 0);
	EXPECT(feed_open(&feed, &loop, "x.db", in_scratch("x.db"), RING_BYTES, -1) == 0);
	why[0] = 0;
	problem = capture_open(&c, &feed, &loop, in_scratch("record"), CONN_BUSY_MS, why,
			 sizeof(why));
	if (problem == CONN_OK)
		capture_close(&c);
	feed_close(&feed);
	loop_close(&loop);
	if (problem != expected || !strstr(why, sentence)) {
		fprintf(stderr, "%d, not %d: %s\n", (int)problem, (int)expected, why);
		return "not refused as it should be";
	}
	return NULL;
}

static const char *test_refused(void)
{
	struct cli c;

	CALL(refused(CONN_MISSING, "there is no"));
	shell("touch '%s'", in_scratch("x.db"));
	CALL(refused(CONN_MISSING, "empty"));
	shell("head -c 5000 /dev/urandom > '%s'", in_scratch("x.db"));
	CALL(refused(CONN_NOT_DB, "not a SQLite database"));
	shell("rm '%s'; mkdir '%s'", in_scratch("x.db"), in_scratch("x.db"));
	CALL(refused(CONN_NOT_DB, ""));
	shell("rmdir '%s'", in_scratch("x.db"));
	cli_open(&c, in_scratch("x.db"));
	cli_ask(&c, "CREATE TABLE t(a);");
	CALL(refused(CONN_NOT_WAL, "PRAGMA journal_mode=WAL"));
	cli_ask(&c, "PRAGMA journal_mode=WAL; INSERT INTO t VALUES(1); PRAGMA "
		    "locking_mode=EXCLUSIVE; INSERT INTO t VALUES(1);");
	CALL(refused(CONN_EXCLUSIVE, "locking_mode=NORMAL"));
	cli_ask(&c, "PRAGMA locking_mode=NORMAL; SELECT * FROM t;");
	CALL(refused(CONN_OK, ""));
	cli_close(&c);
	return NULL;
}

/* A database whose page size cannot be told from the WAL, since there is no frame yet. */
static const char *test_no_frames(void)
{
	static const uint32_t size[] = {512, 4096, 65536};

	for (int i = 0; i < 3; i++) {
		struct place p;
		char pragma[64];

		snprintf(pragma, sizeof(pragma), "PRAGMA page_size=%u", size[i]);
		CALL(place_open(&p, pragma));
		detach(&p);
		cli_close(&p.app); /* the WAL is gone with the last connection */
		EXPECT(access(in_scratch("app.db-wal"), F_OK) < 0);
		CALL(reattach(&p));
		EXPECT(pump(&p));
		EXPECT(p.feed.page_bytes == size[i] && p.feed.db_pages == 3);
		cli_open(&p.app, in_scratch("app.db"));
		CALL(peer_begin(&p));
		cli_ask(&p.app, "INSERT INTO t(v, w) VALUES(1, 'x');");
		CALL(peer_agrees(&p));
		place_close(&p);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

int main(void)
{
	run("capture_commits", test_commits);
	run("capture_several", test_several);
	run("capture_cut", test_cut);
	run("capture_batch_sizes", test_batch_sizes);
	run("capture_large", test_large);
	run("capture_ring_full", test_ring_full);
	run("capture_rollback", test_rollback);
	run("capture_savepoint", test_savepoint);
	run("capture_vacuum", test_vacuum);
	run("capture_restarts", test_restarts);
	run("capture_truncate", test_truncate);
	run("capture_random", test_random);
	run("capture_last_close", test_last_close);
	run("capture_durable", test_durable);
	run("capture_torn", test_torn);
	run("capture_recovery_drops", test_recovery_drops);
	run("capture_proved", test_proved);
	run("capture_goes_on", test_goes_on);
	run("capture_broken", test_broken);
	run("capture_broken_frames", test_broken_frames);
	run("capture_record", test_record);
	run("capture_same_feed", test_same_feed);
	run("capture_refused", test_refused);
	run("capture_no_frames", test_no_frames);
	return failed;
}
