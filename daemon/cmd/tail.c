/* tail - one line per commit as it passes through the node's ring.
 *
 *      attach      the ring's read-only descriptor comes through the control socket
 *      find        walk the batch headers from the oldest to the newest, so that a transaction that
 *                  is half way through is known from its beginning; with --from-oldest not needed
 *      follow      copy a batch, ask whether it was overtaken meanwhile, check it, print its
 * commits end         signal, --count, or the daemon has gone and everything in the ring is printed
 *
 * The daemon never waits for us and does not know we are here. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/control.h"
#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/cmd/cmd.h"
#include "daemon/wire/batch.h"
#include "shm/segment.h"

#define PAUSE_NS_MIN 50000ull
#define PAUSE_NS_MAX 5000000ull
#define ALIVE_NS     1000000000ull /* how often an idle ring's daemon is asked whether it lives */

struct tail {
	const char *state_dir;
	char name[CONTROL_WORD_MAX]; /* as one word */
	struct segment segment;
	struct ring ring; /* of it, only what a foreign reader uses */
	uint8_t *copy;	  /* BATCH_BYTES_MAX */
	uint64_t pos;
	uint64_t print_from; /* batches before it are only followed */
	uint64_t left;	     /* commits still to print */
	bool lapped;	     /* to be told with the next batch */

	bool known;	       /* the fields below are; else the next commit batch tells */
	bool whole;	       /* open_frames counts from the transaction's beginning */
	uint64_t chain;	       /* after the last frame */
	uint64_t commit_chain; /* after the last commit frame */
	uint64_t open_frames;  /* since that one */
};

enum step { STEP_IDLE, STEP_TAKEN, STEP_LAPPED, STEP_DAMAGED };

/* Copy the batch at `pos`, its first `most` bytes at most. STEP_LAPPED: it was overtaken, and `pos`
 * is now the oldest batch there is. */
static enum step copy_batch(struct tail *t, uint32_t most)
{
	uint64_t ready = ring_published(&t->ring);
	uint32_t bytes;
	bool fits;

	if (t->pos == ready)
		return STEP_IDLE;
	/* Until ring_intact() has said so, this may be anything. */
	bytes = ring_batch_bytes(&t->ring, t->pos);
	fits = bytes >= BATCH_HEADER_BYTES && bytes <= BATCH_BYTES_MAX && bytes <= ready - t->pos;
	if (fits)
		memcpy(t->copy, ring_at(&t->ring, t->pos), bytes < most ? bytes : most);
	if (ring_intact(&t->ring, t->pos))
		return fits ? STEP_TAKEN : STEP_DAMAGED;
	t->pos = ring_oldest(&t->ring);
	t->known = false;
	t->lapped = true;
	return STEP_LAPPED;
}

static void print_commit(struct tail *t, uint64_t txid, uint32_t db_pages, uint32_t page_bytes)
{
	if (t->pos < t->print_from || t->left == 0)
		return;
	t->left--;
	printf("%s txid=%" PRIu64 " chain=%016" PRIx64, t->name, txid, t->chain);
	if (t->whole)
		printf(" frames=%" PRIu64, t->open_frames);
	else
		fputs(" frames=?", stdout);
	printf(" db_pages=%" PRIu32, db_pages);
	if (t->whole)
		printf(" bytes=%" PRIu64 "\n", t->open_frames * batch_frame_bytes(page_bytes));
	else
		fputs(" bytes=?\n", stdout);
}

/* Where the batch goes on from: what came last, that commit anew (a connection that was lost in the
 * middle of a transaction), or somewhere else. */
static void join(struct tail *t, const struct batch_header *h)
{
	bool same = t->known && h->chain_before == t->chain;
	bool anew = t->known && h->chain_before == t->commit_chain;

	if (same)
		return;
	if (t->known && !anew)
		fprintf(stderr,
			"%s does not continue: something is missing before txid %" PRIu64 "\n",
			t->name, h->txid);
	t->known = true;
	t->whole = anew || t->pos == 0;
	t->commit_chain = h->chain_before;
	t->open_frames = 0;
}

