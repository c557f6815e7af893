/* ring.h - batches on their way from one producer to many readers.
 *
 * The producer claims space, has the kernel read or receive straight into it, and publishes
 * whole batches. Each reader lends the kernel pointers into the ring and releases space when the
 * kernel is finished: for a zero-copy send that is the notification, not the completion.
 *
 *    oldest      released         sent         published      claimed
 *   ---|------------|---------------|--------------|-------------|-----> bytes since creation
 *      |  history   |  lent to the  |  ready to    |  being read |
 *      |            |    kernel     |    send      |    into     |
 *
 * Positions only grow and are masked only to index, so `published - oldest` is always the bytes
 * that can still be read, and never more than the size. `oldest` passes no attached reader.
 *
 * The ring knows one thing of a batch: it begins with its length in bytes (32 bits,
 * little-endian), which is a multiple of RING_ALIGN. So it can step from batch to batch.
 *
 * A reader in another process maps the ring read-only and is not waited for: it copies, then asks
 * ring_intact() whether the producer lapped it meanwhile. */
#ifndef WALWIRE_RING_H
#define WALWIRE_RING_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define RING_ALIGN       64u
#define RING_READERS_MAX 64

struct ring_shared {
	uint64_t size;				 /* bytes, a power of two; set once */
	_Alignas(64) _Atomic uint64_t published; /* W producer  R readers */
	_Alignas(64) _Atomic uint64_t oldest;	 /* W producer  R readers */
};

struct ring_reader {
	_Alignas(64) _Atomic uint64_t released; /* W its reader  R producer; stale is safe: the
						 * producer only thinks the ring fuller than it is */
	bool attached;				/* producer's thread only */
};

struct ring {
	struct ring_shared *shared;
	uint8_t *data; /* mapped twice in a row */
	struct ring_reader reader[RING_READERS_MAX];
};

/* `shared` and `data` are the segment's; `size` a power of two. */
void ring_init(struct ring *r, struct ring_shared *shared, uint8_t *data, uint64_t size);

static inline uint8_t *ring_at(const struct ring *r, uint64_t pos)
{
	return r->data + (pos & (r->shared->size - 1));
}

static inline uint64_t ring_published(const struct ring *r)
{
	/* S1: acquire, pairs with P1. */
	return atomic_load_explicit(&r->shared->published, memory_order_acquire);
}

static inline uint64_t ring_oldest(const struct ring *r)
{
	return atomic_load_explicit(&r->shared->oldest, memory_order_relaxed);
}

/* Length of the batch at `pos`, as it stands there. */
uint32_t ring_batch_bytes(const struct ring *r, uint64_t pos);

/* Producer: how many bytes after `published` may be written now, at most `want`. Gives up history
 * that no attached reader still needs. The space stays the producer's until ring_publish(). */
uint64_t ring_claim(struct ring *r, uint64_t want);

/* Producer: make all batches up to `end` readable. `end` is a batch boundary within the claim. */
static inline void ring_publish(struct ring *r, uint64_t end)
{
	assert(end > atomic_load_explicit(&r->shared->published, memory_order_relaxed));
	assert(end - ring_oldest(r) <= r->shared->size);
	/* P1: release, pairs with S1. Whoever sees `end` sees every byte before it. */
	atomic_store_explicit(&r->shared->published, end, memory_order_release);
}

/* Producer's thread: attach a reader that needs everything from `pos` on.
 * Its index; -ENOSPC when all are taken; -ESTALE when `pos` is no longer there. */
int ring_attach(struct ring *r, uint64_t pos);
void ring_detach(struct ring *r, int reader);

/* Where the slowest attached reader stands; `published` when there is none. Producer's thread. */
uint64_t ring_slowest(const struct ring *r);

/* Reader: everything before `pos` may be overwritten. */
static inline void ring_release(struct ring *r, int reader, uint64_t pos)
{
	struct ring_reader *rd = &r->reader[reader];

	assert(pos >= atomic_load_explicit(&rd->released, memory_order_relaxed));
	/* P2: release, pairs with S2: our reads are done before the producer may write there. */
	atomic_store_explicit(&rd->released, pos, memory_order_release);
}

/* Foreign reader: are the bytes at `pos`, which were just copied, still the ones that were
 * published there? */
bool ring_intact(const struct ring *r, uint64_t pos);

#endif
