/* segment.h - one shared-memory segment: a control area and a ring's bytes mapped twice in a row.
 *
 * The segment is a memfd (huge pages where there are any), so it vanishes with the last process
 * that maps it. Layout, in bytes from the start of the memfd:
 *
 *      0               struct segment_header
 *      header_bytes    the ring's bytes (ring_bytes, a power of two)
 *
 * In memory the ring's bytes stand twice, one copy after the other, so that any range of up to
 * ring_bytes is contiguous. Whoever attaches reads:
 *
 *  1. magic and version agree, else -EPROTO.
 *  2. header_bytes + ring_bytes is the size of the file, else -EPROTO.
 *  3. The mapping is read-only: a reader in another process cannot harm the producer. */
#ifndef WALWIRE_SEGMENT_H
#define WALWIRE_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "shm/counters.h"
#include "shm/ring.h"

#define SEGMENT_MAGIC    0x5249574c4157ull /* "WALWIR" */
#define SEGMENT_VERSION  1
#define SEGMENT_NAME_MAX 256 /* bytes, the final NUL included */
#define RING_BYTES_MIN   (4ull << 20)
#define RING_BYTES_MAX   (1ull << 34)

struct segment_header {
	uint64_t magic;
	uint32_t version;
	uint32_t page_size; /* of the database, bytes; 0 until it is known. W producer */
	uint64_t header_bytes;
	uint64_t ring_bytes;
	char name[SEGMENT_NAME_MAX];
	struct ring_shared ring;
	struct counters counters;
};

struct segment {
	struct segment_header *header;
	uint8_t *data; /* ring_bytes, twice in a row */
	uint64_t header_bytes;
	uint64_t ring_bytes;
	int fd;
	int huge; /* 1 when on huge pages */
};

/* Create a segment for `name` with `ring_bytes` (a power of two between the limits above),
 * its memory on the NUMA node of `cpu` (-1: wherever). All memory is touched, so that a machine
 * with too little says so here. 0; -EINVAL bad size or name; -ENOMEM and the like. */
int segment_create(struct segment *s, const char *name, uint64_t ring_bytes, int cpu);

/* Attach to the segment behind `fd`, read-only. The fd stays the caller's. */
int segment_attach(struct segment *s, int fd);

/* Another descriptor of the same memfd that can only be mapped for reading; -errno. */
int segment_readonly_fd(const struct segment *s);

void segment_close(struct segment *s);

#endif
