/* test_applier - from the ring into a replica, one step at a time, and through kills.
 *
 * The source is a database that the sqlite3 program writes and never checkpoints, so that its WAL is
 * its whole history: the batches are made of that file's frames, cut as a test likes, and the state
 * after every commit is known. */
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "tests/testing.h"

#include "daemon/apply/applier.h"

#define MS	    1000000ull
#define RING_BYTES  (4u << 20)
#define COMMITS_MAX 20000
#define FIRST_TXID  1000u /* the position of the source without its WAL */

struct commit {
	uint32_t frame; /* its last one */
	struct position at;
};

struct place {
	struct cli source, reader;
	struct wal_file wal;
	struct image base; /* the source without its WAL */
	struct commit *commit; /* [i]: after i commits of the WAL */
	uint32_t commits;
	uint32_t page_bytes;

	struct loop loop;
	struct worker worker;
	int wake_fd;
	struct feed feed;
	struct applier applier;
	bool open;
	uint32_t sent;	     /* frames of the WAL that are in the ring */
	struct position at; /* after the last commit that is, */
	uint64_t chain;	     /* parts included */
	uint64_t seed_chain;
	bool durable;
};

static char why[512];

#define DB     in_scratch("replica/app.db")
#define SOURCE in_scratch("source.db")

/* ---- the source ---- */

/* Read its WAL anew: every commit gets its position. */
static const char *source_load(struct place *p)
{
	uint64_t chain = p->commit[0].at.chain;
	uint32_t n = 0;

	wal_file_free(&p->wal);
	EXPECT(wal_file_load(&p->wal, SOURCE));
	for (uint32_t f = 1; f <= p->wal.frames; f++) {
		const uint8_t *frame = wal_file_frame(&p->wal, f);

		chain = chain_fold(chain, frame, page_hash(frame_pgno(frame), frame + 24,
							   p->page_bytes));
		if (!frame_db_pages(frame))
			continue;
		n++;
		EXPECT(n < COMMITS_MAX);
		p->commit[n] = (struct commit){f, {1, FIRST_TXID + n, chain}};
	}
	p->commits = n;
	return NULL;
}

static const char *source_open(struct place *p, uint32_t page_bytes)
{
	memset(p, 0, sizeof(*p));
	p->page_bytes = page_bytes;
	p->wake_fd = -1;
	p->commit = calloc(COMMITS_MAX, sizeof(*p->commit));
	p->commit[0].at = (struct position){1, FIRST_TXID, 0x5eed};
	cli_open(&p->source, SOURCE);
	cli_ask(&p->source,
		"PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, "
		"v, w); CREATE INDEX i ON t(v); "
		"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<100) "
		"INSERT INTO t(v, w) SELECT i, printf('%%0*d', i * 5, i) FROM n; "
		"PRAGMA wal_checkpoint(TRUNCATE);",
		page_bytes);
	EXPECT(image_load(&p->base, SOURCE, page_bytes) && p->base.pages > 2);
	EXPECT(mkdir(in_scratch("replica"), 0755) == 0 && mkdir(in_scratch("state"), 0755) == 0);
	return NULL;
}

/* The state after `n` commits, as a file would have it. */
static struct image state_after(const struct place *p, uint32_t n)
{
	struct image m = {.page_bytes = p->page_bytes};

	for (uint32_t i = 1; i <= p->base.pages; i++)
		image_put(&m, i, p->base.bytes + (size_t)(i - 1) * p->page_bytes);
	for (uint32_t f = 1; f <= p->commit[n].frame; f++) {
		image_put(&m, wal_file_pgno(&p->wal, f), wal_file_frame(&p->wal, f) + 24);
		if (wal_file_size(&p->wal, f))
			image_cut(&m, wal_file_size(&p->wal, f));
	}
	return m;
}

/* ---- the replica ---- */

