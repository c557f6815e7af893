#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cmd/primary.h"

bool primary_fatal(enum conn_problem problem)
{
	return problem != CONN_OK && problem != CONN_MISSING;
}

/* C1: a database that is open here under another name must not be looked at once more. */
static bool open_already(struct primary *p, int i, char *why, size_t why_bytes)
{
	struct stat st;

	if (stat(p->db[i]->feed.path, &st) < 0)
		return false;
	for (int k = 0; k < p->count; k++) {
		const struct primary_db *other = p->db[k];

		if (k != i && other->state == DB_ATTACHED && other->identity.st_ino == st.st_ino &&
		    other->identity.st_dev == st.st_dev) {
			snprintf(why, why_bytes, "'%s' and '%s' are the same file; name it once",
				 p->db[i]->feed.path, other->feed.path);
			return true;
		}
	}
	return false;
}

enum conn_problem primary_attach(struct primary *p, int i, int busy_ms, char *why,
				 size_t why_bytes)
{
	struct primary_db *d = p->db[i];
	enum conn_problem problem;
	bool learning;

	if (open_already(p, i, why, why_bytes))
		return CONN_FAILED;
	learning = tap_learn_begin(p->tap, (unsigned int)i) == 0;
	problem = capture_open(&d->capture, &d->feed, &p->node.loop, d->record_path, busy_ms, why,
			       why_bytes);
	d->heard = learning && tap_learn_end(p->tap) & TAP_LEARNED_SHM;
	if (problem)
		return problem;
	d->capture.durable = p->durable;
	tap_learn_wal(p->tap, (unsigned int)i, d->capture.wal_fd);
	if (stat(d->feed.path, &d->identity) < 0)
		memset(&d->identity, 0, sizeof(d->identity));
	d->state = DB_ATTACHED;
	d->detail[0] = 0;
	d->seen_txid = d->feed.at.txid;
	primary_review_tap(p);
	return CONN_OK;
}

static void detach(struct primary *p, int i, const char *why)
{
	struct primary_db *d = p->db[i];

	log_line("'%s' is detached: %s", d->feed.path, why);
	snprintf(d->detail, sizeof(d->detail), "%s", why);
	server_drop(&p->server, &d->feed);
	tap_forget(p->tap, (unsigned int)i);
	capture_close(&d->capture);
	d->state = DB_WAITING;
	primary_review_tap(p);
	d->look_ns = p->node.loop.now_ns + ATTACH_RETRY_MS * MS;
}

/* Say only what is new. The tap has to be in: what comes is to be learned. */
void primary_try_attach(struct primary *p, int i)
{
	struct primary_db *d = p->db[i];
	char why[512] = "";

	if ((!primary_tap_ready(p) && !p->tap_lost) || p->node.loop.now_ns < d->look_ns ||
	    server_uses(&p->server, &d->feed))
		return;
	d->look_ns = p->node.loop.now_ns + ATTACH_RETRY_MS * MS;
	/* Others are being served: do not wait for locks. */
	if (primary_attach(p, i, 0, why, sizeof(why)) == CONN_OK) {
		log_info("attached to '%s'", d->feed.path);
		return;
	}
	if (strncmp(d->detail, why, sizeof(d->detail) - 1)) {
		snprintf(d->detail, sizeof(d->detail), "%s", why);
		log_line("%s; waiting for it", why);
	}
}

void primary_check_identity(struct primary *p, int i)
{
	struct primary_db *d = p->db[i];
	struct stat st;

	if (p->node.loop.now_ns < d->look_ns)
		return;
	d->look_ns = p->node.loop.now_ns + IDENTITY_MS * MS;
	if (d->capture.failed) {
		detach(p, i, strerror(-d->capture.failed));
		return;
	}
	if (stat(d->feed.path, &st) < 0 || st.st_ino != d->identity.st_ino ||
	    st.st_dev != d->identity.st_dev)
		detach(p, i, "the file was removed or replaced");
}