static void take_commits(struct tail *t, const struct batch_header *h)
{
	uint32_t page_bytes = 1u << h->page_shift;
	uint64_t txid = h->txid - h->commits;

	join(t, h);
	t->chain = h->chain_before;
	for (uint32_t i = 0; i < h->frames; i++) {
		const uint8_t *frame = batch_frame(t->copy, i, page_bytes);
		uint64_t hash =
			page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES, page_bytes);

		t->chain = chain_fold(t->chain, frame, hash);
		t->open_frames++;
		if (!frame_db_pages(frame))
			continue;
		print_commit(t, ++txid, frame_db_pages(frame), page_bytes);
		t->commit_chain = t->chain;
		t->open_frames = 0;
		t->whole = true;
	}
}

static void take_seed_mark(struct tail *t, const struct batch_header *h)
{
	bool begins = h->flags & BATCH_SEED_BEGIN;

	if (begins) {
		/* Commits go on from here, whatever was before. */
		t->known = t->whole = true;
		t->chain = t->commit_chain = h->chain;
		t->open_frames = 0;
	}
	if (t->pos < t->print_from)
		return;
	if (begins)
		printf("%s seed begins at txid=%" PRIu64 "\n", t->name, h->txid);
	else
		printf("%s seed ends at txid=%" PRIu64 " chain=%016" PRIx64 " db_pages=%" PRIu32
		       "\n",
		       t->name, h->txid, h->chain, h->db_pages);
}

static enum step take_batch(struct tail *t)
{
	enum step step = copy_batch(t, BATCH_BYTES_MAX);
	struct batch_header h;

	if (step != STEP_TAKEN)
		return step;
	if (batch_header_get(t->copy, &h) || batch_check(t->copy, &h, NULL))
		return STEP_DAMAGED;
	if (t->lapped)
		fprintf(stderr, "%s lapped: continuing at txid %" PRIu64 "\n", t->name,
			h.txid - h.commits + (h.kind == BATCH_COMMIT));
	t->lapped = false;
	if (h.kind == BATCH_COMMIT)
		take_commits(t, &h);
	else if (h.kind == BATCH_SEED && h.flags)
		take_seed_mark(t, &h);
	t->pos += h.bytes;
	return STEP_TAKEN;
}

/* Stand at the last batch that ends a commit (or begins a seed), to print only what comes after
 * what is there now. */
static int find_start(struct tail *t)
{
	uint64_t end = ring_published(&t->ring);
	uint64_t last = ring_oldest(&t->ring);
	struct batch_header h;

	t->pos = last;
	while (t->pos < end && !stop_requested()) {
		enum step step = copy_batch(t, BATCH_HEADER_BYTES);

		if (step == STEP_LAPPED) {
			last = t->pos;
			continue;
		}
		if (step == STEP_DAMAGED || batch_header_get(t->copy, &h))
			return -EBADMSG;
		if (h.commits > 0 || (h.flags & BATCH_SEED_BEGIN))
			last = t->pos;
		t->pos += h.bytes;
	}
	t->lapped = last > end; /* else nothing was lost that would have been printed */
	t->print_from = end;
	t->pos = last;
	return 0;
}

/* Does the node whose ring we read still run? A new one has a new segment. */
static bool still_there(struct tail *t)
{
	char line[CONTROL_LINE_MAX];
	struct stat ours, theirs;
	struct answer answer;
	enum ask_result result;
	bool same;

	snprintf(line, sizeof(line), "ring %s", t->name);
	result = node_ask(t->state_dir, line, &answer);
	if (result != ASK_OK)
		return result == ASK_BUSY || result == ASK_FAILED; /* it hangs, but it is there */
	same = answer.fd >= 0 && fstat(answer.fd, &theirs) == 0 &&
	       fstat(t->segment.fd, &ours) == 0 && ours.st_dev == theirs.st_dev &&
	       ours.st_ino == theirs.st_ino;
	fclose(answer.stream);
	if (answer.fd >= 0)
		close(answer.fd);
	return same;
}