static const char *replica_open(struct place *p)
{
	int err;

	EXPECT(loop_open(&p->loop) == 0);
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	EXPECT(worker_open(&p->worker, p->wake_fd) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", DB, RING_BYTES, -1) == 0);
	why[0] = 0;
	err = applier_open(&p->applier, &p->feed, &p->loop, &p->worker, in_scratch("state"), p->durable,
			   why, sizeof(why));
	if (err) {
		worker_close(&p->worker);
		close(p->wake_fd);
		feed_close(&p->feed);
		loop_close(&p->loop);
		return "applier_open";
	}
	p->open = true;
	p->at = p->applier.applied;
	p->chain = p->at.chain;
	p->sent = p->applier.known && p->at.txid >= FIRST_TXID && p->at.txid <= FIRST_TXID + p->commits ?
			  p->commit[p->at.txid - FIRST_TXID].frame : 0;
	return NULL;
}

static void replica_close(struct place *p)
{
	if (!p->open)
		return;
	p->open = false;
	worker_close(&p->worker);
	applier_close(&p->applier);
	close(p->wake_fd);
	feed_close(&p->feed);
	loop_close(&p->loop);
}

static const char *replica_reopen(struct place *p)
{
	const char *wrong;

	replica_close(p);
	wrong = replica_open(p);
	if (wrong)
		fprintf(stderr, "%s\n", why);
	return wrong;
}

static void place_close(struct place *p)
{
	replica_close(p);
	cli_close(&p->reader);
	cli_close(&p->source);
	wal_file_free(&p->wal);
	image_free(&p->base);
	free(p->commit);
}

/* Step until all is applied and the worker rests. */
static const char *pump(struct place *p)
{
	for (int i = 0; i < 200000; i++) {
		unsigned int work;

		p->loop.now_ns += 1000;
		work = worker_collect(&p->worker);
		work += applier_do_work(&p->applier);
		if (applier_idle(&p->applier) && !work)
			return NULL;
		if (p->applier.problem[0])
			return p->applier.problem;
		if (!work)
			usleep(100);
	}
	return "the applier never rests";
}

static uint8_t *room(struct place *p, uint32_t bytes)
{
	while (ring_claim(&p->feed.ring, bytes) < bytes) {
		p->loop.now_ns += 1000;
		worker_collect(&p->worker);
		applier_do_work(&p->applier);
	}
	return ring_at(&p->feed.ring, ring_published(&p->feed.ring));
}

static void publish(struct place *p, uint8_t *to, struct batch_header *h)
{
	uint32_t end = BATCH_HEADER_BYTES + h->frames * batch_frame_bytes(p->page_bytes);

	h->page_shift = (uint8_t)__builtin_ctz(p->page_bytes);
	h->bytes = (uint32_t)batch_bytes(h->frames, p->page_bytes);
	h->timeline = p->at.timeline;
	h->time_ns = 1 + p->at.txid;
	memset(to + end, 0, h->bytes - end);
	batch_header_put(to, h);
	if (batch_check(to, h, feed_hashes(&p->feed, ring_published(&p->feed.ring))))
		abort();
	feed_publish(&p->feed, h);
}

/* Put frames first..last of the WAL into the ring as one batch. */
static void send_frames(struct place *p, uint32_t first, uint32_t last)
{
	struct batch_header h = {.kind = BATCH_COMMIT, .frames = last - first + 1,
				 .chain_before = p->chain, .txid = p->at.txid};
	uint32_t stride = batch_frame_bytes(p->page_bytes);
	uint8_t *to = room(p, (uint32_t)batch_bytes(h.frames, p->page_bytes));

	memcpy(to + BATCH_HEADER_BYTES, wal_file_frame(&p->wal, first), (size_t)h.frames * stride);
	for (uint32_t f = first; f <= last; f++) {
		uint8_t *frame = to + BATCH_HEADER_BYTES + (f - first) * stride;

		frame_strip(frame);
		p->chain = chain_fold(p->chain, frame,
				      page_hash(frame_pgno(frame), frame + 24, p->page_bytes));
		if (frame_db_pages(frame)) {
			h.commits++;
			h.txid++;
			h.db_pages = frame_db_pages(frame);
		}
	}
	h.chain = p->chain;
	if (h.commits)
		p->at = (struct position){1, h.txid, h.chain};
	publish(p, to, &h);
	p->sent = last;
}

/* Send the next `n` commits, up to `together` in a batch, batches of `most` frames at most. */
static const char *send_commits(struct place *p, uint32_t n, uint32_t together, uint32_t most)
{
	uint32_t next = (uint32_t)(p->at.txid - FIRST_TXID) + 1, end = next + n - 1;

	EXPECT(end <= p->commits);
	if (most > batch_frames_max(p->page_bytes))
		most = batch_frames_max(p->page_bytes);
	while (next <= end) {
		uint32_t last = next, k = 1;

		while (p->commit[next].frame - p->sent > most)
			send_frames(p, p->sent + 1, p->sent + most);
		for (; k < together && last < end && p->commit[last + 1].frame - p->sent <= most; k++)
			last++;
		send_frames(p, p->sent + 1, p->commit[last].frame);
		next = last + 1;
	}
	return NULL;
}

static void send_mark(struct place *p, uint8_t flags, uint32_t db_pages)
{
	struct batch_header h = {.kind = BATCH_SEED, .flags = flags, .txid = p->at.txid,
				 .chain = p->at.chain, .chain_before = p->at.chain,
				 .db_pages = db_pages};

	if (flags & BATCH_SEED_BEGIN)
		p->seed_chain = 0;
	if (flags & BATCH_SEED_END)
		h.chain_before = p->seed_chain;
	publish(p, room(p, BATCH_HEADER_BYTES), &h);
}

static void send_chunk(struct place *p, const struct image *m, uint32_t first, uint32_t n)
{
	struct batch_header h = {.kind = BATCH_SEED, .frames = n, .chain_before = p->seed_chain};
	uint8_t *to = room(p, (uint32_t)batch_bytes(n, p->page_bytes));

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *frame = to + BATCH_HEADER_BYTES + (size_t)i * batch_frame_bytes(p->page_bytes);
		uint32_t pgno = htobe32(first + i);

		memset(frame, 0, FRAME_HEADER_BYTES);
		memcpy(frame, &pgno, 4);
		memcpy(frame + 24, m->bytes + (size_t)(first + i - 1) * p->page_bytes, p->page_bytes);
		p->seed_chain = chain_fold(p->seed_chain, frame,
					   page_hash(first + i, frame + 24, p->page_bytes));
	}
	h.chain = p->seed_chain;
	publish(p, to, &h);
}

static const char *expect_seed(struct place *p)
{
	static const uint8_t id[16] = "the source's id";

	if (applier_expect_seed(&p->applier, id, p->page_bytes, why, sizeof(why))) {
		fprintf(stderr, "%s\n", why);
		return "applier_expect_seed";
	}
	return NULL;
}

