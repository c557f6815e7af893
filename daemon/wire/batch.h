/* batch.h - the batch: what lies in the ring and what crosses the wire, the same bytes.
 *
 * All numbers little-endian. A batch is a 64-byte header, `frames` frames, and zeros up to a
 * multiple of 64. A frame has the shape of a WAL frame (24-byte header, then the page;
 * https://sqlite.org/fileformat2.html#walformat): pgno and the database size at offsets 0 and 4,
 * big-endian, then zeros: salts and checksums belong to the WAL it was read from.
 *
 *   offset  size
 *      0     4   bytes         length of the whole batch, padding included
 *      4     1   magic         0x57
 *      5     1   page_shift    log2 of the page size, 9..16
 *      6     1   kind          enum batch_kind
 *      7     1   flags         BATCH_*
 *      8     4   frames
 *     12     4   commits       frames of this batch that end a commit
 *     16     8   txid          of the last commit that is complete at the end of this batch
 *     24     8   chain_before  the chain before the first frame
 *     32     8   chain         the chain after the last frame
 *     40     8   time_ns       primary's CLOCK_MONOTONIC when the frames were captured
 *     48     4   db_pages      size of the database after that commit; heartbeat: see below
 *     52     4   timeline
 *     56     8   check         XXH3 (64 bits) of bytes 0..55
 *
 * Valid when
 *  1. magic is 0x57, check agrees, page_shift and kind are in range; flags are 0 or one mark of a
 *     seed; marks and heartbeats have no frames;
 *  2. bytes == 64 + frames * (24 + page size), rounded up to 64, and at most BATCH_BYTES_MAX;
 *  3. every pgno is 1 or more; `commits` frames have a nonzero size; if there are any, the last
 *     frame is one of them and its size is db_pages;
 *  4. folding every frame into chain_before gives chain (chain_fold());
 *  5. what is said to be zeros is: so there is no bit whose damage would not be noticed.
 *
 * The chain is folded frame by frame, so it does not depend on how frames were cut into batches:
 * equal chains after equal txids mean equal histories. One check thus proves content, order and
 * continuity at once.
 *
 * Kinds. A commit batch carries whole commits, or a part of one (commits == 0) that stays invisible
 * until the rest has come; the first commit of a batch may be the rest of such a one. A seed fills
 * a database: a batch with BATCH_SEED_BEGIN (no frames; its txid and chain are where commits go
 * on), batches of pages whose chain is the seed's own, folded from zero, with commit batches between
 * them, and one with BATCH_SEED_END (no frames; txid, chain and db_pages of the state that is now
 * complete; chain_before is the seed's own chain, so that no page of it can be missing). Seed frames
 * carry a size of zero. A heartbeat (no frames) tells the txid captured, chain is the lag in ns that
 * the sender measured for this peer, BATCH_LAG_UNKNOWN if none; it ends at the receiver and never
 * stands in a ring. */
#ifndef WALWIRE_BATCH_H
#define WALWIRE_BATCH_H

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define BATCH_HEADER_BYTES 64u
#define BATCH_MAGIC	   0x57
#define BATCH_BYTES_MAX	   (1u << 20)
#define FRAME_HEADER_BYTES 24u
#define PAGE_BYTES_MIN	   512u
#define PAGE_BYTES_MAX	   65536u
#define BATCH_LAG_UNKNOWN  UINT64_MAX

enum batch_kind { BATCH_COMMIT = 1, BATCH_SEED = 2, BATCH_HEARTBEAT = 3 };

#define BATCH_SEED_BEGIN 0x01u
#define BATCH_SEED_END	 0x02u

struct batch_header {
	uint32_t bytes;
	uint8_t magic;
	uint8_t page_shift;
	uint8_t kind;
	uint8_t flags;
	uint32_t frames;
	uint32_t commits;
	uint64_t txid;
	uint64_t chain_before;
	uint64_t chain;
	uint64_t time_ns;
	uint32_t db_pages;
	uint32_t timeline;
	uint64_t check;
};
_Static_assert(sizeof(struct batch_header) == BATCH_HEADER_BYTES, "the wire format is fixed");

/* A position in a database's history. */
struct position {
	uint32_t timeline;
	uint64_t txid;
	uint64_t chain;
};

static inline uint32_t batch_frame_bytes(uint32_t page_bytes)
{
	return FRAME_HEADER_BYTES + page_bytes;
}

/* Length of a batch of `frames` frames, padding included. */
static inline uint64_t batch_bytes(uint32_t frames, uint32_t page_bytes)
{
	uint64_t n = BATCH_HEADER_BYTES + (uint64_t)frames * batch_frame_bytes(page_bytes);

	return (n + 63) & ~(uint64_t)63;
}

/* Most frames a batch can carry. */
static inline uint32_t batch_frames_max(uint32_t page_bytes)
{
	return (BATCH_BYTES_MAX - BATCH_HEADER_BYTES) / batch_frame_bytes(page_bytes);
}

static inline const uint8_t *batch_frame(const uint8_t *batch, uint32_t i, uint32_t page_bytes)
{
	return batch + BATCH_HEADER_BYTES + (uint64_t)i * batch_frame_bytes(page_bytes);
}

static inline uint32_t frame_pgno(const uint8_t *frame)
{
	uint32_t v;

	memcpy(&v, frame, 4);
	return be32toh(v);
}

/* The database size in pages if the frame ends a commit, else 0. */
static inline uint32_t frame_db_pages(const uint8_t *frame)
{
	uint32_t v;

	memcpy(&v, frame + 4, 4);
	return be32toh(v);
}

/* Write `h` (host order; magic and check are filled in) to the 64 bytes at `to`. */
void batch_header_put(uint8_t *to, struct batch_header *h);

/* Read and check the header at `from`: rules 1 and 2. 0; -EPROTO. */
int batch_header_get(const uint8_t *from, struct batch_header *ret_h);

/* Make zeros of a frame's salts and checksums (rule 5). */
static inline void frame_strip(uint8_t *frame)
{
	memset(frame + 8, 0, FRAME_HEADER_BYTES - 8);
}

/* The hash of one page, its number included: what the page table stores. */
uint64_t page_hash(uint32_t pgno, const uint8_t *page, uint32_t page_bytes);

/* The chain after one more frame. */
uint64_t chain_fold(uint64_t chain, const uint8_t *frame, uint64_t hash);

/* Check rules 3 to 5 of a whole batch whose header was read from it. The page_hash() of each frame
 * comes back in ret_hashes[h->frames], unless that is NULL. 0; -EBADMSG. */
int batch_check(const uint8_t *batch, const struct batch_header *h, uint64_t *ret_hashes);

#endif
