/* wal_index.h - the -shm file: what is committed, who reads what, where a page's frames are.
 *
 * After SQLite's src/wal.c; native byte order. Mapped in regions of 32 KiB, through SQLite.
 *
 *     0  header copy 0, 48 bytes         96  nBackfill: frames copied into the database
 *    48  header copy 1                  100  mark[5]: snapshots of the read slots
 *                                       120  lock bytes 0..7: WRITER, CKPT, RECOVER, READ(0..4)
 *                                       128  nBackfillAttempted
 *
 *   header:  0 version 3007000   8 iChange, +1 per commit   12 isInit   13 bigEndCksum
 *           14 page size code   16 mxFrame, the last committed frame   20 nPage, database size
 *           24 checksum of frame mxFrame   32 salts   40 checksum of bytes 0..39
 *
 *   hash table of region r: aPgno at 136 (r = 0, 4062 entries) or 0 (4096 entries), aHash (8192
 *   16-bit slots) at 16384. Frame f is entry f - zero(r) of its region, counted from 1.
 *
 * W1  A writer stores copy 1, a barrier, then copy 0; a reader loads copy 0, a barrier, copy 1.
 *     Equal copies with isInit and a right checksum were published whole: that is the commit. */
#ifndef WALWIRE_WAL_INDEX_H
#define WALWIRE_WAL_INDEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WAL_INDEX_REGION_BYTES 32768
#define WAL_INDEX_VERSION      3007000u
#define WAL_INDEX_HEADER_BYTES 48
#define WAL_INDEX_HEADERS_END  136
#define WAL_INDEX_BACKFILL     96
#define WAL_INDEX_MARKS	       100
#define WAL_INDEX_ATTEMPTED    128
#define WAL_INDEX_HASH_OFFSET  16384
#define WAL_INDEX_HASH_SLOTS   8192
#define WAL_INDEX_FRAMES_FIRST 4062u /* entries of region 0 */
#define WAL_INDEX_FRAMES       4096u /* entries of any other */
#define WAL_MARK_UNUSED	       0xffffffffu

/* Lock numbers, as xShmLock() wants them. */
#define WAL_LOCK_WRITER	 0
#define WAL_LOCK_CKPT	 1
#define WAL_LOCK_RECOVER 2
#define WAL_LOCK_READ(i) (3 + (i))
#define WAL_READ_SLOTS	 5

struct wal_index_header {
	uint32_t version;
	uint32_t unused;
	uint32_t change;
	uint8_t is_init;
	uint8_t big_endian_checksum;
	uint16_t page_code;
	uint32_t mx_frame;
	uint32_t db_pages;
	uint32_t frame_checksum[2];
	uint32_t salt[2];
	uint32_t checksum[2];
};
_Static_assert(sizeof(struct wal_index_header) == WAL_INDEX_HEADER_BYTES, "SQLite's layout");

static inline uint32_t wal_index_page_bytes(const struct wal_index_header *h)
{
	return (h->page_code & 0xfe00u) + ((h->page_code & 1u) << 16);
}

static inline uint16_t wal_index_page_code(uint32_t page_bytes)
{
	return (uint16_t)((page_bytes & 0xff00u) | (page_bytes >> 16));
}

/* Read the published header of the mapped index. 0; -EAGAIN: it is being written, look again;
 * -EPROTO: another version of the format. */
int wal_index_read(const volatile void *index, struct wal_index_header *ret_h);

/* Fill in h's checksum and publish it: W1. */
void wal_index_publish(volatile void *index, struct wal_index_header *h);

static inline _Atomic uint32_t *wal_index_word(volatile void *index, uint32_t offset)
{
	return (_Atomic uint32_t *)((volatile uint8_t *)index + offset);
}

static inline uint32_t wal_index_backfill(volatile void *index)
{
	return atomic_load_explicit(wal_index_word(index, WAL_INDEX_BACKFILL),
				    memory_order_acquire);
}

/* How far the last checkpoint that began meant to come, in frames. */
static inline uint32_t wal_index_attempted(volatile void *index)
{
	return atomic_load_explicit(wal_index_word(index, WAL_INDEX_ATTEMPTED),
				    memory_order_relaxed);
}

/* Is a checkpoint at work, or did one end before its work was done? */
static inline bool wal_index_backfilling(volatile void *index)
{
	return wal_index_attempted(index) > wal_index_backfill(index);
}

/* The region of a frame, and the last frame before that region. */
static inline uint32_t wal_index_region(uint32_t frame)
{
	return (frame + WAL_INDEX_FRAMES - WAL_INDEX_FRAMES_FIRST - 1) / WAL_INDEX_FRAMES;
}

static inline uint32_t wal_index_zero(uint32_t region)
{
	return region ? WAL_INDEX_FRAMES_FIRST + (region - 1) * WAL_INDEX_FRAMES : 0;
}

static inline _Atomic uint32_t *wal_index_pgnos(volatile void *region_at, uint32_t region)
{
	return wal_index_word(region_at, region ? 0 : WAL_INDEX_HEADERS_END);
}

static inline _Atomic uint16_t *wal_index_hashes(volatile void *region_at)
{
	return (_Atomic uint16_t *)((volatile uint8_t *)region_at + WAL_INDEX_HASH_OFFSET);
}

static inline uint32_t wal_index_hash(uint32_t pgno)
{
	return (pgno * 383u) & (WAL_INDEX_HASH_SLOTS - 1);
}

#endif