/* Begin a seed of the state after `n` commits and send its chunks, not its end. */
static const char *seed_begin(struct place *p, uint32_t n, struct image *ret_m)
{
	*ret_m = state_after(p, n);
	CALL(expect_seed(p));
	p->at = p->commit[n].at;
	p->chain = p->at.chain;
	p->sent = p->commit[n].frame;
	send_mark(p, BATCH_SEED_BEGIN, ret_m->pages);
	for (uint32_t first = 1; first <= ret_m->pages; first += 40)
		send_chunk(p, ret_m, first,
			   ret_m->pages - first + 1 < 40 ? ret_m->pages - first + 1 : 40);
	return NULL;
}

static const char *seed(struct place *p, uint32_t n)
{
	struct image m;

	CALL(seed_begin(p, n, &m));
	send_mark(p, BATCH_SEED_END, m.pages);
	image_free(&m);
	return pump(p);
}

/* The replica's file, once its WAL is backfilled, is the state after `n` commits. */
static const char *replica_is(struct place *p, uint32_t n)
{
	struct image m = state_after(p, n);
	long frames = 0, backfilled = 0;
	const char *said;
	bool same;

	if (!p->reader.in)
		cli_open(&p->reader, DB);
	EXPECT(strcmp(cli_ask(&p->reader, "PRAGMA integrity_check;"), "ok") == 0);
	said = cli_ask(&p->reader, "PRAGMA wal_checkpoint(PASSIVE);");
	if (sscanf(said, "0|%ld|%ld", &frames, &backfilled) != 2 || frames != backfilled)
		fprintf(stderr, "the checkpoint said %s\n", said);
	EXPECT(sscanf(said, "0|%ld|%ld", &frames, &backfilled) == 2 && frames == backfilled);
	same = image_is_file(&m, DB);
	image_free(&m);
	if (!same)
		fprintf(stderr, "%u commits after the beginning\n", n);
	if (!same && image_load(&m, DB, p->page_bytes)) {
		for (uint32_t k = 0; k <= p->commits; k++) {
			struct image other = state_after(p, k);

			if (image_is(&m, &other))
				fprintf(stderr, "it is the state after %u\n", k);
			image_free(&other);
		}
		image_free(&m);
	}
	EXPECT(same);
	EXPECT(!p->open || (p->applier.known && p->applier.applied.txid == FIRST_TXID + n &&
			    p->applier.applied.chain == p->commit[n].at.chain));
	return NULL;
}

/* A replica that has been seeded with the source as it is without its WAL. */
static const char *place_open(struct place *p, uint32_t page_bytes)
{
	CALL(source_open(p, page_bytes));
	CALL(source_load(p));
	CALL(replica_open(p));
	EXPECT(p->applier.mode == APPLIER_EMPTY && !p->applier.known);
	CALL(seed(p, 0));
	EXPECT(p->applier.mode == APPLIER_LIVE && p->feed.open);
	return NULL;
}

static void write_randomly(struct place *p, uint32_t n)
{
	while (n--) {
		switch (below(6)) {
		case 0:
			cli_ask(&p->source, "DELETE FROM t WHERE id %% 13 = %u;", below(13));
			break;
		case 1:
			cli_ask(&p->source, "UPDATE t SET v = v + 1 WHERE id %% 7 = %u;", below(7));
			break;
		default:
			cli_ask(&p->source, "INSERT INTO t(v, w) VALUES(random(), printf('%%0*d', %u, 5));",
				1 + below(below(4) ? 200 : 9000));
		}
	}
}

/* ---- tests ---- */

