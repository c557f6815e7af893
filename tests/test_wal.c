/* test_wal - headers and checksums, held against WALs that stock SQLite wrote and reads. */
#include <byteswap.h>

#include "tests/testing.h"

#include "daemon/wal/wal.h"

static const char *source(struct cli *c, struct wal_file *w, uint32_t page_bytes)
{
	cli_open(c, in_scratch("app.db"));
	cli_ask(c,
		"PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t "
		"VALUES(hex(randomblob(20000))); UPDATE t SET a = a || 'x'; DELETE FROM t; "
		"INSERT INTO t VALUES('last');", page_bytes);
	EXPECT(wal_file_load(w, in_scratch("app.db")) && w->frames > 5);
	return NULL;
}

/* Follow the checksums through a WAL, from its header to its last frame. */
static const char *test_checksum(void)
{
	static const uint32_t size[] = {512, 1024, 4096, 65536};

	for (int i = 0; i < 4; i++) {
		struct wal_file w;
		struct wal_header h;
		struct cli c;
		uint32_t sum[2];

		CALL(source(&c, &w, size[i]));
		EXPECT(wal_header_get(w.bytes, &h) == 0);
		EXPECT(h.page_bytes == size[i] && !memcmp(h.salt, w.bytes + 16, 8));
		memcpy(sum, h.checksum, sizeof(sum));
		for (uint32_t f = 1; f <= w.frames; f++) {
			const uint8_t *frame = wal_file_frame(&w, f);
			uint8_t ours[WAL_FRAME_HEADER];

			EXPECT(wal_frame_offset(f, size[i]) == (uint64_t)(frame - w.bytes));
			wal_frame_put(ours, wal_file_pgno(&w, f), wal_file_size(&w, f), h.salt,
				      frame + 24, size[i], sum, h.big_endian_checksum);
			EXPECT(!memcmp(ours, frame, WAL_FRAME_HEADER));
		}
		wal_file_free(&w);
		cli_close(&c);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* The same frames under our own header, in either byte order: stock SQLite recovers them all. */
static const char *test_written(void)
{
	for (int big = 0; big < 2; big++) {
		struct wal_file w;
		struct wal_header h;
		struct cli c;
		uint32_t sum[2];
		int fd;

		CALL(source(&c, &w, 4096));
		EXPECT(wal_header_get(w.bytes, &h) == 0);
		cli_end(&c, true);
		h = (struct wal_header){.big_endian_checksum = big, .page_bytes = 4096, .sequence = 9,
					.salt = {(uint32_t)rnd(), (uint32_t)rnd()}};
		wal_header_put(w.bytes, &h);
		memcpy(sum, h.checksum, sizeof(sum));
		for (uint32_t f = 1; f <= w.frames; f++) {
			uint8_t *frame = (uint8_t *)(uintptr_t)wal_file_frame(&w, f);

			wal_frame_put(frame, wal_file_pgno(&w, f), wal_file_size(&w, f), h.salt,
				      frame + 24, 4096, sum, big);
		}
		fd = open(in_scratch("app.db-wal"), O_WRONLY | O_CLOEXEC);
		EXPECT(pwrite(fd, w.bytes, w.total, 0) == (ssize_t)w.total);
		close(fd);
		cli_open(&c, in_scratch("app.db"));
		EXPECT(!strcmp(cli_ask(&c, "SELECT a FROM t;"), "last"));
		EXPECT(!strcmp(cli_ask(&c, "PRAGMA integrity_check;"), "ok"));
		wal_file_free(&w);
		cli_close(&c);
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

/* A header comes back as it was put; any flipped bit makes it none. */
static const char *test_header(void)
{
	for (int i = 0; i < 16; i++) {
		struct wal_header h = {.big_endian_checksum = i & 1, .page_bytes = 512u << i / 2,
				       .sequence = (uint32_t)rnd(),
				       .salt = {(uint32_t)rnd(), (uint32_t)rnd()}}, back;
		uint8_t bytes[WAL_HEADER_BYTES];

		wal_header_put(bytes, &h);
		EXPECT(wal_header_get(bytes, &back) == 0);
		EXPECT(back.big_endian_checksum == h.big_endian_checksum &&
		       back.page_bytes == h.page_bytes && back.sequence == h.sequence &&
		       !memcmp(back.salt, h.salt, 8) && !memcmp(back.checksum, h.checksum, 8));
		for (uint32_t bit = 0; bit < 8 * WAL_HEADER_BYTES; bit++) {
			bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
			EXPECT(wal_header_get(bytes, &back) == -EPROTO);
			bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
	}
	return NULL;
}

/* Sound in itself, with a page size that is none. */
static const char *test_page_size(void)
{
	static const uint32_t bad[] = {0, 1, 256, 513, 131072};
	uint8_t bytes[WAL_HEADER_BYTES];
	struct wal_header h, back;

	for (int i = 0; i < 5; i++) {
		h = (struct wal_header){.page_bytes = bad[i]};
		wal_header_put(bytes, &h);
		EXPECT(wal_header_get(bytes, &back) == -EPROTO);
	}
	return NULL;
}

/* In the format's own words, and however it is cut into pieces, the checksum is the same. */
static const char *test_pieces(void)
{
	static uint8_t data[24000];

	rnd_fill(data, sizeof(data));
	for (int way = 0; way < 400; way++) {
		bool big = way & 1;
		size_t bytes = 8 * below(sizeof(data) / 8 + 1), most = 1 + below(way % 4 ? 1000 : 20);
		uint32_t start[2] = {(uint32_t)rnd(), (uint32_t)rnd()}, words[2], pieces[2];

		memcpy(words, start, sizeof(words));
		memcpy(pieces, start, sizeof(pieces));
		for (size_t at = 0; at < bytes; at += 4) {
			uint32_t word = big ? be32_at(data + at) : bswap_32(be32_at(data + at));

			words[at / 4 % 2] += word + words[1 - at / 4 % 2];
		}
		for (size_t at = 0, n; at < bytes; at += n) {
			n = 8 * (size_t)(1 + below((uint32_t)most));
			if (at + n > bytes)
				n = bytes - at;
			wal_checksum(pieces, data + at, n, big);
		}
		EXPECT(!memcmp(words, pieces, sizeof(words)));
		wal_checksum(start, data, bytes, big);
		EXPECT(!memcmp(words, start, sizeof(words)));
	}
	return NULL;
}

int main(void)
{
	run("wal_checksum", test_checksum);
	run("wal_written", test_written);
	run("wal_header", test_header);
	run("wal_page_size", test_page_size);
	run("wal_pieces", test_pieces);
	return failed;
}
