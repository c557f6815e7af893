#include "daemon/ship/seed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/wal/wal.h"

#define LOCK_BYTE_OFFSET 0x40000000u /* SQLite locks there: that page holds no data */

int seed_init(struct seed *s, struct worker *worker)
{
	uint8_t *at = mmap(NULL, 3 * BATCH_BYTES_MAX, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(s, 0, sizeof(*s));
	if (at == MAP_FAILED)
		return -ENOMEM;
	s->worker = worker;
	s->buffer[0] = at;
	s->buffer[1] = at + BATCH_BYTES_MAX;
	s->scratch = at + 2 * BATCH_BYTES_MAX;
	s->wal_fd = -1;
	return 0;
}

/* After the worker has stopped. */
void seed_exit(struct seed *s)
{
	if (s->wal_fd >= 0)
		close(s->wal_fd);
	conn_close(&s->conn);
	if (s->buffer[0])
		munmap(s->buffer[0], 3 * BATCH_BYTES_MAX);
}

/* The newest frame of `pgno` up to `mx_frame`, 0 if there is none. -1: the index is not there. */
static int64_t find_frame(struct conn *c, uint32_t pgno, uint32_t mx_frame)
{
	if (mx_frame == 0)
		return 0;
	for (uint32_t r = wal_index_region(mx_frame) + 1; r-- > 0;) {
		volatile void *at = conn_region(c, r, false);
		uint32_t zero = wal_index_zero(r), found = 0;
		_Atomic uint16_t *hashes;
		_Atomic uint32_t *pgnos;

		if (!at)
			return -1;
		hashes = wal_index_hashes(at);
		pgnos = wal_index_pgnos(at, r);
		for (uint32_t k = wal_index_hash(pgno), n = 0; n < WAL_INDEX_HASH_SLOTS;
		     k = (k + 1) & (WAL_INDEX_HASH_SLOTS - 1), n++) {
			uint32_t entry = atomic_load_explicit(&hashes[k], memory_order_acquire);

			if (entry == 0)
				break;
			if (entry > WAL_INDEX_FRAMES || zero + entry > mx_frame ||
			    atomic_load_explicit(&pgnos[entry - 1], memory_order_relaxed) != pgno)
				continue;
			if (zero + entry > found)
				found = zero + entry;
		}
		if (found)
			return found;
	}
	return 0;
}

/* Read pages first.. of the state at `h` into the batch at `to`. The number of frames or -errno. */
static int read_pages(struct seed *s, const struct wal_index_header *h, uint8_t *to)
{
	uint32_t page_bytes = s->feed->page_bytes; /* it cannot change in WAL mode */
	uint32_t lock_pgno = LOCK_BYTE_OFFSET / page_bytes + 1;
	uint32_t first = s->next_pgno, n = 0, count;

	count = h->db_pages - first + 1;
	if (count > BATCH_BYTES_MAX / (page_bytes + FRAME_HEADER_BYTES) - 1)
		count = BATCH_BYTES_MAX / (page_bytes + FRAME_HEADER_BYTES) - 1;
	if (conn_read_file(&s->conn, s->scratch, count * page_bytes,
			   (uint64_t)(first - 1) * page_bytes))
		return -EIO;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t pgno = first + i, be = htobe32(pgno);
		uint8_t *frame = to + BATCH_HEADER_BYTES + (uint64_t)n * batch_frame_bytes(page_bytes);
		int64_t in_wal;

		if (pgno == lock_pgno)
			continue;
		in_wal = find_frame(&s->conn, pgno, h->mx_frame);
		if (in_wal < 0)
			return -EAGAIN;
		if (in_wal) {
			uint64_t at = wal_frame_offset((uint32_t)in_wal, page_bytes);

			if (pread(s->wal_fd, frame + FRAME_HEADER_BYTES, page_bytes,
				  (off_t)(at + WAL_FRAME_HEADER)) != (ssize_t)page_bytes)
				return -EAGAIN;
		} else {
			memcpy(frame + FRAME_HEADER_BYTES, s->scratch + (uint64_t)i * page_bytes,
			       page_bytes);
		}
		memset(frame, 0, FRAME_HEADER_BYTES);
		memcpy(frame, &be, 4);
		n++;
	}
	s->next_pgno = first + count;
	return (int)n;
}

