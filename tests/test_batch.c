/* test_batch - nothing but what was sent passes for it. */
#include "tests/testing.h"

#include "tests/batches.h"

static uint8_t *batch, *other;

static const uint32_t page_sizes[] = {512, 4096};

static void make_room(void)
{
	batch = malloc(BATCH_BYTES_MAX);
	other = malloc(BATCH_BYTES_MAX);
}

static void free_room(void)
{
	free(batch);
	free(other);
}

static int check(const uint8_t *b)
{
	struct batch_header h;
	int err = batch_header_get(b, &h);

	return err ? err : batch_check(b, &h, NULL);
}

static struct maker source(uint32_t page_bytes)
{
	return (struct maker){.page_bytes = page_bytes,
			      .at = {.timeline = 3, .txid = 41, .chain = rnd()},
			      .db_pages = 9,
			      .time_ns = rnd()};
}

/* A header comes back as it was put, and its numbers stand where the format says. */
static const char *test_header(void)
{
	struct batch_header h = {.bytes = 0x2080, /* 64 + 2 * (24 + 4096) = 0x2070, rounded up */
				 .page_shift = 12,
				 .kind = BATCH_COMMIT,
				 .frames = 2,
				 .commits = 1,
				 .txid = 0x0102030405060708,
				 .chain_before = 0x1112131415161718,
				 .chain = 0x2122232425262728,
				 .time_ns = 0x3132333435363738,
				 .db_pages = 0x41424344,
				 .timeline = 0x51525354},
			    got;
	static const uint8_t expected[56] = {
		0x80, 0x20, 0,	  0,	0x57, 12,   1,	  0,	2,    0,    0,	  0,	1,    0,
		0,    0,    8,	  7,	6,    5,    4,	  3,	2,    1,    0x18, 0x17, 0x16, 0x15,
		0x14, 0x13, 0x12, 0x11, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x38, 0x37,
		0x36, 0x35, 0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51};
	uint8_t at[64];

	batch_header_put(at, &h);
	EXPECT(!memcmp(at, expected, 56));
	EXPECT(batch_header_get(at, &got) == 0);
	EXPECT(!memcmp(&h, &got, sizeof(h)));
	return NULL;
}

