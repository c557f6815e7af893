/* wal.h - the -wal file: its header, its frames, its checksum.
 *
 * After https://sqlite.org/fileformat2.html#walformat. All numbers big-endian.
 *
 *   WAL header, 32 bytes             frame header, 24 bytes, then one page
 *     0  magic 0x377f0682 | big        0  pgno, 1-based
 *     4  version 3007000               4  database size in pages if this ends a commit, else 0
 *     8  page size                     8  salt 1, salt 2 (those of the WAL header)
 *    12  checkpoint sequence          16  checksum 1, checksum 2
 *    16  salt 1, salt 2
 *    24  checksum of bytes 0..23
 *
 * Frame f (1-based) stands at 32 + (f-1) * (24 + page size). The checksum of a frame covers its
 * first 8 header bytes and its page and goes on from the frame before; the first goes on from
 * the WAL header's. Words are read little-endian when bit 0 of the magic is clear.
 *
 * None of this says what is committed: only the published wal-index header does (wal_index.h). */
#ifndef WALWIRE_WAL_H
#define WALWIRE_WAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WAL_HEADER_BYTES 32u
#define WAL_FRAME_HEADER 24u
#define WAL_MAGIC	 0x377f0682u
#define WAL_VERSION	 3007000u

struct wal_header {
	bool big_endian_checksum;
	uint32_t page_bytes;
	uint32_t sequence;
	uint32_t salt[2]; /* as the eight bytes stand in the file, in native words */
	uint32_t checksum[2];
};

static inline uint64_t wal_frame_offset(uint32_t frame, uint32_t page_bytes)
{
	return WAL_HEADER_BYTES + (uint64_t)(frame - 1) * (WAL_FRAME_HEADER + page_bytes);
}

/* Go on with the checksum in sum[2] over `bytes` (a multiple of 8) at `data`. */
void wal_checksum(uint32_t sum[2], const void *data, size_t bytes, bool big_endian);

/* Check and read the 32 bytes at `from`. 0; -EPROTO when they are not a WAL header. */
int wal_header_get(const uint8_t *from, struct wal_header *ret_h);

/* Write `h` to the 32 bytes at `to`; fills in h->checksum. */
void wal_header_put(uint8_t *to, struct wal_header *h);

/* Write a frame header for `page` to the 24 bytes at `to`; sum[2] goes on. */
void wal_frame_put(uint8_t *to, uint32_t pgno, uint32_t db_pages, const uint32_t salt[2],
		   const uint8_t *page, uint32_t page_bytes, uint32_t sum[2], bool big_endian);

#endif
