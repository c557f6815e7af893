#include "daemon/wal/wal_index.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* The header's own checksum is over native words, from zero. */
static void header_checksum(const struct wal_index_header *h, uint32_t sum[2])
{
	const uint32_t *word = (const uint32_t *)(const void *)h;

	sum[0] = sum[1] = 0;
	for (int i = 0; i < 10; i += 2) {
		sum[0] += word[i] + sum[1];
		sum[1] += word[i + 1] + sum[0];
	}
}

static void copy_words(volatile uint32_t *to, const volatile uint32_t *from)
{
	for (int i = 0; i < WAL_INDEX_HEADER_BYTES / 4; i++)
		to[i] = from[i];
}

int wal_index_read(const volatile void *index, struct wal_index_header *ret_h)
{
	const volatile uint32_t *at = index;
	struct wal_index_header a, b;
	uint32_t sum[2];

	copy_words((uint32_t *)(void *)&a, at);
	/* W1: copy 0 before copy 1. */
	atomic_thread_fence(memory_order_seq_cst);
	copy_words((uint32_t *)(void *)&b, at + WAL_INDEX_HEADER_BYTES / 4);
	if (memcmp(&a, &b, sizeof(a)) || !a.is_init)
		return -EAGAIN;
	header_checksum(&a, sum);
	if (sum[0] != a.checksum[0] || sum[1] != a.checksum[1])
		return -EAGAIN;
	if (a.version != WAL_INDEX_VERSION)
		return -EPROTO;
	*ret_h = a;
	return 0;
}

void wal_index_publish(volatile void *index, struct wal_index_header *h)
{
	volatile uint32_t *at = index;

	h->version = WAL_INDEX_VERSION;
	h->is_init = 1;
	header_checksum(h, h->checksum);
	/* W1: copy 1 before copy 0. */
	atomic_thread_fence(memory_order_seq_cst);
	copy_words(at + WAL_INDEX_HEADER_BYTES / 4, (const uint32_t *)(const void *)h);
	atomic_thread_fence(memory_order_seq_cst);
	copy_words(at, (const uint32_t *)(const void *)h);
	atomic_thread_fence(memory_order_seq_cst);
}