/* A first copy is seen by nobody until its end, and then it is the source's state. */
static const char *test_seed(void)
{
	struct image m;
	struct place p;

	CALL(source_open(&p, 4096));
	write_randomly(&p, 5);
	CALL(source_load(&p));
	CALL(replica_open(&p));
	CALL(seed_begin(&p, p.commits, &m));
	CALL(pump(&p));
	EXPECT(p.applier.mode == APPLIER_COPYING && !p.feed.open);
	EXPECT(access(DB, F_OK) < 0);
	send_mark(&p, BATCH_SEED_END, m.pages);
	CALL(pump(&p));
	EXPECT(p.applier.mode == APPLIER_LIVE && p.feed.open && p.feed.db_pages == m.pages);
	image_free(&m);
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* Commits between the chunks of a first copy, whole and in parts, end in its final state. */
static const char *test_seed_commits(void)
{
	struct image m;
	struct place p;
	uint32_t first = 1;

	CALL(source_open(&p, 1024));
	write_randomly(&p, 30);
	CALL(source_load(&p));
	CALL(replica_open(&p));
	CALL(expect_seed(&p));
	p.at = p.commit[0].at;
	p.chain = p.at.chain;
	send_mark(&p, BATCH_SEED_BEGIN, p.base.pages);
	for (uint32_t n = 0; n < p.commits; n++) {
		m = state_after(&p, n); /* chunks of different moments */
		if (first <= m.pages) {
			send_chunk(&p, &m, first, first + 4 <= m.pages ? 5 : m.pages - first + 1);
			first += 5;
		}
		image_free(&m);
		CALL(send_commits(&p, 1, 1, 1 + below(5)));
		if (below(2))
			CALL(pump(&p));
	}
	m = state_after(&p, p.commits);
	while (first <= m.pages) {
		send_chunk(&p, &m, first, first + 4 <= m.pages ? 5 : m.pages - first + 1);
		first += 5;
	}
	send_mark(&p, BATCH_SEED_END, m.pages);
	image_free(&m);
	CALL(pump(&p));
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

static const char *commits(uint32_t page_bytes)
{
	struct place p;

	CALL(place_open(&p, page_bytes));
	cli_open(&p.reader, DB);
	write_randomly(&p, 40);
	CALL(source_load(&p));
	for (uint32_t n = 1; n <= p.commits; n++) {
		CALL(send_commits(&p, 1, 1, 1 + below(300)));
		CALL(pump(&p));
		EXPECT(p.applier.applied.txid == FIRST_TXID + n);
		EXPECT(p.feed.visible_pos == ring_published(&p.feed.ring));
		if (n % 8 == 0)
			CALL(replica_is(&p, n));
	}
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* Commits one by one, each visible as soon as it is applied. */
static const char *test_commits(void)
{
	static const uint32_t size[] = {512, 4096, 65536};

	for (int i = 0; i < 3; i++) {
		CALL(commits(size[i]));
		shell("rm -rf '%s'/*", scratch);
	}
	return NULL;
}

/* Several in a batch, and readers that look in between: every state is one of the source's. */
static const char *test_several(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 60);
	CALL(source_load(&p));
	for (uint32_t n = 0; n < p.commits;) {
		uint32_t k = 1 + below(12);

		if (n + k > p.commits)
			k = p.commits - n;
		CALL(send_commits(&p, k, 12, 1000));
		CALL(pump(&p));
		n += k;
		CALL(replica_is(&p, n));
	}
	place_close(&p);
	return NULL;
}

/* A part alone changes nothing; the last one makes the commit. */
static const char *test_parts(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	for (int i = 0; i < 4; i++) {
		cli_ask(&p.source, "UPDATE t SET w = printf('%%0*d', %d, id), v = v + 1;", 700 + i);
		CALL(source_load(&p));
		uint32_t n = p.commits;

		while (p.sent + 5 < p.commit[n].frame) {
			send_frames(&p, p.sent + 1, p.sent + 1 + below(5));
			CALL(pump(&p));
			if (below(8) == 0)
				CALL(replica_is(&p, n - 1));
		}
		send_frames(&p, p.sent + 1, p.commit[n].frame);
		CALL(pump(&p));
		CALL(replica_is(&p, n));
	}
	place_close(&p);
	return NULL;
}

/* A commit larger than the ring. */
static const char *test_large(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	cli_ask(&p.source,
		"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<2500) "
		"INSERT INTO t(v, w) SELECT random(), printf('%%05000d', i) FROM n;");
	write_randomly(&p, 3);
	CALL(source_load(&p));
	EXPECT((uint64_t)p.commit[1].frame * 4096 > 2 * RING_BYTES);
	CALL(send_commits(&p, p.commits, 1, 5000));
	CALL(pump(&p));
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* A database that shrinks. */
static const char *test_vacuum(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(1, zeroblob(2000000)); DELETE FROM t WHERE v = 1; "
			   "VACUUM; INSERT INTO t(v, w) VALUES(2, 'then');");
	CALL(source_load(&p));
	for (uint32_t n = 1; n <= p.commits; n++) {
		CALL(send_commits(&p, 1, 1, 100));
		CALL(pump(&p));
		CALL(replica_is(&p, n));
	}
	EXPECT(p.feed.db_pages < 50);
	place_close(&p);
	return NULL;
}

/* After a broken link: the commit begins anew, cut otherwise, or a batch brings known commits once
 * more before the new ones. */
static const char *test_again(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 60);
	CALL(source_load(&p));
	for (uint32_t n = 0; n + 4 <= p.commits;) {
		uint32_t back = below(4) < n ? below(4) : 0, frames;

		/* Parts of the next one, ... */
		if (back > n)
			back = n;
		frames = p.commit[n + 1].frame - p.commit[n].frame;
		if (frames > 1) {
			send_frames(&p, p.sent + 1, p.sent + 1 + below(frames - 1));
			if (below(2))
				CALL(pump(&p));
			if (below(2))
				applier_unlink(&p.applier);
		}
		/* ... then it comes again, with what was before it. */
		p.at = p.commit[n - back].at;
		p.chain = p.at.chain;
		p.sent = p.commit[n - back].frame;
		if (p.commit[n + 2].frame - p.sent < 900)
			CALL(send_commits(&p, back + 2, 10, 1000));
		else
			CALL(send_commits(&p, back + 2, 1, 1000));
		n += 2;
		if (below(2)) {
			CALL(pump(&p));
			CALL(replica_is(&p, n));
		}
	}
	place_close(&p);
	return NULL;
}

/* Closed and opened again, at any commit, with and without a reader: it knows where it stands. */
static const char *test_reopen(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 40);
	CALL(source_load(&p));
	for (uint32_t n = 0; n + 3 <= p.commits; n += 3) {
		CALL(send_commits(&p, 3, 1 + below(3), 1000));
		CALL(pump(&p));
		bool part = below(2) && p.commit[n + 3].frame < p.wal.frames;

		if (part) {
			send_frames(&p, p.sent + 1, p.sent + 1);
			CALL(pump(&p));
		}
		if (below(2)) {
			CALL(replica_is(&p, n + 3));
			if (!part && below(2)) /* its WAL is removed, if we are not there */
				replica_close(&p);
			cli_close(&p.reader);
		}
		CALL(replica_reopen(&p));
		EXPECT(p.applier.mode == APPLIER_LIVE && p.applier.known && p.feed.open);
		EXPECT(p.applier.applied.txid == FIRST_TXID + n + 3);
		EXPECT(p.applier.applied.chain == p.commit[n + 3].at.chain);
		EXPECT(p.feed.at.txid == FIRST_TXID + n + 3);
	}
	place_close(&p);
	return NULL;
}

