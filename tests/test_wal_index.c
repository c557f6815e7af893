/* test_wal_index - the wal-index, held against one that stock SQLite keeps. */
#include "tests/testing.h"

#include "daemon/wal/wal_index.h"

static _Alignas(64) uint8_t memory[8 * WAL_INDEX_REGION_BYTES];

static struct wal_index_header a_header(void)
{
	struct wal_index_header h = {.change = (uint32_t)rnd(), .page_code = wal_index_page_code(4096),
				     .mx_frame = 77, .db_pages = 12};

	rnd_fill(h.frame_checksum, 16);
	return h;
}

/* Page sizes and their codes. */
static const char *test_page_code(void)
{
	for (uint32_t size = 512; size <= 65536; size *= 2) {
		struct wal_index_header h = {.page_code = wal_index_page_code(size)};

		EXPECT(wal_index_page_bytes(&h) == size);
	}
	EXPECT(wal_index_page_code(65536) == 1 && wal_index_page_code(4096) == 4096);
	return NULL;
}

/* What is published is read. */
static const char *test_publish(void)
{
	for (int i = 0; i < 100; i++) {
		struct wal_index_header h = a_header(), back;

		wal_index_publish(memory, &h);
		EXPECT(h.is_init == 1 && h.version == WAL_INDEX_VERSION);
		EXPECT(wal_index_read(memory, &back) == 0 && !memcmp(&h, &back, sizeof(h)));
	}
	return NULL;
}

/* Torn: any byte that differs between the copies, any mixture of two states, and both copies
 * damaged alike. */
static const char *test_torn(void)
{
	struct wal_index_header old = a_header(), new = a_header(), back = {0};

	wal_index_publish(memory, &old);
	for (uint32_t i = 0; i < 2 * WAL_INDEX_HEADER_BYTES; i++) {
		memory[i] ^= (uint8_t)(1u << below(8));
		EXPECT(wal_index_read(memory, &back) == -EAGAIN);
		memcpy(memory, &old, sizeof(old));
		memcpy(memory + WAL_INDEX_HEADER_BYTES, &old, sizeof(old));
	}
	for (uint32_t i = 8; i < WAL_INDEX_HEADER_BYTES; i++) { /* 0..3 are the version */
		uint8_t bit = (uint8_t)(1u << below(8));

		memory[i] ^= bit;
		memory[i + WAL_INDEX_HEADER_BYTES] ^= bit;
		EXPECT(wal_index_read(memory, &back) == -EAGAIN);
		memory[i] ^= bit;
		memory[i + WAL_INDEX_HEADER_BYTES] ^= bit;
	}
	/* A writer that stops after any word: copy 1 first, then copy 0. */
	wal_index_publish(memory + WAL_INDEX_REGION_BYTES, &new);
	for (uint32_t words = 0; words <= 24; words++) {
		const uint8_t *to = memory + WAL_INDEX_REGION_BYTES;
		uint32_t second = words < 12 ? words : 12, first = words - second;
		int err;

		memcpy(memory, &old, sizeof(old));
		memcpy(memory + WAL_INDEX_HEADER_BYTES, &old, sizeof(old));
		memcpy(memory + WAL_INDEX_HEADER_BYTES, to, 4 * second);
		memcpy(memory, to, 4 * first);
		err = wal_index_read(memory, &back);
		if (!memcmp(memory, memory + WAL_INDEX_HEADER_BYTES, WAL_INDEX_HEADER_BYTES))
			EXPECT(err == 0 && back.change == (words < 12 ? old.change : new.change));
		else
			EXPECT(err == -EAGAIN);
	}
	memset(memory, 0, sizeof(memory));
	EXPECT(wal_index_read(memory, &back) == -EAGAIN);
	return NULL;
}

