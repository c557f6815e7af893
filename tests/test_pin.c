/* test_pin - what a pin forbids and a gate allows, to a writer in another process. */
#include "tests/testing.h"

#include "daemon/wal/pin.h"

struct place {
	struct cli app;
	struct conn conn;
	struct pin pin;
};

static const char *place_open(struct place *p)
{
	const char *path = in_scratch("app.db");
	char why[256];

	memset(p, 0, sizeof(*p));
	cli_open(&p->app, path);
	cli_ask(&p->app, "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); INSERT INTO t VALUES(1, 1);");
	EXPECT(conn_open(&p->conn, path, CONN_BUSY_MS, why, sizeof(why)) == CONN_OK);
	pin_init(&p->pin, &p->conn);
	return NULL;
}

static void place_close(struct place *p)
{
	pin_drop(&p->pin);
	conn_close(&p->conn);
	cli_close(&p->app);
}

static struct wal_index_header header(struct place *p)
{
	struct wal_index_header h;

	memset(&h, 0xee, sizeof(h));
	wal_index_read(p->conn.index, &h);
	return h;
}

static void commit(struct place *p)
{
	cli_ask(&p->app, "INSERT INTO t VALUES(2, 'x');");
}

/* "busy|frames|backfilled" */
static const char *checkpoint(struct place *p, const char *mode)
{
	return cli_ask(&p->app, "PRAGMA wal_checkpoint(%s);", mode);
}

static bool backfilled(struct place *p)
{
	checkpoint(p, "PASSIVE");
	return wal_index_backfill(p->conn.index) == header(p).mx_frame;
}

static bool same_life(const struct wal_index_header *a, const struct wal_index_header *b)
{
	return memcmp(a->salt, b->salt, sizeof(a->salt)) == 0;
}

/* A commit after `before`: was it appended, in the same life? */
static bool appends(struct place *p)
{
	struct wal_index_header before = header(p), after;

	commit(p);
	after = header(p);
	return same_life(&before, &after) && after.mx_frame > before.mx_frame;
}

static bool restarts(struct place *p)
{
	struct wal_index_header before = header(p), after;

	commit(p);
	after = header(p);
	return !same_life(&before, &after) && after.mx_frame > 0;
}

/* Without a pin a backfilled WAL begins anew with the next commit; this is what is to be forbidden. */
static const char *test_without(void)
{
	struct place p;

	CALL(place_open(&p));
	EXPECT(appends(&p));
	EXPECT(backfilled(&p));
	EXPECT(restarts(&p));
	place_close(&p);
	return NULL;
}

/* Pinned: commits append even when all is backfilled, backfill itself is free. */
static const char *test_pinned(void)
{
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0 && p.pin.state == PIN_PINNED && !p.pin.weak);
	for (int i = 0; i < 5; i++) {
		EXPECT(appends(&p));
		EXPECT(backfilled(&p));
	}
	place_close(&p);
	return NULL;
}

/* Pinned: neither RESTART nor TRUNCATE gets through, and both copy everything all the same. */
static const char *test_pinned_truncate(void)
{
	static const char *const mode[] = {"RESTART", "TRUNCATE"};
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	for (int i = 0; i < 2; i++) {
		struct wal_index_header before, after;

		commit(&p);
		before = header(&p);
		EXPECT(strncmp(checkpoint(&p, mode[i]), "1|", 2) == 0);
		after = header(&p);
		EXPECT(memcmp(&before, &after, sizeof(after)) == 0);
		EXPECT(wal_index_backfill(p.conn.index) == after.mx_frame);
	}
	EXPECT(appends(&p));
	place_close(&p);
	return NULL;
}

/* FULL is not kept waiting by a strong pin. */
static const char *test_pinned_full(void)
{
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	commit(&p);
	EXPECT(strncmp(checkpoint(&p, "FULL"), "0|", 2) == 0);
	place_close(&p);
	return NULL;
}

