#include "daemon/wire/message.h"

#include <errno.h>
#include <string.h>
#include <xxh_x86dispatch.h>

#define ACK_MAGIC 0x4b434157u

static const char magic[8] = {'w', 'a', 'l', 'w', 'i', 'r', 'e', '\n'};

static void put(uint8_t *to, const void *le, size_t n)
{
	memcpy(to, le, n);
}

static void put16(uint8_t *to, uint16_t v)
{
	v = htole16(v);
	put(to, &v, 2);
}

static void put32(uint8_t *to, uint32_t v)
{
	v = htole32(v);
	put(to, &v, 4);
}

static void put64(uint8_t *to, uint64_t v)
{
	v = htole64(v);
	put(to, &v, 8);
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return le16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return le64toh(v);
}

void hello_put(uint8_t to[HELLO_BYTES], const struct hello *h)
{
	memset(to, 0, HELLO_BYTES);
	memcpy(to, magic, sizeof(magic));
	put16(to + 8, h->version);
	put16(to + 10, h->what);
	put32(to + 12, h->page_bytes);
	put32(to + 16, h->at.timeline);
	put32(to + 20, h->names);
	put64(to + 24, h->at.txid);
	put64(to + 32, h->at.chain);
	memcpy(to + 40, h->db_id, 16);
	memcpy(to + 56, h->text, strnlen(h->text, WIRE_NAME_BYTES - 1));
	put64(to + 336, XXH3_64bits_dispatch(to, 336));
}

int hello_get(const uint8_t from[HELLO_BYTES], struct hello *ret_h)
{
	struct hello h;

	if (memcmp(from, magic, sizeof(magic)))
		return -EPROTO;
	if (get16(from + 8) != WIRE_VERSION) {
		ret_h->version = get16(from + 8);
		return -EPROTONOSUPPORT;
	}
	if (get64(from + 336) != XXH3_64bits_dispatch(from, 336) || from[56 + 255] != 0)
		return -EPROTO;
	h.version = WIRE_VERSION;
	h.what = get16(from + 10);
	h.page_bytes = get32(from + 12);
	h.at.timeline = get32(from + 16);
	h.names = get32(from + 20);
	h.at.txid = get64(from + 24);
	h.at.chain = get64(from + 32);
	memcpy(h.db_id, from + 40, 16);
	memcpy(h.text, from + 56, WIRE_NAME_BYTES);
	if (h.names > DATABASES_MAX)
		return -EPROTO;
	if (h.page_bytes && (h.page_bytes < PAGE_BYTES_MIN || h.page_bytes > PAGE_BYTES_MAX ||
			     (h.page_bytes & (h.page_bytes - 1))))
		return -EPROTO;
	*ret_h = h;
	return 0;
}

void ack_put(uint8_t to[ACK_BYTES], const struct ack *a)
{
	memset(to, 0, ACK_BYTES);
	put32(to, ACK_MAGIC);
	put64(to + 8, a->received);
	put64(to + 16, a->applied);
	put64(to + 24, a->durable);
	put64(to + 32, a->applied_time_ns);
	put64(to + 56, XXH3_64bits_dispatch(to, 56));
}

int ack_get(const uint8_t from[ACK_BYTES], struct ack *ret_a)
{
	struct ack a;

	if (get32(from) != ACK_MAGIC || get64(from + 56) != XXH3_64bits_dispatch(from, 56))
		return -EPROTO;
	a.received = get64(from + 8);
	a.applied = get64(from + 16);
	a.durable = get64(from + 24);
	a.applied_time_ns = get64(from + 32);
	*ret_a = a;
	return 0;
}

bool name_is_plain(const char *name)
{
	size_t n = strnlen(name, DB_NAME_MAX);

	if (n == 0 || n >= DB_NAME_MAX - 8 || name[0] == '.')
		return false;
	for (size_t i = 0; i < n; i++)
		if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f)
			return false;
	return true;
}