static void make_batch(struct seed *s, uint8_t *to, uint32_t frames, uint32_t page_bytes)
{
	struct batch_header *h = &s->h;

	*h = (struct batch_header){
		.page_shift = (uint8_t)__builtin_ctz(page_bytes),
		.kind = BATCH_SEED,
		.frames = frames,
		.chain_before = s->chain,
		.bytes = (uint32_t)batch_bytes(frames, page_bytes),
		.time_ns = 0,
	};
	for (uint32_t i = 0; i < frames; i++) {
		const uint8_t *frame = batch_frame(to, i, page_bytes);

		s->chain = chain_fold(s->chain, frame,
				      page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES,
						page_bytes));
	}
	h->chain = s->chain;
	memset(to + BATCH_HEADER_BYTES + frames * batch_frame_bytes(page_bytes), 0,
	       h->bytes - BATCH_HEADER_BYTES - frames * batch_frame_bytes(page_bytes));
	batch_header_put(to, h);
}

/* One chunk inside a read transaction: the snapshot's lock keeps database pages that have no
 * frame up to the header we read afterwards from being written, and the WAL from restarting more
 * than once; that one restart shows in the salts. */
static int read_chunk(struct seed *s)
{
	struct wal_index_header h, after;
	uint8_t *to = s->buffer[s->fill];
	uint32_t first = s->next_pgno;
	int n;

	if (conn_exec(&s->conn, "BEGIN; SELECT count(*) FROM sqlite_schema"))
		n = -EAGAIN;
	else if (wal_index_read(s->conn.index, &h))
		n = -EAGAIN;
	else if (h.db_pages == 0 && conn_file_pages(&s->conn, s->feed->page_bytes, &h.db_pages))
		n = -EIO;
	else if (s->next_pgno > h.db_pages)
		n = 0;
	else
		n = read_pages(s, &h, to);
	if (n >= 0 &&
	    (wal_index_read(s->conn.index, &after) || memcmp(h.salt, after.salt, sizeof(h.salt))))
		n = -EAGAIN;
	if (!sqlite3_get_autocommit(s->conn.db))
		conn_exec(&s->conn, "ROLLBACK");
	if (n < 0) {
		s->next_pgno = first;
		return n;
	}
	s->last = s->next_pgno > h.db_pages;
	make_batch(s, to, (uint32_t)n, s->feed->page_bytes);
	return 0;
}

static int open_source(struct seed *s)
{
	char wal_path[DB_PATH_MAX + 8];

	if (conn_open(&s->conn, s->feed->path, CONN_BUSY_MS, s->why, sizeof(s->why)))
		return -EIO;
	snprintf(wal_path, sizeof(wal_path), "%s-wal", s->feed->path);
	s->wal_fd = open(wal_path, O_RDONLY | O_CLOEXEC);
	if (s->wal_fd < 0)
		return -errno;
	s->begun = true;
	return 0;
}

static void run(struct job *job)
{
	struct seed *s = (struct seed *)job;

	if (s->closing) {
		if (s->wal_fd >= 0)
			close(s->wal_fd);
		s->wal_fd = -1;
		conn_close(&s->conn);
		s->begun = false;
		return;
	}
	s->err = s->begun ? 0 : open_source(s);
	if (s->err)
		return;
	for (int i = 0; i < SEED_TRIES; i++) {
		s->err = read_chunk(s);
		if (s->err != -EAGAIN)
			break;
		usleep(200);
	}
}

static void done(struct job *job)
{
	struct seed *s = (struct seed *)job;

	if (s->closing) {
		s->closing = false;
		s->used = false;
	} else {
		s->fill ^= 1;
	}
}

void seed_begin(struct seed *s, const struct feed *feed)
{
	s->used = true;
	s->feed = feed;
	s->next_pgno = 1;
	s->chain = 0;
	s->last = false;
	s->err = 0;
	s->closing = false;
	s->job.run = run;
	s->job.done = done;
}

void seed_ask(struct seed *s)
{
	worker_give(s->worker, &s->job);
}

const uint8_t *seed_chunk(const struct seed *s)
{
	return s->buffer[s->fill ^ 1];
}

void seed_end(struct seed *s)
{
	s->closing = true;
	worker_give(s->worker, &s->job);
}