/* The gate lets one restart pass, forbids backfill, and thereby a second one. */
static const char *test_gate(void)
{
	struct wal_index_header h;
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	commit(&p);
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h) && p.pin.state == PIN_GATED);
	EXPECT(restarts(&p));
	EXPECT(!backfilled(&p) && wal_index_backfill(p.conn.index) == 0);
	EXPECT(appends(&p));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "1|", 2) == 0);
	EXPECT(appends(&p));
	/* And back: pinned, backfill goes on, restarts do not. */
	EXPECT(pin_ungate(&p.pin) == 0 && p.pin.state == PIN_PINNED);
	EXPECT(backfilled(&p));
	EXPECT(appends(&p));
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h));
	EXPECT(restarts(&p));
	place_close(&p);
	return NULL;
}

/* TRUNCATE passes the gate too, and then no second one does that would lose a commit. */
static const char *test_gate_truncate(void)
{
	struct wal_index_header h;
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "0|", 2) == 0);
	EXPECT(header(&p).mx_frame == 0);
	commit(&p);
	h = header(&p);
	EXPECT(h.mx_frame > 0);
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "1|", 2) == 0);
	EXPECT(header(&p).mx_frame == h.mx_frame);
	place_close(&p);
	return NULL;
}

/* The gate of an empty WAL: the next commit is protected, as is what follows it. */
static const char *test_gate_empty(void)
{
	struct wal_index_header h;
	struct place p;

	CALL(place_open(&p));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "0|", 2) == 0);
	EXPECT(pin_take(&p.pin) == 0);
	h = header(&p);
	EXPECT(h.mx_frame == 0);
	EXPECT(pin_gate(&p.pin, &h));
	commit(&p);
	EXPECT(header(&p).mx_frame > 0);
	EXPECT(!backfilled(&p));
	EXPECT(appends(&p));
	place_close(&p);
	return NULL;
}

/* No gate while frames are not backfilled, or for a header that is no longer the published one. */
static const char *test_gate_refused(void)
{
	struct wal_index_header old, h;
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	commit(&p);
	h = header(&p);
	EXPECT(!pin_gate(&p.pin, &h) && p.pin.state == PIN_PINNED);
	EXPECT(backfilled(&p));
	old = header(&p);
	commit(&p);
	EXPECT(!pin_gate(&p.pin, &old) && p.pin.state == PIN_PINNED);
	h = header(&p);
	EXPECT(!pin_gate(&p.pin, &h) && p.pin.state == PIN_PINNED);
	EXPECT(backfilled(&p));
	EXPECT(!pin_gate(&p.pin, &old));
	/* What was refused left no lock behind: backfill works, the pin still holds. */
	EXPECT(appends(&p));
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h));
	place_close(&p);
	return NULL;
}

/* A reader in each of the four slots, each with a snapshot of its own. */
static const char *take_slots(struct place *p, struct cli reader[4])
{
	for (int i = 0; i < 4; i++) {
		commit(p);
		cli_open(&reader[i], in_scratch("app.db"));
		EXPECT(strcmp(cli_ask(&reader[i], "BEGIN; SELECT 1 FROM t LIMIT 1;"), "1") == 0);
	}
	commit(p);
	return NULL;
}

/* Readers hold all slots: the pin is weak, forbids restarts just so, and grows strong later. */
static const char *test_weak(void)
{
	struct cli reader[4];
	struct place p;

	CALL(place_open(&p));
	CALL(take_slots(&p, reader));
	EXPECT(pin_take(&p.pin) == 0 && p.pin.weak && p.pin.state == PIN_PINNED);
	pin_strengthen(&p.pin);
	EXPECT(p.pin.weak);
	/* Its readers gone, the mark of the slot limits checkpoints until the pin is strong. */
	for (int i = 0; i < 4; i++)
		cli_close(&reader[i]);
	EXPECT(!backfilled(&p));
	EXPECT(appends(&p));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "1|", 2) == 0);
	EXPECT(appends(&p));
	pin_strengthen(&p.pin);
	EXPECT(!p.pin.weak && p.pin.state == PIN_PINNED);
	EXPECT(backfilled(&p));
	EXPECT(appends(&p));
	EXPECT(backfilled(&p));
	pin_drop(&p.pin);
	EXPECT(restarts(&p));
	place_close(&p);
	return NULL;
}