/* Every flipped bit of a header is noticed by the header alone. */
static const char *test_header_flipped(void)
{
	struct batch_header h;

	make_room();
	for (int p = 0; p < 2; p++) {
		struct maker m = source(page_sizes[p]);

		make_commit(&m, batch, 2);
		EXPECT(check(batch) == 0);
		for (uint32_t bit = 0; bit < 8 * BATCH_HEADER_BYTES; bit++) {
			batch[bit / 8] ^= (uint8_t)(1 << bit % 8);
			EXPECT(batch_header_get(batch, &h) == -EPROTO);
			batch[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
	}
	free_room();
	return NULL;
}

/* Headers that agree with their check but not with the format are refused. */
static const char *test_header_bounds(void)
{
	struct batch_header good = {.page_shift = 12,
				    .kind = BATCH_COMMIT,
				    .frames = 2,
				    .commits = 1,
				    .txid = 5,
				    .bytes = (uint32_t)batch_bytes(2, 4096)},
			    h, got;
	uint8_t at[64];

#define REFUSED(change)                                             \
	do {                                                        \
		h = good;                                           \
		change;                                             \
		batch_header_put(at, &h);                           \
		EXPECT(batch_header_get(at, &got) == -EPROTO);      \
	} while (0)
	REFUSED(h.bytes += 64);
	REFUSED(h.bytes -= 64);
	REFUSED(h.bytes++);
	REFUSED(h.bytes = 0);
	REFUSED(h.page_shift = 13);
	REFUSED((h.page_shift = 8, h.bytes = (uint32_t)batch_bytes(2, 256)));
	REFUSED((h.page_shift = 17, h.bytes = (uint32_t)batch_bytes(2, 1 << 17)));
	REFUSED(h.page_shift = 255);
	REFUSED(h.kind = 0);
	REFUSED(h.kind = 4);
	REFUSED(h.commits = 3);
	REFUSED((h.txid = 0));
	REFUSED((h.frames = batch_frames_max(4096) + 1,
		 h.bytes = (uint32_t)batch_bytes(h.frames, 4096)));
	REFUSED(h.frames = UINT32_MAX);
	/* batch_bytes(frames) that is right only in 32 bits */
	REFUSED((h.page_shift = 9, h.frames = 0x80000000u,
		 h.bytes = (uint32_t)batch_bytes(h.frames, 512)));
	for (uint8_t shift = 9; shift <= 16; shift++) {
		h = good;
		h.page_shift = shift;
		h.frames = batch_frames_max(1u << shift);
		h.bytes = (uint32_t)batch_bytes(h.frames, 1u << shift);
		EXPECT(h.frames > 0 && h.bytes <= BATCH_BYTES_MAX);
		batch_header_put(at, &h);
		EXPECT(batch_header_get(at, &got) == 0);
	}
	return NULL;
}

/* Cut short anywhere, a batch is refused: what is missing is zeros, or what stood there before. */
static const char *test_truncated(void)
{
	make_room();
	for (int p = 0; p < 2; p++) {
		uint32_t page_bytes = page_sizes[p];
		struct maker m = source(page_bytes);
		uint32_t bytes = make_commit(&m, batch, 3);

		EXPECT(check(batch) == 0);
		for (int old = 0; old < 2; old++) {
			memset(other, old ? 0xff : 0, bytes);
			for (uint32_t cut = 0; cut < bytes; cut++) {
				bool same = !memcmp(other + cut, batch + cut, bytes - cut);

				EXPECT(same || check(other) != 0);
				other[cut] = batch[cut];
			}
			EXPECT(check(other) == 0);
		}
	}
	free_room();
	return NULL;
}

/* Every flipped byte is refused. */
static const char *test_flipped(void)
{
	make_room();
	for (int p = 0; p < 2; p++) {
		struct maker m = source(page_sizes[p]);
		uint32_t sizes[2] = {1, 2}, bytes;

		for (int kind = 0; kind < 3; kind++) {
			if (kind == 0)
				bytes = make_commits(&m, batch, sizes, 2, false, NULL);
			else if (kind == 1)
				bytes = make_part(&m, batch, 3);
			else
				bytes = make_chunk(&m, batch, 100, 3);
			EXPECT(check(batch) == 0);
			for (uint32_t i = 0; i < bytes; i++) {
				uint8_t was = batch[i];

				batch[i] ^= (uint8_t)(1 + below(255));
				EXPECT(check(batch) != 0);
				batch[i] = was;
			}
		}
	}
	free_room();
	return NULL;
}

/* Two frames that changed places, a frame that is missing and one that came twice are refused. */
static const char *test_order(void)
{
	const uint32_t page_bytes = 512, frame = batch_frame_bytes(512);
	struct maker m;
	struct batch_header h;
	uint8_t *at, t[1024];

	make_room();
	m = source(page_bytes);
	make_commit(&m, batch, 4);
	at = batch + BATCH_HEADER_BYTES;
	memcpy(t, at, frame);
	memcpy(at, at + frame, frame);
	EXPECT(check(batch) == -EBADMSG); /* the second stands twice */
	memcpy(at + frame, t, frame);
	EXPECT(check(batch) == -EBADMSG);
	memcpy(at + frame, at, frame);
	memcpy(at, t, frame);
	EXPECT(check(batch) == 0);
	EXPECT(batch_header_get(batch, &h) == 0);
	h.frames--;
	h.bytes = (uint32_t)batch_bytes(h.frames, page_bytes);
	batch_header_put(batch, &h);
	EXPECT(check(batch) == -EBADMSG);
	free_room();
	return NULL;
}

/* Rule 3: no page 0, commits counted right, the last frame ends one, its size is db_pages. A maker who
 * folds the chain right cannot get round it. */
static const char *test_commits(void)
{
	make_room();
	for (int wrong = 0; wrong < 8; wrong++) {
		struct maker m = source(512);
		struct batch_header h = {.kind = BATCH_COMMIT, .frames = 3, .commits = 1, .txid = 42,
					 .chain_before = m.chain, .db_pages = 10};
		uint32_t pgno[3] = {1, 2, 3}, size[3] = {0, 0, 10};

		switch (wrong) {
		case 1: pgno[1] = 0; break;
		case 2: h.commits = 2; break;
		case 3: h.commits = 0; break;
		case 4: size[1] = 10; break;		     /* two end a commit */
		case 5: size[1] = 10; size[2] = 0; break;    /* the last does not */
		case 6: h.db_pages = 11; break;
		case 7: h.kind = BATCH_SEED; break;
		}
		for (uint32_t i = 0; i < 3; i++)
			m.chain = make_frame(&m, batch + 64 + i * batch_frame_bytes(512), pgno[i],
					     size[i], m.chain);
		h.chain = m.chain;
		make_finish(&m, batch, &h);
		EXPECT(check(batch) == (wrong ? -EBADMSG : 0));
	}
	free_room();
	return NULL;
}

/* Marks and heartbeats carry no frames. */
static const char *test_marks(void)
{
	static const struct { uint8_t kind, flags; } mark[] = {
		{BATCH_SEED, BATCH_SEED_BEGIN}, {BATCH_SEED, BATCH_SEED_END}, {BATCH_HEARTBEAT, 0}};

	make_room();
	for (int i = 0; i < 3; i++) {
		struct maker m = source(4096);
		struct batch_header h = {.kind = mark[i].kind, .flags = mark[i].flags, .txid = 42};

		make_finish(&m, batch, &h);
		EXPECT(check(batch) == 0);
		h.frames = 1;
		h.chain = make_frame(&m, batch + 64, 1, 0, 0);
		make_finish(&m, batch, &h);
		EXPECT(check(batch) == -EPROTO);
	}
	free_room();
	return NULL;
}

/* However the same frames are cut into batches, the chain after them is the same, and it is another as
 * soon as one of them is. */
static const char *test_cut(void)
{
	enum { FRAMES = 40 };
	const uint32_t page_bytes = 512, frame = batch_frame_bytes(512);
	uint8_t *frames;
	struct maker m;
	uint64_t start, whole, changed;

	make_room();
	frames = malloc(FRAMES * frame);
	m = source(page_bytes);
	start = m.chain;
	whole = start;
	for (uint32_t i = 0; i < FRAMES; i++)
		whole = make_frame(&m, frames + i * frame, 1 + below(20), i % 4 == 3 ? 20 : 0, whole);
	for (int way = 0; way < 50; way++) {
		uint64_t chain = start;

		for (uint32_t i = 0; i < FRAMES;) {
			uint32_t n = way == 0 ? 1 : 1 + below(FRAMES - i);
			struct batch_header h = {.kind = BATCH_COMMIT, .txid = 100, .chain_before = chain};

			/* Commits and a rest: the batch ends after its last commit, or has none. */
			while (n > 1 && (i + n) % 4 && i / 4 != (i + n - 1) / 4)
				n--;
			memcpy(batch + 64, frames + i * frame, n * frame);
			for (uint32_t k = 0; k < n; k++) {
				const uint8_t *f = frames + (i + k) * frame;

				if (frame_db_pages(f)) {
					h.commits++;
					h.db_pages = frame_db_pages(f);
				}
				chain = chain_fold(chain, f,
						   page_hash(frame_pgno(f), f + 24, page_bytes));
			}
			h.frames = n;
			h.chain = chain;
			make_finish(&m, batch, &h);
			EXPECT(check(batch) == 0);
			i += n;
		}
		EXPECT(chain == whole);
	}
	for (int way = 0; way < 100; way++) {
		uint32_t f = below(FRAMES), at = below(frame - 16);
		uint8_t *p = frames + f * frame + (at < 8 ? at : at + 16);

		*p ^= (uint8_t)(1 + below(255));
		changed = start;
		for (uint32_t i = 0; i < FRAMES; i++)
			changed = chain_fold(changed, frames + i * frame,
					     page_hash(frame_pgno(frames + i * frame),
						       frames + i * frame + 24, page_bytes));
		EXPECT(changed != whole);
		whole = changed;
	}
	free(frames);
	free_room();
	return NULL;
}

int main(void)
{
	run("batch_header", test_header);
	run("batch_header_flipped", test_header_flipped);
	run("batch_header_bounds", test_header_bounds);
	run("batch_truncated", test_truncated);
	run("batch_flipped", test_flipped);
	run("batch_order", test_order);
	run("batch_commits", test_commits);
	run("batch_marks", test_marks);
	run("batch_chain_independent_of_the_cut", test_cut);
	return failed;
}
