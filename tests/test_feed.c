/* test_feed - where a peer goes on in a ring: every position, in rings of every kind. */
#include "tests/testing.h"

#include "daemon/wire/feed.h"
#include "tests/batches.h"

#define RING_BYTES  (4u << 20)
#define COMMITS_MAX 60000

struct place {
	struct loop loop;
	struct feed feed;
	struct maker maker;
	struct position *seen; /* after each commit ever made; seen[0] is the beginning */
	uint32_t count;
};

static const char *place_open(struct place *p, uint32_t page_bytes)
{
	memset(p, 0, sizeof(*p));
	EXPECT(loop_open(&p->loop) == 0);
	EXPECT(feed_open(&p->feed, &p->loop, "app.db", "/nowhere/app.db", RING_BYTES, -1) == 0);
	feed_set_page_bytes(&p->feed, page_bytes);
	p->maker = (struct maker){.page_bytes = page_bytes, .db_pages = 5};
	p->maker.at = (struct position){1, 0, rnd()};
	p->maker.chain = p->maker.at.chain;
	p->seen = malloc(COMMITS_MAX * sizeof(*p->seen));
	p->seen[0] = p->maker.at;
	p->count = 1;
	feed_break(&p->feed, p->maker.at, 5);
	return NULL;
}

static void place_close(struct place *p)
{
	feed_close(&p->feed);
	loop_close(&p->loop);
	free(p->seen);
}

static uint8_t *room(struct place *p)
{
	if (ring_claim(&p->feed.ring, BATCH_BYTES_MAX) < BATCH_BYTES_MAX)
		abort();
	return ring_at(&p->feed.ring, ring_published(&p->feed.ring));
}

static void publish(struct place *p)
{
	struct batch_header h;

	uint64_t pos = ring_published(&p->feed.ring);
	const uint8_t *batch = ring_at(&p->feed.ring, pos);

	if (batch_header_get(batch, &h) || batch_check(batch, &h, feed_hashes(&p->feed, pos)))
		abort();
	feed_publish(&p->feed, &h);
}

/* A batch of `n` commits of up to `most` frames each, `parts` parts before it. */
static void add(struct place *p, uint32_t n, uint32_t most, uint32_t parts)
{
	uint32_t frames[64];

	while (parts--) {
		make_part(&p->maker, room(p), 1 + below(most));
		publish(p);
	}
	if (n * most > batch_frames_max(p->maker.page_bytes))
		most = batch_frames_max(p->maker.page_bytes) / n;
	for (uint32_t i = 0; i < n; i++)
		frames[i] = 1 + below(most);
	make_commits(&p->maker, room(p), frames, n, false, p->seen + p->count);
	p->count += n;
	publish(p);
}

static void add_randomly(struct place *p, uint32_t batches)
{
	while (batches--)
		add(p, 1 + below(below(3) ? 2 : 8), below(3) ? 5 : 100, below(3) ? 0 : below(4));
}

/* Follow the ring from where feed_find() says: nothing missing, nothing twice, to the very end. */
static const char *leads_on(const struct place *p, struct position from, uint64_t pos)
{
	uint64_t end = ring_published(&p->feed.ring), txid = from.txid;
	uint64_t chain = from.chain;
	struct batch_header h;
	bool first = true;

	EXPECT(pos >= ring_oldest(&p->feed.ring) && pos >= p->feed.floor_pos && pos <= end);
	for (; pos < end; pos += h.bytes, first = false) {
		const uint8_t *batch = ring_at(&p->feed.ring, pos);

		EXPECT(batch_header_get(batch, &h) == 0);
		if (h.kind != BATCH_COMMIT)
			continue;
		if (first && h.txid - h.commits < txid) {
			uint64_t at = h.txid - h.commits;

			/* Our commit is in it, and others that we need. */
			EXPECT(h.txid > txid);
			chain = h.chain_before;
			for (uint32_t i = 0; i < h.frames && at < txid; i++) {
				const uint8_t *f = batch_frame(batch, i, p->maker.page_bytes);

				chain = chain_fold(chain, f,
						   page_hash(frame_pgno(f), f + FRAME_HEADER_BYTES,
							     p->maker.page_bytes));
				at += frame_db_pages(f) != 0;
			}
			EXPECT(chain == from.chain);
		} else {
			EXPECT(h.chain_before == chain && h.txid - h.commits == txid);
		}
		chain = h.chain;
		txid = h.txid;
	}
	EXPECT(txid == p->feed.at.txid);
	return NULL;
}

/* By looking at every batch: can a peer at seen[i] go on? */
static bool reachable(const struct place *p, uint32_t i)
{
	uint64_t pos = ring_oldest(&p->feed.ring), end = ring_published(&p->feed.ring);
	struct position at = p->seen[i];
	struct batch_header h;

	if (pos < p->feed.floor_pos)
		pos = p->feed.floor_pos;
	for (; pos < end; pos += h.bytes) {
		if (batch_header_get(ring_at(&p->feed.ring, pos), &h))
			abort();
		if (h.kind != BATCH_COMMIT)
			continue;
		if (h.chain_before == at.chain && h.txid - h.commits == at.txid)
			return true;
		if (h.txid - h.commits < at.txid && at.txid <= h.txid && h.commits)
			return true;
	}
	return at.txid == p->feed.at.txid && p->feed.commit_pos == end;
}

