#include "daemon/wal/wal.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return be32toh(v);
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, 4);
}

int wal_header_get(const uint8_t *from, struct wal_header *ret_h)
{
	uint32_t magic = get32(from);
	uint32_t sum[2] = {0, 0};
	struct wal_header h;

	if ((magic & ~1u) != WAL_MAGIC || get32(from + 4) != WAL_VERSION)
		return -EPROTO;
	h.big_endian_checksum = magic & 1;
	h.page_bytes = get32(from + 8);
	h.sequence = get32(from + 12);
	memcpy(h.salt, from + 16, 8);
	wal_checksum(sum, from, 24, h.big_endian_checksum);
	h.checksum[0] = get32(from + 24);
	h.checksum[1] = get32(from + 28);
	if (sum[0] != h.checksum[0] || sum[1] != h.checksum[1])
		return -EPROTO;
	if (h.page_bytes < 512 || h.page_bytes > 65536 || (h.page_bytes & (h.page_bytes - 1)))
		return -EPROTO;
	*ret_h = h;
	return 0;
}

void wal_header_put(uint8_t *to, struct wal_header *h)
{
	put32(to, WAL_MAGIC | (h->big_endian_checksum ? 1 : 0));
	put32(to + 4, WAL_VERSION);
	put32(to + 8, h->page_bytes);
	put32(to + 12, h->sequence);
	memcpy(to + 16, h->salt, 8);
	h->checksum[0] = h->checksum[1] = 0;
	wal_checksum(h->checksum, to, 24, h->big_endian_checksum);
	put32(to + 24, h->checksum[0]);
	put32(to + 28, h->checksum[1]);
}

void wal_frame_put(uint8_t *to, uint32_t pgno, uint32_t db_pages, const uint32_t salt[2],
		   const uint8_t *page, uint32_t page_bytes, uint32_t sum[2], bool big_endian)
{
	put32(to, pgno);
	put32(to + 4, db_pages);
	memcpy(to + 8, salt, 8);
	wal_checksum(sum, to, 8, big_endian);
	wal_checksum(sum, page, page_bytes, big_endian);
	put32(to + 16, sum[0]);
	put32(to + 20, sum[1]);
}
