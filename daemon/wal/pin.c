#include "daemon/wal/pin.h"

#include <errno.h>
#include <string.h>

#define GATE_TRIES 32 /* for the read slot; about a microsecond each */

void pin_init(struct pin *p, struct conn *conn)
{
	memset(p, 0, sizeof(*p));
	p->conn = conn;
}

/* A shared lock on a slot whose mark is "unused". Slot 1 is left alone: SQLite keeps it as
 * everybody's fallback. */
static int take_strong(struct pin *p, int *ret_slot)
{
	for (int i = WAL_READ_SLOTS - 1; i >= 2; i--) {
		_Atomic uint32_t *mark =
			wal_index_word(p->conn->index, WAL_INDEX_MARKS + 4 * (uint32_t)i);

		if (conn_lock_exclusive(p->conn, WAL_LOCK_READ(i), 1))
			continue;
		atomic_store_explicit(mark, WAL_MARK_UNUSED, memory_order_seq_cst);
		conn_unlock_exclusive(p->conn, WAL_LOCK_READ(i), 1);
		/* Between the two a reader may have taken the slot for its snapshot. */
		if (conn_lock_shared(p->conn, WAL_LOCK_READ(i)))
			continue;
		if (atomic_load_explicit(mark, memory_order_seq_cst) == WAL_MARK_UNUSED) {
			*ret_slot = i;
			return 0;
		}
		conn_unlock_shared(p->conn, WAL_LOCK_READ(i));
	}
	return -EBUSY;
}

static int take_weak(struct pin *p, int *ret_slot)
{
	for (int i = WAL_READ_SLOTS - 1; i >= 1; i--) {
		if (conn_lock_shared(p->conn, WAL_LOCK_READ(i)) == 0) {
			*ret_slot = i;
			return 0;
		}
	}
	return -EBUSY;
}

static int take_any(struct pin *p)
{
	int slot;

	p->weak = false;
	if (take_strong(p, &slot)) {
		if (take_weak(p, &slot))
			return -EBUSY;
		p->weak = true;
	}
	p->slot = slot;
	return 0;
}

int pin_take(struct pin *p)
{
	int err = take_any(p);

	if (!err)
		p->state = PIN_PINNED;
	return err;
}

bool pin_gate(struct pin *p, const struct wal_index_header *h)
{
	struct wal_index_header now;

	if (wal_index_backfill(p->conn->index) != h->mx_frame)
		return false;
	/* A checkpointer says what it has done just before it lets go of the slot. */
	for (int tries = 0; conn_lock_shared(p->conn, WAL_LOCK_READ(0)); tries++)
		if (tries == GATE_TRIES || wal_index_backfill(p->conn->index) != h->mx_frame)
			return false;
	atomic_thread_fence(memory_order_seq_cst);
	if (wal_index_read(p->conn->index, &now) || memcmp(&now, h, sizeof(now)) ||
	    wal_index_backfill(p->conn->index) != h->mx_frame) {
		conn_unlock_shared(p->conn, WAL_LOCK_READ(0));
		return false;
	}
	conn_unlock_shared(p->conn, WAL_LOCK_READ(p->slot));
	p->slot = 0;
	p->state = PIN_GATED;
	return true;
}

int pin_ungate(struct pin *p)
{
	int err = take_any(p);

	if (err)
		return err;
	/* From here on no restart is possible, so READ(0) has done its work. */
	conn_unlock_shared(p->conn, WAL_LOCK_READ(0));
	p->state = PIN_PINNED;
	return 0;
}

void pin_strengthen(struct pin *p)
{
	int old = p->slot, slot;

	if (p->state != PIN_PINNED || !p->weak || take_strong(p, &slot))
		return;
	conn_unlock_shared(p->conn, WAL_LOCK_READ(old));
	p->slot = slot;
	p->weak = false;
}

void pin_drop(struct pin *p)
{
	if (p->state == PIN_PINNED)
		conn_unlock_shared(p->conn, WAL_LOCK_READ(p->slot));
	else if (p->state == PIN_GATED)
		conn_unlock_shared(p->conn, WAL_LOCK_READ(0));
	p->state = PIN_NONE;
}
