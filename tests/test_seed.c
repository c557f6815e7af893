/* test_seed - a full copy, read while the application goes on writing.
 *
 * The test is the sender: it keeps the rule D1 of seed.h. The copy that follows from it is compared,
 * byte for byte, with the database. */
#include <poll.h>
#include <sys/eventfd.h>

#include "tests/testing.h"

#include "daemon/ship/seed.h"

struct place {
	struct cli app;
	int wake_fd;
	struct worker worker;
	struct feed feed;
	struct seed seed;
	struct image copy;
	uint8_t salt[8]; /* the life of the WAL that was looked at last, */
	uint32_t frames; /* and its frames that were */
	uint64_t chain;
	uint32_t chunks, next_pgno, commits;
};

static const char *place_open(struct place *p, uint32_t page_bytes)
{
	memset(p, 0, sizeof(*p));
	cli_open(&p->app, in_scratch("app.db"));
	cli_ask(&p->app,
		"PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v, "
		"w); CREATE INDEX i ON t(v);", page_bytes);
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	EXPECT(worker_open(&p->worker, p->wake_fd) == 0);
	EXPECT(seed_init(&p->seed, &p->worker) == 0);
	strcpy(p->feed.path, in_scratch("app.db"));
	p->feed.page_bytes = p->copy.page_bytes = page_bytes;
	return NULL;
}

static void place_close(struct place *p)
{
	worker_close(&p->worker);
	seed_exit(&p->seed);
	close(p->wake_fd);
	cli_close(&p->app);
	image_free(&p->copy);
}

static bool wait_for_job(struct place *p)
{
	while (p->seed.job.out) {
		struct pollfd f = {.fd = p->wake_fd, .events = POLLIN};
		uint64_t n;

		if (poll(&f, 1, LIMIT_MS) <= 0)
			return false;
		if (read(p->wake_fd, &n, sizeof(n)) == sizeof(n))
			worker_collect(&p->worker);
	}
	return true;
}

/* Send the commits that have come since the last look. No writer is at work now. */
static const char *send_commits(struct place *p)
{
	struct wal_file w;

	EXPECT(wal_file_load(&w, in_scratch("app.db")));
	if (w.total >= 32 && memcmp(p->salt, w.bytes + 16, 8)) {
		memcpy(p->salt, w.bytes + 16, 8);
		p->frames = 0;
	}
	for (; p->frames < w.frames; p->frames++) {
		uint32_t f = p->frames + 1;

		image_put(&p->copy, wal_file_pgno(&w, f), wal_file_frame(&w, f) + 24);
		if (wal_file_size(&w, f)) {
			image_cut(&p->copy, wal_file_size(&w, f));
			p->commits++;
		}
	}
	wal_file_free(&w);
	return NULL;
}

/* A chunk has been read: it is sound, goes on where the last one ended, and is sent. */
static const char *send_chunk(struct place *p)
{
	const uint8_t *batch = seed_chunk(&p->seed);
	struct batch_header h;

	EXPECT(p->seed.err == 0);
	EXPECT(batch_header_get(batch, &h) == 0 && batch_check(batch, &h, NULL) == 0);
	EXPECT(!memcmp(&h, &p->seed.h, sizeof(h)));
	EXPECT(h.kind == BATCH_SEED && h.flags == 0 && h.commits == 0);
	EXPECT(1u << h.page_shift == p->feed.page_bytes);
	EXPECT(h.chain_before == p->chain);
	p->chain = h.chain;
	p->chunks++;
	for (uint32_t i = 0; i < h.frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, p->feed.page_bytes);

		EXPECT(frame_pgno(frame) == p->next_pgno + i && frame_db_pages(frame) == 0);
		image_put(&p->copy, frame_pgno(frame), frame + 24);
	}
	p->next_pgno += h.frames;
	return NULL;
}

static const char *copy_is_the_database(struct place *p)
{
	const char *said;
	long frames, backfilled;

	cli_ask(&p->app, "INSERT INTO t(v, w) VALUES(1, 'D2: a commit after the newest chunk');");
	CALL(send_commits(p));
	said = cli_ask(&p->app, "PRAGMA wal_checkpoint(PASSIVE);");
	EXPECT(sscanf(said, "0|%ld|%ld", &frames, &backfilled) == 2 && frames == backfilled);
	EXPECT(image_is_file(&p->copy, in_scratch("app.db")));
	return NULL;
}

static void begin(struct place *p)
{
	seed_begin(&p->seed, &p->feed);
	p->chain = 0;
	p->next_pgno = 1;
	p->chunks = 0;
}

static const char *end(struct place *p)
{
	seed_end(&p->seed);
	EXPECT(wait_for_job(p));
	EXPECT(!p->seed.used);
	return NULL;
}

