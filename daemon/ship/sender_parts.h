/* sender_parts.h - what the sender's files have in common; nobody else needs it.
 *
 *   sender.c          the life of a connection, acks, lag, and who is cut loose
 *   sender_greet.c    the first message and its answer
 *   sender_out.c      sending: from the ring, with or without a copy, and giving the ring back
 *   sender_seeding.c  the steps of a seed */
#ifndef WALWIRE_SENDER_PARTS_H
#define WALWIRE_SENDER_PARTS_H

#include "daemon/ship/sender.h"

#define MS 1000000ull

/* sender.c */
void sender_enter(struct sender *s, enum sender_state state);

/* sender_greet.c: a whole first message is there. */
void greet_take(struct sender *s);

/* sender_out.c. Nothing may be under way: one send at a time. */
/* Bytes that are not in the ring, and stay until they are sent. */
void out_chunk(struct sender *s, const uint8_t *from, uint64_t bytes);
/* The first bytes of s->small. */
void out_small(struct sender *s, uint64_t bytes);
/* A batch header without frames: a mark of the seed, or a heartbeat. */
void out_header(struct sender *s, uint8_t kind, uint8_t flags, struct position at,
		uint64_t chain_before, uint32_t db_pages);
/* Whole batches from the ring, up to `limit` and SEND_BYTES_MAX. False: there are none. */
bool out_range(struct sender *s, uint64_t limit);

/* sender_seeding.c: the work done. */
unsigned int seeding_step(struct sender *s);

#endif
