/* counters.h - every counter of a node, declared once.
 *
 * X(name, unit, sentence). Status output and the manual are made from this list. Each counter
 * is one 64-bit atomic in the segment; W the thread that does the work, R anyone, relaxed. */
#ifndef WALWIRE_COUNTERS_H
#define WALWIRE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define WALWIRE_COUNTERS(X)                                                                        \
	X(commits, "commits", "commits that passed through the ring")                              \
	X(frames, "frames", "frames that passed through the ring")                                 \
	X(bytes, "bytes", "bytes published in the ring, headers and padding included")             \
	X(batches, "batches", "batches published in the ring")                                     \
	X(ring_full, "times", "times the producer found the ring full and waited")                 \
	X(wal_restarts, "times", "lives of the WAL that began while attached")                     \
	X(gates, "times", "times the gate was opened so that the WAL could restart")               \
	X(weak_pins, "times", "times every read slot was taken and a reader's slot was shared")    \
	X(header_retries, "times", "times the wal-index header was being written while read")      \
	X(recoveries, "times", "times the wal-index was unreadable and SQLite rebuilt it")         \
	X(tap_wakeups, "times", "times a tap event woke the daemon")                               \
	X(tap_dropped, "events", "tap events the kernel could not deliver")                        \
	X(cycle_ns_max, "ns", "longest cycle of the pinned loop")                                  \
	X(reads, "reads", "io_uring reads of the WAL")                                             \
	X(sends, "sends", "sends handed to the kernel")                                            \
	X(sends_zc, "sends", "of these, zero-copy sends")                                          \
	X(sends_zc_copied, "sends", "zero-copy sends that the kernel copied after all")            \
	X(readers_cut, "times", "replicas cut loose because they held the ring too long")          \
	X(seeds, "times", "full copies begun")                                                     \
	X(seed_bytes, "bytes", "bytes of full copies")                                             \
	X(bad_batches, "batches", "batches refused: header, hash or chain did not agree")          \
	X(bad_messages, "messages", "messages refused: not walwire, or out of bounds")             \
	X(reconnects, "times", "connections to the source begun")                                  \
	X(checkpoints, "times", "checkpoints of the replica's own file")                           \
	X(checkpoints_busy, "times", "checkpoints that a reader's snapshot kept from finishing")   \
	X(replica_wal_bytes, "bytes", "size of the replica's own WAL")                             \
	X(apply_retries, "times", "writes of the replica's WAL that failed and were tried again")

enum counter_id {
#define X(name, unit, sentence) COUNTER_##name,
	WALWIRE_COUNTERS(X)
#undef X
		COUNTER_COUNT
};

struct counters {
	_Atomic uint64_t value[COUNTER_COUNT];
};

static inline void counter_add(struct counters *c, enum counter_id id, uint64_t n)
{
	/* One writer: a load and a store are enough, and cheaper than a locked add. */
	uint64_t v = atomic_load_explicit(&c->value[id], memory_order_relaxed);

	atomic_store_explicit(&c->value[id], v + n, memory_order_relaxed);
}

static inline void counter_set(struct counters *c, enum counter_id id, uint64_t n)
{
	atomic_store_explicit(&c->value[id], n, memory_order_relaxed);
}

static inline void counter_max(struct counters *c, enum counter_id id, uint64_t n)
{
	if (n > atomic_load_explicit(&c->value[id], memory_order_relaxed))
		atomic_store_explicit(&c->value[id], n, memory_order_relaxed);
}

static inline uint64_t counter_get(const struct counters *c, enum counter_id id)
{
	return atomic_load_explicit(&c->value[id], memory_order_relaxed);
}

#endif
