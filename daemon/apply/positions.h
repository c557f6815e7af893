/* positions.h - which position a state of the replica's own WAL stands for.
 *
 * A mapped file of POSITIONS entries of 64 bytes, written round and round. An entry is written
 * before the state it names can be seen; so whatever state a crash, a recovery by another program
 * or a power loss leaves behind, if it is one of ours it is found here, by the WAL's salts, its
 * last committed frame and that frame's checksum. If it is not found, the file is not as we left it.
 *
 *      0  sequence   8  txid   16  chain   24  timeline (u32)   28  mxFrame (u32)
 *     32  salts (8)  40  checksum of frame mxFrame (8)   48  zeros   56  check (XXH3 of 0..55) */
#ifndef WALWIRE_POSITIONS_H
#define WALWIRE_POSITIONS_H

#include <stdint.h>

#include "daemon/wal/wal_index.h"
#include "daemon/wire/batch.h"

#define POSITIONS 4096

struct positions {
	uint8_t *at;
	int fd;
	uint64_t sequence;
};

int positions_open(struct positions *p, const char *path);
void positions_close(struct positions *p);

/* `at` is the position of the state with these salts, frames and checksum. */
void positions_note(struct positions *p, struct position at, const uint32_t salt[2],
		    uint32_t mx_frame, const uint32_t sum[2]);

/* The position of the published state `h`. 0; -ENOENT. */
int positions_find(const struct positions *p, const struct wal_index_header *h,
		   struct position *ret_at);

/* The position noted last; 0; -ENOENT. */
int positions_last(const struct positions *p, struct position *ret_at);

/* Forget everything: another copy begins. */
void positions_clear(struct positions *p);

int positions_sync(const struct positions *p);

#endif
