#include "daemon/capture/capture_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define ATTACH_TRIES 50 /* of 1 ms, for a pin while every slot is being changed */

/* Does the record speak of this life of the WAL, so that its frames can prove the rest? */
static bool can_prove(const struct capture *c, const struct wal_index_header *h,
		      const uint64_t boot[2])
{
	const struct capture_record *r = &c->record;

	/* An index that never saw a WAL header names no life of the WAL. */
	if (!r->salt[0] && !r->salt[1])
		return false;
	if (memcmp(r->salt, h->salt, sizeof(r->salt)) || h->mx_frame < r->frame)
		return false;
	/* Frames before the base are not compared. They can only have changed when the machine
	 * went down and the WAL lost its end. */
	return r->base_frame == 0 || memcmp(r->boot, boot, sizeof(r->boot)) == 0;
}

static void begin_history(struct capture *c, const struct wal_index_header *h)
{
	struct capture_record *r = &c->record;
	uint64_t boot[2];
	bool known = slots_read(&c->slots, r) == 0;

	boot_id(boot);
	c->proof = *r;
	if (!known) {
		memset(r, 0, sizeof(*r));
		r->timeline = 1;
		r->txid = UINT64_MAX; /* the first history begins at txid 0 */
		memcpy(r->boot, boot, sizeof(boot));
		capture_break(c, h);
		return;
	}
	bool provable = can_prove(c, h, boot);

	memcpy(r->boot, boot, sizeof(boot));
	if (!provable) {
		capture_break(c, h);
		return;
	}
	/* Capture again from the base; proof holds what must be met at proof.frame. */
	r->frame = r->base_frame;
	r->txid = r->base_txid;
	r->chain = r->base_chain;
	c->proving = c->proof.frame > r->frame;
	/* The ring fills anew: what an earlier attachment left there does not count. */
	feed_break(c->feed, capture_record_position(r), c->proof.db_pages);
}

/* Inside a read transaction of our own: pin, then see where history goes on. */
static int attach(struct capture *c)
{
	struct wal_index_header h;
	int err;

	for (int tries = 0;; tries++) {
		err = conn_exec(&c->side, "BEGIN; SELECT count(*) FROM sqlite_schema");
		if (!err)
			err = pin_take(&c->pin);
		if (!err || tries == ATTACH_TRIES)
			break;
		conn_exec(&c->side, "ROLLBACK");
		usleep(1000);
	}
	if (err)
		return err;
	for (int tries = 0; (err = wal_index_read(c->conn.index, &h)) == -EAGAIN; tries++) {
		if (tries == 1000)
			break;
		usleep(100);
	}
	conn_exec(&c->side, "ROLLBACK");
	if (err)
		return err;
	c->page_bytes = wal_index_page_bytes(&h);
	if (c->page_bytes < PAGE_BYTES_MIN) {
		/* An index that has seen no frame yet may not say; the database does. */
		uint8_t head[100];

		err = conn_read_file(&c->conn, head, sizeof(head), 0);
		if (err)
			return err;
		c->page_bytes = (uint32_t)head[16] << 8 | head[17];
		if (c->page_bytes == 1)
			c->page_bytes = 65536;
		if (c->page_bytes < PAGE_BYTES_MIN || (c->page_bytes & (c->page_bytes - 1)))
			return -EPROTO;
	}
	if (h.db_pages == 0)
		err = conn_file_pages(&c->conn, c->page_bytes, &h.db_pages);
	if (err)
		return err;
	begin_history(c, &h);
	feed_set_page_bytes(c->feed, c->page_bytes);
	return 0;
}

static enum conn_problem explain_errno(int err, const char *path, char *why, size_t why_bytes)
{
	if (err == -EWOULDBLOCK) {
		snprintf(why, why_bytes,
			 "another walwire primary is attached to '%s'; stop it first", path);
	} else if (err == -EBUSY) {
		snprintf(why, why_bytes,
			 "'%s' stays locked by an application; let it open the "
			 "database with PRAGMA locking_mode=NORMAL",
			 path);
		return CONN_EXCLUSIVE;
	} else if (err == -EPROTO) {
		snprintf(why, why_bytes,
			 "the wal-index or state file of '%s' has a format walwire does not know",
			 path);
	} else {
		snprintf(why, why_bytes, "cannot attach to '%s': %s%s", path, strerror(-err),
			 err == -ENOSPC ? "; make room or choose another --state-dir" : "");
	}
	return CONN_FAILED;
}

enum conn_problem capture_open(struct capture *c, struct feed *feed, struct loop *loop,
			       const char *record_path, int busy_ms, char *why, size_t why_bytes)
{
	char wal_path[DB_PATH_MAX + 8];
	enum conn_problem problem;
	int err;

	memset(c, 0, sizeof(*c));
	c->feed = feed;
	c->loop = loop;
	c->read.done = capture_read_done;
	c->wal_fd = -1;
	problem = conn_look(feed->path, why, why_bytes);
	if (problem)
		return problem;
	problem = conn_open(&c->conn, feed->path, busy_ms, why, why_bytes);
	if (problem)
		return problem;
	problem = conn_open(&c->side, feed->path, busy_ms, why, why_bytes);
	if (problem)
		goto undo_conn;
	snprintf(wal_path, sizeof(wal_path), "%s-wal", feed->path);
	c->wal_fd = open(wal_path, O_RDONLY | O_CLOEXEC);
	if (c->wal_fd < 0) {
		problem = explain_errno(-errno, feed->path, why, why_bytes);
		goto undo_side;
	}
	/* SQLite takes no flock: this one keeps a second primary away and dies with us. */
	if (flock(c->wal_fd, LOCK_EX | LOCK_NB) < 0) {
		problem = explain_errno(-errno, feed->path, why, why_bytes);
		goto undo_wal;
	}
	err = slots_open(&c->slots, record_path, sizeof(struct capture_record), feed->db_id);
	if (err) {
		problem = explain_errno(err, record_path, why, why_bytes);
		goto undo_wal;
	}
	pin_init(&c->pin, &c->conn);
	err = attach(c);
	if (err) {
		problem = explain_errno(err, feed->path, why, why_bytes);
		goto undo_slots;
	}
	feed->open = !c->proving;
	return CONN_OK;
undo_slots:
	pin_drop(&c->pin);
	slots_close(&c->slots);
undo_wal:
	close(c->wal_fd);
undo_side:
	conn_close(&c->side);
undo_conn:
	conn_close(&c->conn);
	return problem;
}

void capture_close(struct capture *c)
{
	while (c->read.busy)
		loop_wait(c->loop, 1000000);
	pin_drop(&c->pin);
	slots_close(&c->slots);
	/* A worker of io_uring may hold the file a little longer than its completion tells. */
	flock(c->wal_fd, LOCK_UN);
	close(c->wal_fd);
	conn_close(&c->side);
	conn_close(&c->conn);
	c->feed->open = false;
}