/* Somebody writes to the replica while we are away: that is noticed, and nothing is done to it. */
static const char *test_written_to(void)
{
	struct place p;

	for (int close_last = 0; close_last < 2; close_last++) {
		CALL(place_open(&p, 4096));
		write_randomly(&p, 5);
		CALL(source_load(&p));
		CALL(send_commits(&p, 2, 1, 1000));
		CALL(pump(&p));
		replica_close(&p);
		cli_open(&p.reader, DB);
		EXPECT(!*cli_ask(&p.reader, "INSERT INTO t(v, w) VALUES(1, 'ours');"));
		if (close_last)
			cli_close(&p.reader);
		EXPECT(replica_open(&p) && strstr(why, "another program"));
		if (!close_last)
			EXPECT(cli_number(&p.reader, "SELECT count(*) FROM t WHERE w = 'ours';") == 1);
		place_close(&p);
		shell("rm -rf '%s'/*", scratch);
	}
	return NULL;
}

/* A file that is not ours is left alone. */
static const char *test_not_ours(void)
{
	struct place p;

	CALL(source_open(&p, 4096));
	EXPECT(shell("echo mine > '%s'", DB) == 0);
	EXPECT(replica_open(&p) && strstr(why, "no replica of walwire's"));
	EXPECT(shell("grep -q mine '%s'", DB) == 0);
	place_close(&p);
	return NULL;
}

/* Another database's seed, or another page size, is refused. */
static const char *test_expect_seed(void)
{
	uint8_t other[16] = "someone else's";
	struct place p;

	CALL(place_open(&p, 4096));
	EXPECT(applier_expect_seed(&p.applier, other, 4096, why, sizeof(why)) == -EEXIST);
	CALL(expect_seed(&p));
	p.page_bytes = 1024;
	memcpy(other, p.feed.db_id, 16);
	EXPECT(applier_expect_seed(&p.applier, other, 1024, why, sizeof(why)) == -EEXIST);
	p.page_bytes = 4096;
	place_close(&p);
	return NULL;
}

/* Killed before the end of a first copy: next time it is EMPTY again, and can be seeded. */
static const char *test_seed_lost(void)
{
	struct image m;
	struct place p;

	CALL(source_open(&p, 4096));
	CALL(source_load(&p));
	CALL(replica_open(&p));
	for (int i = 0; i < 3; i++) {
		CALL(seed_begin(&p, 0, &m));
		CALL(pump(&p));
		image_free(&m);
		if (i == 0)
			applier_unlink(&p.applier);
		else
			CALL(replica_reopen(&p));
		EXPECT(p.applier.mode == APPLIER_EMPTY && !p.applier.known);
		EXPECT(access(DB, F_OK) < 0);
	}
	CALL(seed(&p, 0));
	CALL(replica_is(&p, 0));
	place_close(&p);
	return NULL;
}

/* The end of a first copy fails for a while: it is tried again, and then succeeds. */
static const char *test_seed_retry(void)
{
	struct image m;
	struct place p;

	CALL(source_open(&p, 4096));
	CALL(source_load(&p));
	CALL(replica_open(&p));
	CALL(seed_begin(&p, 0, &m));
	CALL(pump(&p));
	/* Where the WAL is to be, something is in the way. */
	EXPECT(mkdir(in_scratch("replica/app.db-wal"), 0700) == 0);
	send_mark(&p, BATCH_SEED_END, m.pages);
	image_free(&m);
	EXPECT(pump(&p) != NULL && p.applier.problem[0]);
	EXPECT(rmdir(in_scratch("replica/app.db-wal")) == 0);
	p.loop.now_ns += 2 * RETRY_MS * MS;
	if (pump(&p)) {
		fprintf(stderr, "%s\n", p.applier.problem);
		place_close(&p);
		return "when the end of a copy has failed once, after the rename, no further try can "
		       "succeed: it removes the renamed file and has no other";
	}
	CALL(replica_is(&p, 0));
	place_close(&p);
	return NULL;
}