static const char *every_position(const struct place *p, uint32_t *ret_reachable)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < p->count; i++) {
		struct position wrong = p->seen[i];
		uint64_t pos;

		if (reachable(p, i)) {
			n++;
			EXPECT(feed_find(&p->feed, p->seen[i], &pos) == 0);
			CALL(leads_on(p, p->seen[i], pos));
		} else {
			EXPECT(feed_find(&p->feed, p->seen[i], &pos) == -ESTALE);
		}
		wrong.chain ^= 1ull << below(64);
		EXPECT(feed_find(&p->feed, wrong, &pos) == -ESTALE);
		wrong = p->seen[i];
		wrong.timeline++;
		EXPECT(feed_find(&p->feed, wrong, &pos) == -ESTALE);
		wrong = p->seen[i];
		wrong.txid += 1 + below(3);
		EXPECT(feed_find(&p->feed, wrong, &pos) == -ESTALE);
		if (p->seen[i].txid > 3) {
			wrong.txid = p->seen[i].txid - 1 - below(3);
			EXPECT(feed_find(&p->feed, wrong, &pos) == -ESTALE);
		}
	}
	if (ret_reachable)
		*ret_reachable = n;
	return NULL;
}

/* Nothing in the ring: only who stands where it begins can go on. */
static const char *test_empty(void)
{
	struct place p;
	uint64_t pos = 1;

	CALL(place_open(&p, 512));
	EXPECT(feed_find(&p.feed, p.maker.at, &pos) == 0 && pos == 0);
	CALL(every_position(&p, NULL));
	place_close(&p);
	return NULL;
}

/* Commits one by one, several in a batch, in parts: every position leads on. */
static const char *test_find(void)
{
	static const uint32_t size[] = {512, 4096};
	uint32_t n;

	for (int round = 0; round < 30; round++) {
		struct place p;

		CALL(place_open(&p, size[round % 2]));
		add_randomly(&p, 1 + below(12));
		CALL(every_position(&p, &n));
		EXPECT(n == p.count || ring_oldest(&p.feed.ring) > 0);
		place_close(&p);
	}
	return NULL;
}

/* The ring ends in the middle of a commit: its parts are behind the last whole one. */
static const char *test_ends_in_part(void)
{
	struct place p;
	uint64_t pos;
	uint32_t n;

	CALL(place_open(&p, 512));
	for (int round = 0; round < 10; round++) {
		add_randomly(&p, below(4));
		uint64_t at = ring_published(&p.feed.ring);

		for (uint32_t parts = 1 + below(3); parts--;) {
			make_part(&p.maker, room(&p), 1 + below(5));
			publish(&p);
		}
		EXPECT(p.feed.commit_pos == at && p.feed.at.txid == p.maker.at.txid);
		/* Who has the last whole commit gets the parts; who has the parts asks as one that
		 * does not. */
		EXPECT(feed_find(&p.feed, p.maker.at, &pos) == 0 && pos == at);
		CALL(every_position(&p, &n));
		EXPECT(n == p.count);
		add(&p, 1, 3, 0);
	}
	place_close(&p);
	return NULL;
}

/* The ring has gone round: what it no longer has is stale, what it still has leads on. */
static const char *test_lapped(void)
{
	for (int round = 0; round < 4; round++) {
		struct place p;
		uint32_t n;

		CALL(place_open(&p, 4096));
		while (ring_oldest(&p.feed.ring) < RING_BYTES) {
			add(&p, 1 + below(3), round % 2 ? 80 : 10, below(4) ? 0 : below(4));
			EXPECT(ring_published(&p.feed.ring) - ring_oldest(&p.feed.ring) <= RING_BYTES);
		}
		CALL(every_position(&p, &n));
		EXPECT(n > 3 && n < p.count);
		place_close(&p);
	}
	return NULL;
}

/* A history that is broken off: nobody from before finds a place, who stands at the new one does. */
static const char *test_break(void)
{
	struct place p;
	uint64_t pos, broken;

	CALL(place_open(&p, 512));
	broken = p.feed.broken;
	for (int round = 0; round < 5; round++) {
		add_randomly(&p, 5);
		if (round % 2) {
			make_part(&p.maker, room(&p), 3);
			publish(&p);
		}
		/* A new chain, and txids that go on or even the same again. */
		p.maker.at.chain = p.maker.chain = rnd();
		p.maker.at.txid += round % 3;
		feed_break(&p.feed, p.maker.at, 7);
		EXPECT(p.feed.broken == ++broken && p.feed.db_pages == 7);
		EXPECT(p.feed.visible_pos == ring_published(&p.feed.ring));
		for (uint32_t i = 0; i < p.count; i++)
			EXPECT(feed_find(&p.feed, p.seen[i], &pos) == -ESTALE);
		p.seen[0] = p.maker.at;
		p.count = 1;
		EXPECT(feed_find(&p.feed, p.maker.at, &pos) == 0 && pos == p.feed.commit_pos);
		add_randomly(&p, 3);
		CALL(every_position(&p, NULL));
	}
	place_close(&p);
	return NULL;
}