/* From the gate back to a weak pin, when readers have taken all slots meanwhile. */
static const char *test_weak_after_gate(void)
{
	struct wal_index_header h;
	struct cli reader[4];
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h));
	CALL(take_slots(&p, reader));
	EXPECT(pin_ungate(&p.pin) == 0 && p.pin.weak && p.pin.state == PIN_PINNED);
	for (int i = 0; i < 4; i++)
		cli_close(&reader[i]);
	EXPECT(appends(&p));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "1|", 2) == 0);
	place_close(&p);
	return NULL;
}

/* The slot's mark says "unused", so readers that come later do not share the pin's slot unawares. */
static const char *test_mark(void)
{
	struct cli reader;
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0 && p.pin.slot >= 2);
	for (int i = 0; i < 6; i++) {
		commit(&p);
		cli_open(&reader, in_scratch("app.db"));
		cli_ask(&reader, "BEGIN; SELECT 1 FROM t LIMIT 1; ROLLBACK;");
		cli_close(&reader);
		EXPECT(atomic_load(wal_index_word(p.conn.index, WAL_INDEX_MARKS +
							4 * (uint32_t)p.pin.slot)) ==
		       WAL_MARK_UNUSED);
	}
	place_close(&p);
	return NULL;
}

/* Dropped, from either state, nothing of ours is in the way any more. */
static const char *test_drop(void)
{
	struct wal_index_header h;
	struct place p;

	CALL(place_open(&p));
	EXPECT(pin_take(&p.pin) == 0);
	pin_drop(&p.pin);
	EXPECT(p.pin.state == PIN_NONE);
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "0|", 2) == 0);
	commit(&p);
	EXPECT(pin_take(&p.pin) == 0);
	EXPECT(backfilled(&p));
	h = header(&p);
	EXPECT(pin_gate(&p.pin, &h));
	pin_drop(&p.pin);
	EXPECT(restarts(&p));
	EXPECT(backfilled(&p));
	EXPECT(restarts(&p));
	EXPECT(strncmp(checkpoint(&p, "TRUNCATE"), "0|", 2) == 0);
	place_close(&p);
	return NULL;
}

/* While another program rebuilds or restarts, slots may be locked for a moment: -EBUSY, no pin. */
static const char *test_busy(void)
{
	struct conn other;
	struct place p;
	char why[256];

	CALL(place_open(&p));
	EXPECT(conn_open(&other, in_scratch("app.db"), CONN_BUSY_MS, why, sizeof(why)) == CONN_OK);
	EXPECT(conn_lock_exclusive(&other, WAL_LOCK_READ(1), 4) == 0);
	EXPECT(pin_take(&p.pin) == -EBUSY && p.pin.state == PIN_NONE);
	conn_unlock_exclusive(&other, WAL_LOCK_READ(1), 4);
	EXPECT(pin_take(&p.pin) == 0 && !p.pin.weak);
	EXPECT(backfilled(&p));
	struct wal_index_header h = header(&p);

	/* A checkpointer at work holds READ(0): no gate now. */
	EXPECT(conn_lock_exclusive(&other, WAL_LOCK_READ(0), 1) == 0);
	EXPECT(!pin_gate(&p.pin, &h) && p.pin.state == PIN_PINNED);
	conn_unlock_exclusive(&other, WAL_LOCK_READ(0), 1);
	EXPECT(pin_gate(&p.pin, &h));
	EXPECT(conn_lock_exclusive(&other, WAL_LOCK_READ(1), 4) == 0);
	EXPECT(pin_ungate(&p.pin) == -EBUSY && p.pin.state == PIN_GATED);
	conn_unlock_exclusive(&other, WAL_LOCK_READ(1), 4);
	EXPECT(pin_ungate(&p.pin) == 0);
	EXPECT(appends(&p));
	conn_close(&other);
	place_close(&p);
	return NULL;
}

int main(void)
{
	run("pin_without", test_without);
	run("pin_pinned", test_pinned);
	run("pin_pinned_truncate", test_pinned_truncate);
	run("pin_pinned_full", test_pinned_full);
	run("pin_gate", test_gate);
	run("pin_gate_truncate", test_gate_truncate);
	run("pin_gate_empty", test_gate_empty);
	run("pin_gate_refused", test_gate_refused);
	run("pin_weak", test_weak);
	run("pin_weak_after_gate", test_weak_after_gate);
	run("pin_mark", test_mark);
	run("pin_drop", test_drop);
	run("pin_busy", test_busy);
	return failed;
}