/* A new copy of an existing replica: readers see the old state, then the new one, and nothing else. */
static const char *test_reseed(void)
{
	char before[64];
	struct image m;
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 20);
	cli_ask(&p.source, "DELETE FROM t WHERE id > 5; VACUUM;");
	write_randomly(&p, 5);
	CALL(source_load(&p));
	CALL(send_commits(&p, 3, 1, 1000));
	CALL(pump(&p));
	cli_open(&p.reader, DB);
	snprintf(before, sizeof(before), "%ld", cli_number(&p.reader, "SELECT count(*) FROM t;"));
	/* Once lost in the middle, once in two beginnings, then whole, with commits before its end. */
	CALL(seed_begin(&p, p.commits - 4, &m));
	CALL(pump(&p));
	EXPECT(p.applier.mode == APPLIER_RESEEDING && !p.feed.open);
	CALL(cli_number(&p.reader, "SELECT count(*) FROM t;") == atol(before) ? NULL : "seen too early");
	applier_unlink(&p.applier);
	EXPECT(p.applier.mode == APPLIER_LIVE && p.applier.known && p.feed.open);
	image_free(&m);
	CALL(replica_is(&p, 3));
	CALL(seed_begin(&p, p.commits - 4, &m));
	image_free(&m);
	CALL(seed_begin(&p, p.commits - 4, &m));
	CALL(send_commits(&p, 2, 1, 3));
	CALL(pump(&p));
	CALL(cli_number(&p.reader, "SELECT count(*) FROM t;") == atol(before) ? NULL : "seen too early");
	image_free(&m);
	m = state_after(&p, p.commits - 2);
	send_mark(&p, BATCH_SEED_END, m.pages);
	image_free(&m);
	CALL(pump(&p));
	EXPECT(p.applier.mode == APPLIER_LIVE && p.feed.open);
	CALL(replica_is(&p, p.commits - 2));
	CALL(send_commits(&p, 2, 1, 1000));
	CALL(pump(&p));
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* Killed in the middle of it: the old state, and its position. */
static const char *test_reseed_killed(void)
{
	struct image m;
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 20);
	CALL(source_load(&p));
	CALL(send_commits(&p, 3, 1, 1000));
	CALL(pump(&p));
	CALL(seed_begin(&p, p.commits, &m));
	image_free(&m);
	CALL(pump(&p));
	CALL(replica_reopen(&p));
	EXPECT(p.applier.known && p.applier.applied.txid == FIRST_TXID + 3);
	CALL(replica_is(&p, 3));
	CALL(send_commits(&p, 3, 1, 1000));
	CALL(pump(&p));
	CALL(replica_is(&p, 6));
	place_close(&p);
	return NULL;
}

/* Killed after positions were noted and before their frames were published: they do not count, also
 * not when a reader's last close has removed the WAL meanwhile. */
static const char *test_noted(void)
{
	struct place p;

	for (int closed = 0; closed < 2; closed++) {
		CALL(place_open(&p, 1024));
		write_randomly(&p, 10);
		CALL(source_load(&p));
		CALL(send_commits(&p, 4, 1, 1000));
		CALL(pump(&p));
		positions_note(&p.applier.positions, p.commit[5].at, p.applier.writer.header.salt,
			       p.applier.writer.header.mx_frame + 2, (const uint32_t[2]){1, 2});
		CALL(replica_reopen(&p)); /* it catches up, and rests */
		EXPECT(p.applier.known && p.applier.applied.txid == FIRST_TXID + 4);
		if (closed) {
			replica_close(&p);
			cli_open(&p.reader, DB);
			EXPECT(cli_number(&p.reader, "SELECT count(*) FROM t;") > 0);
			cli_close(&p.reader);
			EXPECT(access(in_scratch("replica/app.db-wal"), F_OK) < 0);
			CALL(replica_reopen(&p));
			if (p.applier.known && p.applier.applied.txid != FIRST_TXID + 4) {
				place_close(&p);
				return "a position that was noted, and whose commit was never applied, is "
				       "taken for the file's: that commit will be skipped";
			}
		}
		CALL(replica_is(&p, 4));
		place_close(&p);
		shell("rm -rf '%s'/*", scratch);
	}
	return NULL;
}

/* Killed with a part of a commit in the WAL; then a reader is the last to close: nobody has written
 * to the file, so nobody may be blamed for it. */
static const char *test_part_then_closed(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	cli_ask(&p.source, "UPDATE t SET v = v + 1; UPDATE t SET w = printf('%%0300d', id);");
	CALL(source_load(&p));
	CALL(send_commits(&p, 1, 1, 1000));
	CALL(pump(&p));
	send_frames(&p, p.sent + 1, p.sent + 10);
	CALL(pump(&p));
	CALL(replica_reopen(&p));
	EXPECT(p.applier.known && p.applier.applied.txid == FIRST_TXID + 1);
	replica_close(&p);
	cli_open(&p.reader, DB);
	EXPECT(cli_number(&p.reader, "SELECT count(*) FROM t;") > 0);
	cli_close(&p.reader);
	if (replica_open(&p)) {
		fprintf(stderr, "%s\n", why);
		place_close(&p);
		return "hashes of a part that never became a commit stay in the page table, which then "
		       "accuses another program of having written to the file";
	}
	/* Either it knows where it stands, or it asks for a new copy. */
	if (p.applier.known)
		CALL(replica_is(&p, 1));
	place_close(&p);
	return NULL;
}

/* The fingerprint says the same of equal databases, however they came about; unknown is unknown. */
static const char *test_fingerprint(void)
{
	struct place p;
	uint64_t applied;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 20);
	CALL(source_load(&p));
	CALL(send_commits(&p, p.commits, 3, 1000));
	CALL(pump(&p));
	applied = applier_fingerprint(&p.applier);
	EXPECT(applied != STATUS_UNKNOWN);
	CALL(replica_reopen(&p));
	EXPECT(applier_fingerprint(&p.applier) == applied);
	CALL(seed(&p, p.commits));
	EXPECT(applier_fingerprint(&p.applier) == applied);
	CALL(seed(&p, p.commits - 1));
	EXPECT(applier_fingerprint(&p.applier) != applied);
	place_close(&p);
	return NULL;
}

/* ---- checkpoints ---- */

