/* pin.h - why no commit can be overwritten before it was read: pin and gate.
 *
 * A shared lock on any read slot 1..4 forbids the WAL to restart. If the slot's mark says "unused",
 * it limits no checkpoint either. That is the PIN: the application may write and checkpoint as it
 * likes, and frames stay where they are. When all frames have been read and all are backfilled, we
 * hold READ(0) instead: the GATE. It blocks any backfill, so at most one restart can happen before
 * we look again. The two overlap at every hand-over, so a frame is never unprotected.
 *
 *              all read, all backfilled, header unchanged
 *      PINNED ------------------------------------------> GATED
 *        ^                  header changed                  |
 *        +--------------------------------------------------+
 *
 * Why nothing is missed: while PINNED no restart is possible. While GATED either frames are
 * appended after those we have read, and then no restart is possible (they are not backfilled and
 * cannot be); or one restart happens, and then its frames forbid a second for the same reason. A
 * restart whose frames were all rolled back may be followed by another, and loses nothing.
 *
 * If readers hold all slots whose mark could be made "unused", a reader's slot is shared for the
 * time being (a weak pin): as safe, but its mark limits checkpoints. */
#ifndef WALWIRE_PIN_H
#define WALWIRE_PIN_H

#include "daemon/wal/conn.h"

enum pin_state { PIN_NONE, PIN_PINNED, PIN_GATED };

struct pin {
	struct conn *conn;
	enum pin_state state;
	int slot; /* 1..4 while PINNED */
	bool weak;
};

void pin_init(struct pin *p, struct conn *conn);

/* NONE -> PINNED. 0; -EBUSY: all slots are being changed this moment, try again. */
int pin_take(struct pin *p);

/* PINNED -> GATED if the published header still is `h` and everything is backfilled; the caller
 * has read everything up to h->mx_frame. True when the gate is open. */
bool pin_gate(struct pin *p, const struct wal_index_header *h);

/* GATED -> PINNED. The caller reads the header again afterwards. 0; -EBUSY: still gated. */
int pin_ungate(struct pin *p);

/* PINNED, weak: try for a strong one. */
void pin_strengthen(struct pin *p);

/* Let go of everything. */
void pin_drop(struct pin *p);

#endif
