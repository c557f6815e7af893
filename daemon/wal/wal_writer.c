#include "daemon/wal/wal_writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOCK_TRIES 500 /* of 10 ms */

static int write_all(int fd, const void *data, size_t bytes, uint64_t offset)
{
	const uint8_t *p = data;

	while (bytes) {
		ssize_t n = pwrite(fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		bytes -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

/* The file's header for the salts in `salt`, on disk before anything that relies on it. */
static int write_header(struct wal_writer *w, const uint32_t salt[2], uint32_t ret_sum[2])
{
	struct wal_header h = {.page_bytes = w->page_bytes, .sequence = w->sequence};
	uint8_t bytes[WAL_HEADER_BYTES];
	int err;

	memcpy(h.salt, salt, sizeof(h.salt));
	wal_header_put(bytes, &h);
	err = write_all(w->wal_fd, bytes, sizeof(bytes), 0);
	if (!err && fdatasync(w->wal_fd) < 0)
		err = -errno;
	if (!err)
		memcpy(ret_sum, h.checksum, sizeof(h.checksum));
	return err;
}

/* What a writer publishes to begin a life: no frames, new salts, no marks (walRestartHdr()). */
static void publish_empty(struct wal_writer *w, const uint32_t salt[2], const uint32_t sum[2])
{
	volatile void *index = w->conn.index;

	w->header.mx_frame = 0;
	w->header.page_code = wal_index_page_code(w->page_bytes);
	w->header.big_endian_checksum = 0;
	memcpy(w->header.salt, salt, sizeof(w->header.salt));
	memcpy(w->header.frame_checksum, sum, sizeof(w->header.frame_checksum));
	wal_index_publish(index, &w->header);
	atomic_store_explicit(wal_index_word(index, WAL_INDEX_BACKFILL), 0, memory_order_seq_cst);
	atomic_store_explicit(wal_index_word(index, WAL_INDEX_ATTEMPTED), 0, memory_order_relaxed);
	atomic_store_explicit(wal_index_word(index, WAL_INDEX_MARKS + 4), 0, memory_order_relaxed);
	for (uint32_t i = 2; i < WAL_READ_SLOTS; i++)
		atomic_store_explicit(wal_index_word(index, WAL_INDEX_MARKS + 4 * i),
				      WAL_MARK_UNUSED, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	w->appended = 0;
	memcpy(w->sum, sum, sizeof(w->sum));
	w->region_nr = UINT32_MAX;
}

static int take_write_lock(struct wal_writer *w)
{
	int err = -EBUSY;

	for (int i = 0; i < LOCK_TRIES; i++) {
		err = conn_lock_exclusive(&w->conn, WAL_LOCK_WRITER, 1);
		if (err != -EBUSY)
			break;
		usleep(10000);
	}
	return err;
}

/* Under the write lock the header is stable, unless a writer died in the middle of it. */
static int read_header(struct wal_writer *w)
{
	int err = wal_index_read(w->conn.index, &w->header);

	for (int i = 0; err == -EAGAIN && i < LOCK_TRIES; i++) {
		conn_unlock_exclusive(&w->conn, WAL_LOCK_WRITER, 1);
		conn_recover(&w->conn);
		err = take_write_lock(w);
		if (!err)
			err = wal_index_read(w->conn.index, &w->header);
	}
	return err;
}

/* Everything is backfilled: keep readers and checkpointers off the WAL. With CKPT in hand no
 * checkpointer is in flight that believes in the old life. 0; -EBUSY. */
static int lock_for_restart(struct wal_writer *w)
{
	if (conn_lock_exclusive(&w->conn, WAL_LOCK_CKPT, 1))
		return -EBUSY;
	if (wal_index_backfill(w->conn.index) == w->header.mx_frame &&
	    conn_lock_exclusive(&w->conn, WAL_LOCK_READ(1), WAL_READ_SLOTS - 1) == 0)
		return 0;
	conn_unlock_exclusive(&w->conn, WAL_LOCK_CKPT, 1);
	return -EBUSY;
}

static void unlock_after_restart(struct wal_writer *w)
{
	conn_unlock_exclusive(&w->conn, WAL_LOCK_READ(1), WAL_READ_SLOTS - 1);
	conn_unlock_exclusive(&w->conn, WAL_LOCK_CKPT, 1);
}

/* Under these locks: new salts, noted before they can be seen, on disk before they are published. */
static int begin_life(struct wal_writer *w, void (*about_to)(void *ctx, const uint32_t salt[2]),
		      void *ctx)
{
	uint32_t salt[2], sum[2];
	struct stat st;
	int err;

	w->sequence++;
	salt[0] = htobe32(be32toh(w->header.salt[0]) + 1);
	if (getrandom(&salt[1], sizeof(salt[1]), 0) != sizeof(salt[1]))
		return -EIO;
	about_to(ctx, salt);
	/* A long reader has let it grow; nobody reads it now. */
	if (fstat(w->wal_fd, &st) == 0 && st.st_size > (off_t)WAL_WRITER_KEEP_BYTES &&
	    ftruncate(w->wal_fd, 0) < 0)
		return -errno;
	err = write_header(w, salt, sum);
	if (!err)
		publish_empty(w, salt, sum);
	return err;
}

int wal_writer_adopt(struct wal_writer *w, void (*about_to)(void *ctx, const uint32_t salt[2]),
		     void *ctx)
{
	uint8_t bytes[WAL_HEADER_BYTES];
	struct wal_header h;
	ssize_t n = pread(w->wal_fd, bytes, sizeof(bytes), 0);
	bool there = n == (ssize_t)sizeof(bytes) && wal_header_get(bytes, &h) == 0 &&
		     memcmp(h.salt, w->header.salt, sizeof(h.salt)) == 0;
	uint32_t salt[2], sum[2];
	int err;

	if (there && h.page_bytes != w->page_bytes)
		return -EPROTO;
	if (there && !h.big_endian_checksum) {
		/* A writer may have died between publishing a new life and this word: frames up to it
		 * would be taken for backfilled. */
		if (wal_index_backfill(w->conn.index) > w->header.mx_frame)
			atomic_store_explicit(wal_index_word(w->conn.index, WAL_INDEX_BACKFILL), 0,
					      memory_order_seq_cst);
		w->sequence = h.sequence;
		w->appended = w->header.mx_frame;
		memcpy(w->sum, w->header.mx_frame ? w->header.frame_checksum : h.checksum,
		       sizeof(w->sum));
		return 0;
	}
	/* Frames, and no header that we could go on from. It may have been overwritten for a new life
	 * that was never published (wal_writer_restart()): then nothing in the WAL is needed. */
	if (w->header.mx_frame && wal_index_backfill(w->conn.index) != w->header.mx_frame)
		return -EPROTO;
	if (w->header.mx_frame) {
		err = lock_for_restart(w);
		if (err)
			return err;
		err = begin_life(w, about_to, ctx);
		unlock_after_restart(w);
		return err;
	}
	/* Without frames readers are in slot 0, or in slot 1 at mark 0: no mark that is set here is theirs,
	 * and no lock of theirs is needed. */
	if (getrandom(salt, sizeof(salt), 0) != sizeof(salt))
		return -EIO;
	about_to(ctx, salt);
	err = write_header(w, salt, sum);
	if (!err)
		publish_empty(w, salt, sum);
	return err;
}

int wal_writer_open(struct wal_writer *w, const char *path, uint32_t page_bytes, char *why,
		    size_t why_bytes)
{
	char wal_path[4200];
	int err;

	memset(w, 0, sizeof(*w));
	w->page_bytes = page_bytes;
	w->region_nr = UINT32_MAX;
	w->wal_fd = -1;
	if (conn_open(&w->conn, path, CONN_BUSY_MS, why, why_bytes))
		return -EIO;
	snprintf(wal_path, sizeof(wal_path), "%s-wal", path);
	w->wal_fd = open(wal_path, O_RDWR | O_CLOEXEC);
	if (w->wal_fd < 0) {
		err = -errno;
		snprintf(why, why_bytes, "cannot open '%s': %s", wal_path, strerror(-err));
		goto undo_conn;
	}
	err = take_write_lock(w);
	if (err) {
		snprintf(why, why_bytes, "'%s' is being written by another program; end it", path);
		goto undo_fd;
	}
	err = read_header(w);
	if (err) {
		snprintf(why, why_bytes, "cannot go on in '%s': %s", wal_path, strerror(-err));
		goto undo_lock;
	}
	w->head = malloc(WAL_WRITER_FRAMES * sizeof(*w->head));
	if (w->head)
		return 0;
	err = -ENOMEM;
undo_lock:
	conn_unlock_exclusive(&w->conn, WAL_LOCK_WRITER, 1);
undo_fd:
	close(w->wal_fd);
	w->wal_fd = -1;
undo_conn:
	conn_close(&w->conn);
	return err;
}

void wal_writer_close(struct wal_writer *w)
{
	if (w->wal_fd < 0)
		return;
	conn_unlock_exclusive(&w->conn, WAL_LOCK_WRITER, 1);
	close(w->wal_fd);
	w->wal_fd = -1;
	conn_close(&w->conn);
	free(w->head);
	w->head = NULL;
}

/* Drop all hash entries after entry `keep` of the region: a writer died or rolled back here. */
static void clear_after(volatile void *at, uint32_t region, uint32_t keep)
{
	_Atomic uint16_t *hashes = wal_index_hashes(at);
	_Atomic uint32_t *pgnos = wal_index_pgnos(at, region);
	uint32_t entries = region ? WAL_INDEX_FRAMES : WAL_INDEX_FRAMES_FIRST;

	for (uint32_t k = 0; k < WAL_INDEX_HASH_SLOTS; k++)
		if (atomic_load_explicit(&hashes[k], memory_order_relaxed) > keep)
			atomic_store_explicit(&hashes[k], 0, memory_order_relaxed);
	for (uint32_t i = keep; i < entries; i++)
		atomic_store_explicit(&pgnos[i], 0, memory_order_relaxed);
}

/* Enter frame number `frame` into the hash tables. 0; -EIO. */
static int index_frame(struct wal_writer *w, uint32_t frame, uint32_t pgno)
{
	uint32_t r = wal_index_region(frame), entry = frame - wal_index_zero(r);
	_Atomic uint16_t *hashes;
	_Atomic uint32_t *pgnos;
	uint32_t k;

	if (r != w->region_nr) {
		volatile void *at = conn_region(&w->conn, r, true);

		if (!at)
			return -EIO;
		w->region = at;
		w->region_nr = r;
	}
	hashes = wal_index_hashes(w->region);
	pgnos = wal_index_pgnos(w->region, r);
	if (entry == 1)
		clear_after(w->region, r, 0);
	else if (atomic_load_explicit(&pgnos[entry - 1], memory_order_relaxed))
		clear_after(w->region, r, entry - 1);
	atomic_store_explicit(&pgnos[entry - 1], pgno, memory_order_relaxed);
	for (k = wal_index_hash(pgno);
	     atomic_load_explicit(&hashes[k], memory_order_relaxed);
	     k = (k + 1) & (WAL_INDEX_HASH_SLOTS - 1))
		;
	/* A reader that finds the entry finds its page number. */
	atomic_store_explicit(&hashes[k], (uint16_t)entry, memory_order_release);
	return 0;
}

static int write_vectors(int fd, struct iovec *v, int n, uint64_t offset)
{
	while (n) {
		ssize_t done = pwritev(fd, v, n, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		offset += (uint64_t)done;
		while (n && (size_t)done >= v->iov_len) {
			done -= (ssize_t)v->iov_len;
			v++;
			n--;
		}
		if (n) {
			v->iov_base = (uint8_t *)v->iov_base + done;
			v->iov_len -= (size_t)done;
		}
	}
	return 0;
}

void wal_writer_prepare(struct wal_writer *w, const uint8_t *frames, uint32_t n, bool marks,
			uint32_t (*sums)[2])
{
	uint32_t stride = WAL_FRAME_HEADER + w->page_bytes;
	uint32_t sum[2] = {w->sum[0], w->sum[1]};

	assert(n <= WAL_WRITER_FRAMES);
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *frame = frames + (uint64_t)i * stride;
		uint32_t pgno, db_pages;

		memcpy(&pgno, frame, 4);
		memcpy(&db_pages, frame + 4, 4);
		wal_frame_put(w->head[i], be32toh(pgno), marks ? be32toh(db_pages) : 0,
			      w->header.salt, frame + WAL_FRAME_HEADER, w->page_bytes, sum, false);
		memcpy(sums[i], sum, sizeof(sum));
	}
	memcpy(w->prepared_sum, sum, sizeof(sum));
}

int wal_writer_append(struct wal_writer *w, const uint8_t *frames, uint32_t n)
{
	static struct iovec v[2 * WAL_WRITER_IOVECS];
	uint32_t stride = WAL_FRAME_HEADER + w->page_bytes;
	uint32_t pgno;
	int err;

	for (uint32_t i = 0; i < n;) {
		uint32_t first = i, k = 0;

		for (; i < n && k < WAL_WRITER_IOVECS; i++, k++) {
			const uint8_t *page = frames + (uint64_t)i * stride + WAL_FRAME_HEADER;

			v[2 * k] = (struct iovec){w->head[i], WAL_FRAME_HEADER};
			v[2 * k + 1] = (struct iovec){(void *)(uintptr_t)page, w->page_bytes};
		}
		err = write_vectors(w->wal_fd, v, (int)(2 * k),
				    wal_frame_offset(w->appended + first + 1, w->page_bytes));
		if (err)
			return err;
	}
	for (uint32_t i = 0; i < n; i++) {
		memcpy(&pgno, frames + (uint64_t)i * stride, 4);
		err = index_frame(w, w->appended + i + 1, be32toh(pgno));
		if (err)
			return err;
	}
	w->appended += n;
	memcpy(w->sum, w->prepared_sum, sizeof(w->sum));
	return 0;
}

int wal_writer_last(struct wal_writer *w, uint8_t *ret_frame)
{
	size_t bytes = WAL_FRAME_HEADER + w->page_bytes;

	return pread(w->wal_fd, ret_frame, bytes,
		     (off_t)wal_frame_offset(w->appended, w->page_bytes)) == (ssize_t)bytes ?
		       0 :
		       -EIO;
}

void wal_writer_publish(struct wal_writer *w, uint32_t frame, uint32_t db_pages,
			const uint32_t sum[2])
{
	assert(frame > w->header.mx_frame && frame <= w->appended && db_pages > 0);
	w->header.mx_frame = frame;
	w->header.db_pages = db_pages;
	w->header.change++;
	w->header.page_code = wal_index_page_code(w->page_bytes);
	memcpy(w->header.frame_checksum, sum, sizeof(w->header.frame_checksum));
	wal_index_publish(w->conn.index, &w->header);
}

void wal_writer_rollback(struct wal_writer *w)
{
	uint8_t bytes[WAL_HEADER_BYTES];
	struct wal_header h;

	if (w->appended == w->header.mx_frame)
		return;
	w->appended = w->header.mx_frame;
	memcpy(w->sum, w->header.frame_checksum, sizeof(w->sum));
	/* Before the first frame the checksum goes on from the file's header; publish_empty() keeps
	 * it in the index, but a recovery may have put the header there without. */
	if (w->appended == 0 && pread(w->wal_fd, bytes, sizeof(bytes), 0) == sizeof(bytes) &&
	    wal_header_get(bytes, &h) == 0)
		memcpy(w->sum, h.checksum, sizeof(w->sum));
}

int wal_writer_restart(struct wal_writer *w, void (*about_to)(void *ctx, const uint32_t salt[2]),
		       void *ctx)
{
	int err;

	if (w->header.mx_frame == 0 || w->appended != w->header.mx_frame ||
	    wal_index_backfill(w->conn.index) != w->header.mx_frame || lock_for_restart(w))
		return 0;
	err = begin_life(w, about_to, ctx);
	unlock_after_restart(w);
	return err ? err : 1;
}