/* A whole header of another version of the format is not waited for. */
static const char *test_version(void)
{
	struct wal_index_header h = a_header(), back;
	uint32_t *word = (uint32_t *)(void *)&h, sum[2] = {0, 0};

	wal_index_publish(memory, &h);
	h.version = 3021000;
	for (int i = 0; i < 10; i += 2) {
		sum[0] += word[i] + sum[1];
		sum[1] += word[i + 1] + sum[0];
	}
	memcpy(h.checksum, sum, 8);
	memcpy(memory, &h, sizeof(h));
	memcpy(memory + WAL_INDEX_HEADER_BYTES, &h, sizeof(h));
	EXPECT(wal_index_read(memory, &back) == -EPROTO);
	return NULL;
}

/* Regions, their first frames and their last. */
static const char *test_regions(void)
{
	uint32_t f = 1;

	for (uint32_t r = 0; r < 10; r++) {
		EXPECT(wal_index_zero(r) == f - 1);
		for (uint32_t i = 0; i < (r ? WAL_INDEX_FRAMES : WAL_INDEX_FRAMES_FIRST); i++, f++)
			EXPECT(wal_index_region(f) == r);
	}
	return NULL;
}

/* In an index that SQLite wrote, with several regions: the header says what the WAL says, and every
 * page is found where its newest frame is. */
static const char *test_stock(void)
{
	static const uint32_t size[] = {512, 4096};

	for (int i = 0; i < 2; i++) {
		struct wal_index_header h;
		struct wal_file w;
		struct cli c;
		uint8_t *shm;
		size_t bytes;
		uint32_t *newest;

		cli_open(&c, in_scratch("app.db"));
		cli_ask(&c,
			"PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY "
			"KEY, v); WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE "
			"i<%u) INSERT INTO t(v) SELECT zeroblob(%u) FROM n; UPDATE t SET v = 7 WHERE "
			"id %% 3 = 0; UPDATE t SET v = zeroblob(400) WHERE id %% 5 = 0;",
			size[i], 6500u, size[i] - 100);
		EXPECT(wal_file_load(&w, in_scratch("app.db")));
		shm = slurp(in_scratch("app.db-shm"), &bytes);
		EXPECT(shm && bytes % WAL_INDEX_REGION_BYTES == 0);
		EXPECT(wal_index_read(shm, &h) == 0);
		EXPECT(h.mx_frame == w.frames && h.mx_frame > WAL_INDEX_FRAMES_FIRST + WAL_INDEX_FRAMES);
		EXPECT(wal_index_page_bytes(&h) == size[i] && !memcmp(h.salt, w.bytes + 16, 8));
		EXPECT(h.db_pages == wal_file_size(&w, w.frames));
		EXPECT(h.frame_checksum[0] == be32_at(wal_file_frame(&w, w.frames) + 16));
		EXPECT(wal_index_backfill(shm) == 0);
		newest = calloc(h.db_pages + 2, 4);
		for (uint32_t f = 1; f <= w.frames; f++)
			newest[wal_file_pgno(&w, f)] = f;
		for (uint32_t pgno = 1; pgno <= h.db_pages; pgno++) {
			uint32_t found = 0;

			for (uint32_t r = wal_index_region(h.mx_frame) + 1; !found && r-- > 0;) {
				uint8_t *at = shm + (size_t)r * WAL_INDEX_REGION_BYTES;
				_Atomic uint16_t *hash = wal_index_hashes(at);
				uint32_t entry;

				for (uint32_t k = wal_index_hash(pgno); (entry = hash[k]);
				     k = (k + 1) & (WAL_INDEX_HASH_SLOTS - 1))
					if (wal_index_pgnos(at, r)[entry - 1] == pgno &&
					    wal_index_zero(r) + entry > found)
						found = wal_index_zero(r) + entry;
			}
			EXPECT(found == newest[pgno]);
		}
		free(newest);
		free(shm);
		wal_file_free(&w);
		cli_close(&c);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

int main(void)
{
	run("wal_index_page_code", test_page_code);
	run("wal_index_publish", test_publish);
	run("wal_index_torn", test_torn);
	run("wal_index_version", test_version);
	run("wal_index_regions", test_regions);
	run("wal_index_stock", test_stock);
	return failed;
}