/* The replica's WAL is backfilled beside and begins anew: it stays small, nothing stalls. */
static const char *test_checkpoints(void)
{
	struct place p;

	CALL(place_open(&p, 65536));
	for (int i = 0; i < 20; i++)
		cli_ask(&p.source, "DELETE FROM t WHERE id > 100; INSERT INTO t(v, w) "
				   "VALUES(%d, zeroblob(3000000));", i);
	CALL(source_load(&p));
	EXPECT(p.wal.total > 3 * CHECKPOINT_BYTES);
	for (uint32_t n = 1; n <= p.commits; n++) {
		CALL(send_commits(&p, 1, 1, 1000));
		CALL(pump(&p));
		EXPECT(wal_writer_bytes(&p.applier.writer) < 2 * CHECKPOINT_BYTES);
	}
	EXPECT(counter_get(p.feed.counters, COUNTER_checkpoints) >= 2);
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* A reader that keeps its snapshot stalls nothing: the WAL grows until it ends, and then begins anew. */
static const char *test_long_reader(void)
{
	struct place p;
	long rows;

	CALL(place_open(&p, 65536));
	for (int i = 0; i < 20; i++)
		cli_ask(&p.source, "DELETE FROM t WHERE id > 100; INSERT INTO t(v, w) "
				   "VALUES(%d, zeroblob(3000000));", i);
	CALL(source_load(&p));
	CALL(send_commits(&p, 3, 1, 1000));
	CALL(pump(&p));
	cli_open(&p.reader, DB);
	rows = cli_number(&p.reader, "BEGIN; SELECT count(*) FROM t;");
	for (uint32_t n = 4; n <= p.commits - 1; n++) {
		CALL(send_commits(&p, 1, 1, 1000));
		CALL(pump(&p));
		EXPECT(p.applier.applied.txid == FIRST_TXID + n);
	}
	EXPECT(cli_number(&p.reader, "SELECT count(*) FROM t;") == rows);
	EXPECT(wal_writer_bytes(&p.applier.writer) > 2 * CHECKPOINT_BYTES);
	EXPECT(counter_get(p.feed.counters, COUNTER_checkpoints_busy) > 0);
	cli_ask(&p.reader, "COMMIT;");
	CALL(replica_is(&p, p.commits - 1));
	CALL(send_commits(&p, 1, 1, 1000));
	CALL(pump(&p));
	EXPECT(wal_writer_bytes(&p.applier.writer) < CHECKPOINT_BYTES);
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* Under a load that leaves no pause the WAL is held to HOLD_BYTES, again and again: a hold that
 * helped is no reason to wait before the next one. The clock stands still meanwhile. */
static const char *test_hold(void)
{
	uint64_t most = 0, ns;
	struct place p;

	CALL(place_open(&p, 65536));
	for (int i = 0; i < 35; i++)
		cli_ask(&p.source, "DELETE FROM t WHERE id > 100; INSERT INTO t(v, w) "
				   "VALUES(%d, zeroblob(4000000));", i);
	CALL(source_load(&p));
	EXPECT((uint64_t)p.wal.frames * 65536 > 3 * HOLD_BYTES);
	ns = p.loop.now_ns;
	while (p.applier.applied.txid < FIRST_TXID + p.commits) {
		/* The ring is never empty, and the worker is not waited for unless it is a hold. */
		while (p.at.txid < FIRST_TXID + p.commits && ring_claim(&p.feed.ring, BATCH_BYTES_MAX) ==
			       BATCH_BYTES_MAX) {
			uint32_t n = (uint32_t)(p.at.txid - FIRST_TXID) + 1;
			uint32_t last = p.commit[n].frame, fits = batch_frames_max(65536);

			send_frames(&p, p.sent + 1, last - p.sent > fits ? p.sent + fits : last);
		}
		if (p.applier.hold)
			usleep(100);
		worker_collect(&p.worker);
		p.loop.now_ns = ns;
		applier_do_work(&p.applier);
		if (wal_writer_bytes(&p.applier.writer) > most)
			most = wal_writer_bytes(&p.applier.writer);
		EXPECT(!p.applier.problem[0]);
	}
	fprintf(stderr, "the WAL had %llu MB at most\n", (unsigned long long)most >> 20);
	CALL(pump(&p));
	if (most > 2 * HOLD_BYTES) {
		place_close(&p);
		return "the WAL passes twice HOLD_BYTES under load, without any reader";
	}
	CALL(replica_is(&p, p.commits));
	place_close(&p);
	return NULL;
}

/* What is durable is said when it is, and not before: with --durable soon, else after a quiet while. */
static const char *test_durable(void)
{
	struct place p;

	CALL(place_open(&p, 1024));
	write_randomly(&p, 10);
	CALL(source_load(&p));
	CALL(send_commits(&p, 4, 1, 1000));
	CALL(pump(&p));
	EXPECT(p.applier.durable == STATUS_UNKNOWN || p.applier.durable < FIRST_TXID + 4);
	p.loop.now_ns += 2 * SYNC_IDLE_MS * MS;
	CALL(pump(&p));
	EXPECT(p.applier.durable == FIRST_TXID + 4);
	p.durable = true;
	CALL(replica_reopen(&p));
	CALL(send_commits(&p, 3, 1, 1000));
	CALL(pump(&p));
	EXPECT(p.applier.durable == FIRST_TXID + 7);
	place_close(&p);
	return NULL;
}

/* No room: it says so, rests, and goes on by itself when there is room, with nothing half done. */
static const char *test_no_room(void)
{
	struct rlimit old, tight;
	struct place p;

	signal(SIGXFSZ, SIG_IGN);
	CALL(place_open(&p, 1024));
	write_randomly(&p, 60);
	CALL(source_load(&p));
	getrlimit(RLIMIT_FSIZE, &old);
	for (uint32_t n = 0; n + 5 <= p.commits; n += 5) {
		const char *said;

		tight = old;
		tight.rlim_cur = wal_writer_bytes(&p.applier.writer) + 500 + below(6000);
		CALL(send_commits(&p, 5, 1 + below(5), 1000));
		setrlimit(RLIMIT_FSIZE, &tight);
		said = pump(&p);
		setrlimit(RLIMIT_FSIZE, &old);
		if (said) {
			EXPECT(strstr(said, "cannot write"));
			p.loop.now_ns += 2 * RETRY_MS * MS;
		}
		CALL(pump(&p));
		CALL(replica_is(&p, n + 5));
	}
	place_close(&p);
	return NULL;
}

/* ---- kills ---- */

/* The child: open the replica, go on from where it stands to the end of the source's WAL. */
static int child(const char *dir)
{
	struct place p;
	const char *wrong;

	strcpy(scratch, dir);
	memset(&p, 0, sizeof(p));
	p.page_bytes = 16384;
	p.wake_fd = -1;
	p.commit = calloc(COMMITS_MAX, sizeof(*p.commit));
	p.commit[0].at = (struct position){1, FIRST_TXID, 0x5eed};
	wrong = source_load(&p);
	if (!wrong)
		wrong = replica_open(&p);
	if (!wrong && !p.applier.known)
		wrong = "it does not know where it stands";
	rnd_state = (uint64_t)getpid();
	if (!wrong)
		close(open(in_scratch("ready"), O_CREAT | O_WRONLY, 0600));
	while (!wrong && p.at.txid < FIRST_TXID + p.commits) {
		uint32_t left = FIRST_TXID + p.commits - (uint32_t)p.at.txid;

		wrong = send_commits(&p, left < 20 ? left : 20, 1 + below(10), 1 + below(40));
		worker_collect(&p.worker);
		applier_do_work(&p.applier);
	}
	if (wrong) {
		fprintf(stderr, "child: %s: %s\n", wrong, why);
		return 1;
	}
	wrong = pump(&p);
	place_close(&p);
	return wrong ? 1 : 0;
}

/* Killed at any moment, again and again, with and without a reader that keeps the index: it always
 * finds one of the source's states, the one its position names, and in the end the last one. */
static const char *test_killed(void)
{
	char *argv[] = {"test_applier", "child", scratch, NULL};
	uint64_t last = 0;
	struct place p;
	int kills = 0;

	CALL(place_open(&p, 16384));
	replica_close(&p);
	cli_ask(&p.source, "PRAGMA cache_size=-100000;");
	for (int i = 0; i < 250; i++)
		cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(random(), zeroblob(%u)); "
				   "UPDATE t SET v = random() WHERE id %% 20 = %d;",
			below(60000), i % 20);
	CALL(source_load(&p));
	for (int round = 0;; round++) {
		int status = -1;
		pid_t pid;

		if (!p.reader.in && below(2))
			cli_open(&p.reader, DB);
		if (p.reader.in && below(2))
			cli_ask(&p.reader, "SELECT count(*) FROM t;");
		EXPECT(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) == 0);
		siginfo_t ended = {0};

		while (unlink(in_scratch("ready")) < 0 && ended.si_pid == 0) {
			usleep(100);
			waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
		}
		usleep(below(below(2) ? 5000 : 60000));
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		EXPECT(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
		kills += WIFSIGNALED(status);
		CALL(replica_reopen(&p));
		EXPECT(p.applier.known && p.applier.applied.txid >= last);
		last = p.applier.applied.txid;
		CALL(replica_is(&p, (uint32_t)(last - FIRST_TXID)));
		replica_close(&p);
		if (below(2) || !WIFSIGNALED(status))
			cli_close(&p.reader);
		if (!WIFSIGNALED(status) || round == 60)
			break;
	}
	fprintf(stderr, "killed %d times on the way to commit %llu of %u\n", kills,
		(unsigned long long)(last - FIRST_TXID), p.commits);
	place_close(&p);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "child"))
		return child(argv[2]);
	run("applier_seed", test_seed);
	run("applier_seed_commits", test_seed_commits);
	run("applier_seed_lost", test_seed_lost);
	run("applier_commits", test_commits);
	run("applier_several", test_several);
	run("applier_parts", test_parts);
	run("applier_large", test_large);
	run("applier_vacuum", test_vacuum);
	run("applier_again", test_again);
	run("applier_reopen", test_reopen);
	run("applier_written_to", test_written_to);
	run("applier_not_ours", test_not_ours);
	run("applier_expect_seed", test_expect_seed);
	run("applier_reseed", test_reseed);
	run("applier_reseed_killed", test_reseed_killed);
	run("applier_fingerprint", test_fingerprint);
	run("applier_checkpoints", test_checkpoints);
	run("applier_long_reader", test_long_reader);
	run("applier_durable", test_durable);
	run("applier_no_room", test_no_room);
	run("applier_killed", test_killed);
	run("applier_noted", test_noted);
	run("applier_part_then_closed", test_part_then_closed);
	run("applier_seed_retry", test_seed_retry);
	run("applier_hold", test_hold);
	return failed;
}