/* One statement of the application, one commit at most. */
static void act(struct place *p)
{
	switch (below(14)) {
	case 0:
		cli_ask(&p->app, "PRAGMA wal_checkpoint(PASSIVE);");
		break;
	case 1:
		cli_ask(&p->app, "PRAGMA wal_checkpoint(%s);", below(2) ? "TRUNCATE" : "RESTART");
		break;
	case 2:
		cli_ask(&p->app, "DELETE FROM t WHERE id %% 17 = %u;", below(17));
		break;
	case 3:
		if (below(4) == 0)
			cli_ask(&p->app, "VACUUM;");
		break;
	case 4:
	case 5:
		cli_ask(&p->app, "UPDATE t SET v = random() WHERE id %% 29 = %u;", below(29));
		break;
	case 6:
		cli_ask(&p->app, "UPDATE t SET w = zeroblob(%u) WHERE id %% 50 = %u;", below(3000),
			below(50));
		break;
	default:
		cli_ask(&p->app, "INSERT INTO t(v, w) VALUES(random(), printf('%%0*d', %u, %u));",
			1 + below(8000), below(1000));
	}
}

static const char *fill(struct place *p, uint32_t rows, uint32_t bytes)
{
	cli_ask(&p->app,
		"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<%u) "
		"INSERT INTO t(v, w) SELECT random(), printf('%%0*d', %u, i) FROM n;",
		rows, bytes);
	return NULL;
}