/* A replica's ring, with a seed in it: history begins where the seed ends. */
static const char *test_seed(void)
{
	struct place p;
	uint32_t n;
	uint64_t pos;

	CALL(place_open(&p, 512));
	add_randomly(&p, 5);
	struct position before = p.maker.at;

	p.maker.at = (struct position){2, 900, rnd()};
	p.maker.chain = p.maker.at.chain;
	p.seen[0] = p.maker.at;
	p.count = 1;
	make_mark(&p.maker, room(&p), BATCH_SEED_BEGIN);
	publish(&p);
	for (int i = 0; i < 5; i++) {
		make_chunk(&p.maker, room(&p), 1 + 10 * (uint32_t)i, 10);
		publish(&p);
		add(&p, 2, 5, below(2));
	}
	make_mark(&p.maker, room(&p), BATCH_SEED_END);
	publish(&p);
	EXPECT(p.feed.at.txid == 910 && p.feed.at.timeline == 2 && p.feed.db_pages == p.maker.db_pages);
	EXPECT(p.feed.floor_pos == ring_published(&p.feed.ring));
	EXPECT(feed_find(&p.feed, before, &pos) == -ESTALE);
	CALL(every_position(&p, &n));
	EXPECT(n == 1); /* its end */
	add_randomly(&p, 5);
	CALL(every_position(&p, &n));
	EXPECT(n == p.count - 10);
	place_close(&p);
	return NULL;
}

/* The same commits in the ring once more, after a broken link: from each of both a peer goes on. */
static const char *test_again(void)
{
	struct place p;
	struct maker again;
	uint64_t pos;

	CALL(place_open(&p, 512));
	add_randomly(&p, 3);
	again = p.maker;
	make_part(&p.maker, room(&p), 3);
	publish(&p);
	p.maker = again;
	uint64_t anew = ring_published(&p.feed.ring);

	add(&p, 1, 3, 0); /* the commit begins anew */
	EXPECT(feed_find(&p.feed, again.at, &pos) == 0 && pos < anew);
	EXPECT(feed_find(&p.feed, p.maker.at, &pos) == 0 && pos == ring_published(&p.feed.ring));
	place_close(&p);
	return NULL;
}

/* What is counted, and what the feed says of its end. */
static const char *test_publish(void)
{
	struct place p;

	CALL(place_open(&p, 4096));
	EXPECT(p.feed.segment.header->page_size == 4096);
	p.maker.time_ns = 77;
	add(&p, 3, 4, 2);
	EXPECT(p.feed.at.txid == 3 && p.feed.at.chain == p.maker.at.chain && p.feed.time_ns == 77);
	EXPECT(p.feed.commit_pos == ring_published(&p.feed.ring));
	EXPECT(counter_get(p.feed.counters, COUNTER_commits) == 3);
	EXPECT(counter_get(p.feed.counters, COUNTER_batches) == 3);
	EXPECT(counter_get(p.feed.counters, COUNTER_bytes) == ring_published(&p.feed.ring));
	EXPECT(p.feed.broken == 1);
	place_close(&p);
	return NULL;
}

/* Round the ring many times, with the shortest frames: the hashes of all that is in it are there. */
static const char *test_hashes(void)
{
	static uint64_t ours[BATCH_BYTES_MAX / PAGE_BYTES_MIN];
	struct batch_header h;
	struct place p;

	CALL(place_open(&p, 512));
	while (ring_published(&p.feed.ring) < 3 * RING_BYTES) {
		uint64_t end;

		add(&p, 1 + below(3), 1 + below(below(2) ? 600 : 3), below(4));
		end = ring_published(&p.feed.ring);
		for (uint64_t pos = ring_oldest(&p.feed.ring); pos < end; pos += h.bytes) {
			const uint8_t *batch = ring_at(&p.feed.ring, pos);

			EXPECT(batch_header_get(batch, &h) == 0 && batch_check(batch, &h, ours) == 0);
			EXPECT(!memcmp(feed_hashes(&p.feed, pos), ours, h.frames * sizeof(*ours)));
		}
	}
	place_close(&p);
	return NULL;
}

int main(void)
{
	run("feed_empty", test_empty);
	run("feed_publish", test_publish);
	run("feed_find", test_find);
	run("feed_ends_in_part", test_ends_in_part);
	run("feed_lapped", test_lapped);
	run("feed_break", test_break);
	run("feed_seed", test_seed);
	run("feed_again", test_again);
	run("feed_hashes", test_hashes);
	return failed;
}
