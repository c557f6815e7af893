/* conn.h - our own SQLite connection to a database: the way to its locks and its index.
 *
 * Locks and the mapped wal-index are taken through SQLite (SQLITE_FCNTL_FILE_POINTER, xShmMap,
 * xShmLock), so that its accounting of this process's locks stays right. The connection reads once
 * when it is opened: from then on it holds SHARED on the database, and no other connection's last
 * close can remove the WAL. It never checkpoints, not even when it is closed.
 *
 * C1  Never open and close the database or the -shm by another descriptor in this process while
 *     a connection is open: closing it drops the locks of all. Only the -wal may be. */
#ifndef WALWIRE_CONN_H
#define WALWIRE_CONN_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/wal/wal_index.h"

#define CONN_REGIONS_MAX 65536 /* 268 million frames */

struct conn {
	sqlite3 *db;
	sqlite3_file *file;
	volatile void *index; /* region 0 */
};

enum conn_problem {
	CONN_OK,
	CONN_MISSING,	/* no such file, or empty so far */
	CONN_NOT_DB,	/* not a SQLite database */
	CONN_NOT_WAL,	/* another journal mode */
	CONN_EXCLUSIVE, /* locked by an application in exclusive mode */
	CONN_NO_ACCESS, /* permissions */
	CONN_FAILED	/* anything else; see the sentence */
};

/* Look at the file's first bytes without SQLite (a rollback journal must not be rolled back by
 * us). For use before any connection to `path` is open in this process: C1. */
enum conn_problem conn_look(const char *path, char *why, size_t why_bytes);

#define CONN_BUSY_MS 500

/* Open, check the journal mode, read once; locks are waited for busy_ms at most, now and later.
 * On a problem `why` holds a sentence with its remedy. */
enum conn_problem conn_open(struct conn *c, const char *path, int busy_ms, char *why,
			    size_t why_bytes);
void conn_close(struct conn *c);

/* Run one statement for its effect (a read, a checkpoint, a pragma). 0; -EBUSY; -EIO. */
int conn_exec(struct conn *c, const char *sql);

/* Read a page of the schema: lets SQLite rebuild an unreadable wal-index. */
int conn_recover(struct conn *c);

/* Lock bytes [first, first + n) of the wal-index. 0; -EBUSY at once when held; -EIO. */
int conn_lock_shared(struct conn *c, int first);
int conn_lock_exclusive(struct conn *c, int first, int n);
void conn_unlock_shared(struct conn *c, int first);
void conn_unlock_exclusive(struct conn *c, int first, int n);

/* The wal-index region `region`, added to the file when `extend`. NULL when it is not there. */
volatile void *conn_region(struct conn *c, uint32_t region, bool extend);

/* Read bytes of the database file itself. 0; -EIO; short reads are filled with zeros. */
int conn_read_file(struct conn *c, void *to, uint32_t bytes, uint64_t offset);

/* Let the database file reach the disk. 0; -EIO. */
int conn_sync_file(struct conn *c);

/* A passive checkpoint with fsync. 0 or -errno; frames in the WAL and of these backfilled. */
int conn_checkpoint(struct conn *c, uint32_t *ret_frames, uint32_t *ret_backfilled);

/* Pages in the database file itself: its size as long as the WAL has never told another. */
int conn_file_pages(struct conn *c, uint32_t page_bytes, uint32_t *ret_pages);

#endif