/* The application works between chunks only: each of its commits is looked at before the next. */
static const char *between_chunks(uint32_t page_bytes, uint32_t rows)
{
	struct place p;

	CALL(place_open(&p, page_bytes));
	CALL(fill(&p, rows, 1500));
	CALL(send_commits(&p));
	image_free(&p.copy);
	p.copy.page_bytes = page_bytes;
	begin(&p);
	do {
		seed_ask(&p.seed);
		EXPECT(wait_for_job(&p));
		CALL(send_chunk(&p));
		for (uint32_t n = below(10); n--;) {
			act(&p);
			CALL(send_commits(&p));
		}
	} while (!p.seed.last);
	EXPECT(p.chunks > 1);
	CALL(copy_is_the_database(&p));
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

static const char *test_between(void)
{
	static const uint32_t size[] = {512, 4096, 65536};

	for (int i = 0; i < 3; i++) {
		CALL(between_chunks(size[i], 2000));
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* One commit while each chunk is read: it may be in the chunk or not, the copy is right. */
static const char *one_commit_each(uint32_t page_bytes)
{
	struct place p;

	CALL(place_open(&p, page_bytes));
	CALL(fill(&p, 4000, 1500));
	CALL(send_commits(&p));
	image_free(&p.copy);
	p.copy.page_bytes = page_bytes;
	begin(&p);
	do {
		seed_ask(&p.seed);
		if (below(3)) {
			/* All over the database, so that old and new pages meet in a chunk. */
			cli_ask(&p.app, "UPDATE t SET v = v + 1 WHERE id %% 5 = %u;", below(5));
		} else { /* backfilled, so that the commit begins the WAL anew, under the chunk */
			cli_ask(&p.app, "PRAGMA wal_checkpoint(PASSIVE);");
			cli_ask(&p.app, "UPDATE t SET v = v + 1 WHERE id %% 50 = %u;", below(50));
		}
		EXPECT(wait_for_job(&p));
		CALL(send_chunk(&p));
		CALL(send_commits(&p));
	} while (!p.seed.last);
	CALL(copy_is_the_database(&p));
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

static const char *test_during(void)
{
	for (int i = 0; i < 3; i++) {
		CALL(one_commit_each(i % 2 ? 4096 : 1024));
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* At rest: from the WAL, from the file, from both, with pages of all sizes. */
static const char *test_at_rest(void)
{
	static const uint32_t size[] = {512, 1024, 4096, 65536};

	for (int i = 0; i < 12; i++) {
		struct place p;

		CALL(place_open(&p, size[i % 4]));
		CALL(fill(&p, 500, 1500));
		if (i / 4 > 0)
			cli_ask(&p.app, "PRAGMA wal_checkpoint(%s);", i / 4 == 1 ? "TRUNCATE" : "PASSIVE");
		if (i / 4 > 1)
			cli_ask(&p.app, "UPDATE t SET v = v + 1 WHERE id %% 3 = 0;");
		begin(&p);
		do {
			seed_ask(&p.seed);
			EXPECT(wait_for_job(&p));
			CALL(send_chunk(&p));
		} while (!p.seed.last);
		CALL(end(&p));
		cli_ask(&p.app, "PRAGMA wal_checkpoint(PASSIVE);");
		EXPECT(image_is_file(&p.copy, in_scratch("app.db")));
		place_close(&p);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* A WAL with more frames than one and two regions of the index hold. */
static const char *test_regions(void)
{
	struct place p;

	CALL(place_open(&p, 512));
	CALL(fill(&p, 3000, 900));
	cli_ask(&p.app, "UPDATE t SET v = v + 1; UPDATE t SET w = printf('%%0800d', id);");
	CALL(send_commits(&p));
	EXPECT(p.frames > 4062 + 4096);
	image_free(&p.copy);
	p.copy.page_bytes = 512;
	begin(&p);
	do {
		seed_ask(&p.seed);
		EXPECT(wait_for_job(&p));
		CALL(send_chunk(&p));
	} while (!p.seed.last);
	CALL(copy_is_the_database(&p));
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

/* The database shrinks below what was read already: the seed ends, the copy has its size. */
static const char *test_shrinks(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	CALL(fill(&p, 2000, 3000));
	CALL(send_commits(&p));
	image_free(&p.copy);
	p.copy.page_bytes = 4096;
	begin(&p);
	for (int i = 0; i < 4; i++) {
		seed_ask(&p.seed);
		EXPECT(wait_for_job(&p));
		CALL(send_chunk(&p));
	}
	EXPECT(!p.seed.last);
	cli_ask(&p.app, "DELETE FROM t WHERE id > 10;");
	CALL(send_commits(&p));
	cli_ask(&p.app, "VACUUM;");
	CALL(send_commits(&p));
	seed_ask(&p.seed);
	EXPECT(wait_for_job(&p));
	EXPECT(p.seed.err == 0 && p.seed.last && p.seed.h.frames == 0);
	CALL(copy_is_the_database(&p));
	EXPECT(p.copy.pages < 50);
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

/* The page SQLite locks, at 1 GB, has no data and is left out; those around it are there. */
static const char *test_lock_page(void)
{
	const uint32_t lock_pgno = 0x40000000 / 65536 + 1;
	uint32_t expected = lock_pgno - 5;
	bool past = false;
	struct place p;

	CALL(place_open(&p, 65536));
	cli_ask(&p.app, "PRAGMA wal_checkpoint(TRUNCATE);");
	cli_close(&p.app); /* no WAL, so the file's own size counts */
	EXPECT(shell("truncate -s %llu '%s'", (0x40000000ull / 65536 + 20) * 65536,
		     in_scratch("app.db")) == 0);
	seed_begin(&p.seed, &p.feed);
	p.seed.next_pgno = expected;
	do {
		seed_ask(&p.seed);
		EXPECT(wait_for_job(&p) && p.seed.err == 0);
		for (uint32_t i = 0; i < p.seed.h.frames; i++, expected++) {
			const uint8_t *frame = batch_frame(seed_chunk(&p.seed), i, 65536);

			past |= expected == lock_pgno;
			expected += expected == lock_pgno;
			EXPECT(frame_pgno(frame) == expected);
		}
	} while (!p.seed.last);
	EXPECT(past && expected == lock_pgno + 20);
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

/* No database there: an error with its sentence, and the seed can be given back and used again. */
static const char *test_gone(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	CALL(fill(&p, 10, 10));
	strcpy(p.feed.path, in_scratch("other.db"));
	begin(&p);
	seed_ask(&p.seed);
	EXPECT(wait_for_job(&p));
	EXPECT(p.seed.err < 0 && p.seed.why[0]);
	CALL(end(&p));
	strcpy(p.feed.path, in_scratch("app.db"));
	begin(&p);
	seed_ask(&p.seed);
	EXPECT(wait_for_job(&p));
	CALL(send_chunk(&p));
	EXPECT(p.seed.last);
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

/* Its read transactions are short: between chunks nothing of it is in a checkpoint's way. */
static const char *test_out_of_the_way(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	CALL(fill(&p, 1000, 3000));
	begin(&p);
	for (int i = 0; i < 3; i++) {
		seed_ask(&p.seed);
		EXPECT(wait_for_job(&p));
		CALL(send_chunk(&p));
		cli_ask(&p.app, "INSERT INTO t(v) VALUES(1);");
		EXPECT(strcmp(cli_ask(&p.app, "PRAGMA wal_checkpoint(TRUNCATE);"), "0|0|0") == 0);
	}
	EXPECT(!p.seed.last);
	CALL(end(&p));
	place_close(&p);
	return NULL;
}

int main(void)
{
	run("seed_at_rest", test_at_rest);
	run("seed_between", test_between);
	run("seed_during", test_during);
	run("seed_regions", test_regions);
	run("seed_shrinks", test_shrinks);
	run("seed_lock_page", test_lock_page);
	run("seed_gone", test_gone);
	run("seed_out_of_the_way", test_out_of_the_way);
	return failed;
}
