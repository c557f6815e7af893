#include "daemon/wire/batch.h"

#include <errno.h>
#include <xxh_x86dispatch.h>

/* Debian's XXH3_64bits() is the portable one; the dispatching one is three times faster. */
static uint64_t hash64(const void *data, size_t bytes)
{
	return XXH3_64bits_dispatch(data, bytes);
}

void batch_header_put(uint8_t *to, struct batch_header *h)
{
	struct batch_header w = {
		.bytes = htole32(h->bytes),
		.magic = BATCH_MAGIC,
		.page_shift = h->page_shift,
		.kind = h->kind,
		.flags = h->flags,
		.frames = htole32(h->frames),
		.commits = htole32(h->commits),
		.txid = htole64(h->txid),
		.chain_before = htole64(h->chain_before),
		.chain = htole64(h->chain),
		.time_ns = htole64(h->time_ns),
		.db_pages = htole32(h->db_pages),
		.timeline = htole32(h->timeline),
	};

	h->magic = BATCH_MAGIC;
	h->check = hash64(&w, 56);
	w.check = htole64(h->check);
	memcpy(to, &w, sizeof(w));
}

/* Marks and heartbeats carry no frames; a batch carries one mark at most. */
static bool flags_fit(const struct batch_header *h)
{
	switch (h->kind) {
	case BATCH_SEED:
		return h->flags == 0 || ((h->flags == BATCH_SEED_BEGIN || h->flags == BATCH_SEED_END) &&
					 h->frames == 0);
	case BATCH_HEARTBEAT:
		return h->flags == 0 && h->frames == 0;
	default:
		return h->flags == 0;
	}
}

int batch_header_get(const uint8_t *from, struct batch_header *ret_h)
{
	struct batch_header w, h;

	memcpy(&w, from, sizeof(w));
	h = (struct batch_header){
		.bytes = le32toh(w.bytes),
		.magic = w.magic,
		.page_shift = w.page_shift,
		.kind = w.kind,
		.flags = w.flags,
		.frames = le32toh(w.frames),
		.commits = le32toh(w.commits),
		.txid = le64toh(w.txid),
		.chain_before = le64toh(w.chain_before),
		.chain = le64toh(w.chain),
		.time_ns = le64toh(w.time_ns),
		.db_pages = le32toh(w.db_pages),
		.timeline = le32toh(w.timeline),
		.check = le64toh(w.check),
	};
	if (h.magic != BATCH_MAGIC || h.check != hash64(&w, 56))
		return -EPROTO;
	if (h.page_shift < 9 || h.page_shift > 16 || h.kind < BATCH_COMMIT ||
	    h.kind > BATCH_HEARTBEAT)
		return -EPROTO;
	if (h.frames > batch_frames_max(1u << h.page_shift) || h.commits > h.frames ||
	    h.commits > h.txid || !flags_fit(&h) || h.bytes != batch_bytes(h.frames, 1u << h.page_shift))
		return -EPROTO;
	*ret_h = h;
	return 0;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ull;
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ull;
	return x ^ (x >> 32);
}

uint64_t page_hash(uint32_t pgno, const uint8_t *page, uint32_t page_bytes)
{
	return mix(hash64(page, page_bytes) + pgno * 0x9e3779b97f4a7c15ull);
}

uint64_t chain_fold(uint64_t chain, const uint8_t *frame, uint64_t hash)
{
	struct {
		uint64_t chain, hash;
		uint8_t pgno_and_size[8];
	} link = {.chain = htole64(chain), .hash = htole64(hash)};

	memcpy(link.pgno_and_size, frame, 8);
	return hash64(&link, sizeof(link));
}

/* Rule 5, of a frame and of the padding. */
static bool frame_stripped(const uint8_t *frame)
{
	uint64_t salts, sums;

	memcpy(&salts, frame + 8, 8);
	memcpy(&sums, frame + 16, 8);
	return !(salts | sums);
}

static bool padding_is_zero(const uint8_t *batch, const struct batch_header *h)
{
	uint32_t at = BATCH_HEADER_BYTES + h->frames * batch_frame_bytes(1u << h->page_shift);

	while (at < h->bytes && batch[at] == 0)
		at++;
	return at >= h->bytes;
}

int batch_check(const uint8_t *batch, const struct batch_header *h, uint64_t *ret_hashes)
{
	uint32_t page_bytes = 1u << h->page_shift;
	uint32_t commits = 0, db_pages = 0;
	uint64_t chain = h->chain_before;

	if (h->kind == BATCH_HEARTBEAT || (h->kind == BATCH_SEED && h->flags))
		return h->frames ? -EBADMSG : 0;
	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(batch, i, page_bytes);
		uint32_t pgno = frame_pgno(frame);
		uint64_t hash = page_hash(pgno, frame + FRAME_HEADER_BYTES, page_bytes);

		if (pgno == 0 || !frame_stripped(frame))
			return -EBADMSG;
		if (frame_db_pages(frame)) {
			commits++;
			db_pages = frame_db_pages(frame);
		}
		if (ret_hashes)
			ret_hashes[i] = hash;
		chain = chain_fold(chain, frame, hash);
	}
	if (commits != h->commits || chain != h->chain || !padding_is_zero(batch, h))
		return -EBADMSG;
	if (commits && (db_pages != h->db_pages ||
			!frame_db_pages(batch_frame(batch, h->frames - 1, page_bytes))))
		return -EBADMSG;
	return h->kind == BATCH_SEED && commits ? -EBADMSG : 0;
}