static int follow(struct tail *t)
{
	uint64_t pause = PAUSE_NS_MIN, checked = clock_now_ns();
	bool alive = true;

	while (!stop_requested() && t->left && !ferror(stdout)) {
		enum step step = take_batch(t);
		uint64_t now;

		if (step == STEP_DAMAGED) {
			log_line("the ring of '%s' is damaged at byte %" PRIu64
				 "; restart its walwire",
				 t->name, t->pos);
			return EXIT_FAILED;
		}
		if (step != STEP_IDLE) {
			pause = PAUSE_NS_MIN;
			continue;
		}
		if (!alive)
			break;
		now = clock_now_ns();
		if (now - checked >= ALIVE_NS) {
			/* Once more through the ring: it may have published before it went. */
			alive = still_there(t);
			checked = now;
			continue;
		}
		nap_ns(pause);
		pause = 2 * pause < PAUSE_NS_MAX ? 2 * pause : PAUSE_NS_MAX;
	}
	return EXIT_OK;
}

/* Get the ring. `db` may be empty. */
static int attach(struct tail *t, const char *db)
{
	char line[CONTROL_LINE_MAX], word[CONTROL_WORD_MAX];
	struct answer answer;
	int n, err;

	control_word(word, db);
	snprintf(line, sizeof(line), "ring %s", word);
	if (node_ask(t->state_dir, line, &answer) != ASK_OK) {
		log_line("%s", answer.sentence);
		return -1;
	}
	_Static_assert(CONTROL_WORD_MAX == 768, "the length below");
	n = fscanf(answer.stream, "ring %767s", t->name);
	fclose(answer.stream);
	if (n != 1 || answer.fd < 0) {
		log_line("the walwire in '%s' speaks another language; is it another version?",
			 t->state_dir);
		if (answer.fd >= 0)
			close(answer.fd);
		return -1;
	}
	err = segment_attach(&t->segment, answer.fd);
	close(answer.fd);
	if (!err && t->segment.header->ring.size != t->segment.ring_bytes) {
		segment_close(&t->segment);
		err = -EPROTO;
	}
	if (err) {
		log_line("cannot read the ring of '%s': %s", t->name, strerror(-err));
		return -1;
	}
	t->ring.shared = &t->segment.header->ring;
	t->ring.data = t->segment.data;
	return 0;
}

static int run(struct tail *t, const char *db, bool from_oldest)
{
	int code = EXIT_FAILED;

	t->copy = malloc(BATCH_BYTES_MAX);
	if (!t->copy) {
		log_line("tail: %s", strerror(ENOMEM));
		return EXIT_FAILED;
	}
	if (attach(t, db))
		goto undo_copy;
	setvbuf(stdout, NULL, _IOLBF, 0);
	stop_on_signals();
	if (from_oldest)
		t->pos = ring_oldest(&t->ring);
	else if (find_start(t)) {
		log_line("the ring of '%s' is damaged at byte %" PRIu64 "; restart its walwire",
			 t->name, t->pos);
		goto undo_segment;
	}
	code = follow(t);
undo_segment:
	segment_close(&t->segment);
undo_copy:
	free(t->copy);
	return code;
}

int cmd_tail(int argc, char **argv)
{
	struct tail t = {.state_dir = default_state_dir(), .left = UINT64_MAX};
	const char *db = "";
	bool from_oldest = false;
	const struct option_spec options[] = {
		{"db", OPTION_STRING, &db, "NAME", "the database, where there are several"},
		{"from-oldest", OPTION_FLAG, &from_oldest, NULL,
		 "begin with the oldest commit that is still in the ring"},
		{"count", OPTION_UNSIGNED, &t.left, "N", "end after so many commits"},
		{"state-dir", OPTION_STRING, &t.state_dir, "DIR", STATE_DIR_HELP},
		{NULL},
	};
	const struct usage usage = {
		.command = "tail",
		.words = "",
		.about =
			"Prints one line per commit as it passes through the node on this host:\n"
			"NAME txid=N chain=HEX16 frames=K db_pages=P bytes=B. NAME is one word: blanks,\n"
			"control characters and '%' as %XX; K and B are '?' when its beginning was not\n"
			"seen. Ends on SIGINT or SIGTERM and when the node ends.\n"
			"Exit: 0 ended, 1 nobody answers.",
		.options = options,
	};
	int words, code;

	if (!options_parse(&usage, argc, argv, NULL, 0, &words, &code))
		return code;
	if (strlen(db) >= DB_NAME_MAX) {
		log_line("tail: too long a name '%s'; see: walwire tail --help", db);
		return EXIT_USAGE;
	}
	return run(&t, db, from_oldest);
}
