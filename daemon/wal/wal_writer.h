/* wal_writer.h - a native writer of a replica's WAL, as SQLite itself writes it.
 *
 * It holds WAL_WRITE_LOCK from open to close, so that no other program can write (SQLITE_BUSY); stock
 * readers see whole commits only, because only the published header makes frames visible.
 *
 *   appended    frames in the file and in the hash tables, above mxFrame: invisible
 *   published   the header tells of them: the commit, atomic for every reader (W1 in wal_index.h)
 *
 * Frames that were appended and not published are dropped by wal_writer_rollback(), or overwritten
 * by whoever writes next after a crash: their hash entries are cleared when met again.
 *
 * The WAL begins a new life when it is backfilled whole and no reader needs it. Its header is
 * written and synced before any frame: a power loss could otherwise leave the old header before
 * a mixture of old and new frames. */
#ifndef WALWIRE_WAL_WRITER_H
#define WALWIRE_WAL_WRITER_H

#include "daemon/wal/conn.h"
#include "daemon/wal/wal.h"

#define WAL_WRITER_IOVECS 512  /* frames in one pwritev */
#define WAL_WRITER_KEEP_BYTES (64u << 20) /* a longer WAL is cut when it begins anew */
#define WAL_WRITER_FRAMES 2048 /* in one append: more than any batch has */

struct wal_writer {
	struct conn conn;
	int wal_fd;
	uint32_t page_bytes;
	struct wal_index_header header; /* as last published */
	uint32_t sequence;
	uint32_t appended; /* last frame in the file */
	uint32_t sum[2];   /* its checksum */
	uint32_t prepared_sum[2];
	uint8_t (*head)[WAL_FRAME_HEADER]; /* prepared headers */
	volatile void *region; /* of the last frame indexed, */
	uint32_t region_nr;    /* this one; UINT32_MAX: none */
};

/* Open the database at `path` (in WAL mode), take the write lock and read w->header: what another
 * program or an earlier life of ours left. 0; -EBUSY: another program holds the lock; -errno.
 * `why` gets a sentence. */
int wal_writer_open(struct wal_writer *w, const char *path, uint32_t page_bytes, char *why,
		    size_t why_bytes);

/* Go on from w->header; a WAL without a header gets one. `about_to` as below. 0; -errno. */
int wal_writer_adopt(struct wal_writer *w, void (*about_to)(void *ctx, const uint32_t salt[2]),
		     void *ctx);
void wal_writer_close(struct wal_writer *w);

/* Prepare headers for `n` frames in the layout of batch.h (24 bytes, then the page; pgno and size
 * count) that follow one another at `frames`. sums[i] gets the checksum pair after frame i. With
 * `marks` false no frame is marked as the end of a commit. n is WAL_WRITER_FRAMES at most. */
void wal_writer_prepare(struct wal_writer *w, const uint8_t *frames, uint32_t n, bool marks,
			uint32_t (*sums)[2]);

/* Append what was prepared last. All or nothing. 0; -ENOSPC and the like. */
int wal_writer_append(struct wal_writer *w, const uint8_t *frames, uint32_t n);

/* Read the page of the frame appended last, with its pgno as in a batch. 0; -EIO. */
int wal_writer_last(struct wal_writer *w, uint8_t *ret_frame);

/* Make everything up to `frame` visible as one commit of a database of `db_pages` pages. */
void wal_writer_publish(struct wal_writer *w, uint32_t frame, uint32_t db_pages,
			const uint32_t sum[2]);

/* Forget what was appended and not published. */
void wal_writer_rollback(struct wal_writer *w);

/* Begin a new life of the WAL if nothing in it is needed any more. 1: done; 0: not now; -errno.
 * `about_to` is called with the new salts just before they are published. */
int wal_writer_restart(struct wal_writer *w, void (*about_to)(void *ctx, const uint32_t salt[2]),
		       void *ctx);

static inline uint64_t wal_writer_bytes(const struct wal_writer *w)
{
	return wal_frame_offset(w->appended + 1, w->page_bytes);
}

#endif
