#include "shm/ring.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

void ring_init(struct ring *r, struct ring_shared *shared, uint8_t *data, uint64_t size)
{
	assert(size >= RING_ALIGN && (size & (size - 1)) == 0);
	memset(r, 0, sizeof(*r));
	r->shared = shared;
	r->data = data;
	shared->size = size;
	atomic_store_explicit(&shared->oldest, 0, memory_order_relaxed);
	atomic_store_explicit(&shared->published, 0, memory_order_release);
}

uint32_t ring_batch_bytes(const struct ring *r, uint64_t pos)
{
	uint32_t bytes;

	memcpy(&bytes, ring_at(r, pos), sizeof(bytes));
	return le32toh(bytes);
}

uint64_t ring_slowest(const struct ring *r)
{
	uint64_t least = atomic_load_explicit(&r->shared->published, memory_order_relaxed);

	for (int i = 0; i < RING_READERS_MAX; i++) {
		if (!r->reader[i].attached)
			continue;
		/* S2: acquire, pairs with P2. */
		uint64_t pos =
			atomic_load_explicit(&r->reader[i].released, memory_order_acquire);
		if (pos < least)
			least = pos;
	}
	return least;
}

uint64_t ring_claim(struct ring *r, uint64_t want)
{
	uint64_t size = r->shared->size;
	uint64_t published = atomic_load_explicit(&r->shared->published, memory_order_relaxed);
	uint64_t oldest = ring_oldest(r);

	assert(want <= size);
	if (published + want - oldest > size) {
		uint64_t keep = ring_slowest(r);

		while (oldest < keep && published + want - oldest > size)
			oldest += ring_batch_bytes(r, oldest);
		/* P3: pairs with S3. A foreign reader that finds `oldest` not beyond its batch
		 * after copying it copied bytes written before this store. */
		atomic_store_explicit(&r->shared->oldest, oldest, memory_order_relaxed);
		atomic_thread_fence(memory_order_seq_cst);
	}
	uint64_t free_bytes = size - (published - oldest);

	return want < free_bytes ? want : free_bytes;
}

int ring_attach(struct ring *r, uint64_t pos)
{
	uint64_t published = atomic_load_explicit(&r->shared->published, memory_order_relaxed);

	if (pos < ring_oldest(r) || pos > published)
		return -ESTALE;
	for (int i = 0; i < RING_READERS_MAX; i++) {
		struct ring_reader *rd = &r->reader[i];

		if (rd->attached)
			continue;
		atomic_store_explicit(&rd->released, pos, memory_order_relaxed);
		rd->attached = true;
		return i;
	}
	return -ENOSPC;
}

void ring_detach(struct ring *r, int reader)
{
	assert(reader >= 0 && reader < RING_READERS_MAX && r->reader[reader].attached);
	r->reader[reader].attached = false;
}

bool ring_intact(const struct ring *r, uint64_t pos)
{
	/* S3: pairs with P3. Our copy was loaded before `oldest` is. */
	atomic_thread_fence(memory_order_seq_cst);
	return ring_oldest(r) <= pos;
}
