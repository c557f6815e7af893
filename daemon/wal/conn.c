#include "daemon/wal/conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum conn_problem conn_look(const char *path, char *why, size_t why_bytes)
{
	uint8_t head[100];
	struct stat st;
	ssize_t n;
	int fd;

	fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (fd < 0) {
		if (errno == ENOENT) {
			snprintf(why, why_bytes, "there is no '%s' yet", path);
			return CONN_MISSING;
		}
		snprintf(why, why_bytes,
			 "cannot open '%s': %s; run as root or as the database's owner", path,
			 strerror(errno));
		return errno == EISDIR ? CONN_NOT_DB : CONN_NO_ACCESS;
	}
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		snprintf(why, why_bytes, "'%s' is not a file; name the database file", path);
		return CONN_NOT_DB;
	}
	n = pread(fd, head, sizeof(head), 0);
	close(fd);
	if (n == 0) {
		snprintf(why, why_bytes, "'%s' is empty so far", path);
		return CONN_MISSING;
	}
	if (n < (ssize_t)sizeof(head) || memcmp(head, "SQLite format 3", 16)) {
		snprintf(why, why_bytes, "'%s' is not a SQLite database; name the database file",
			 path);
		return CONN_NOT_DB;
	}
	if (head[18] != 2 || head[19] != 2) {
		snprintf(why, why_bytes,
			 "'%s' is not in WAL mode; run: PRAGMA journal_mode=WAL", path);
		return CONN_NOT_WAL;
	}
	return CONN_OK;
}

static enum conn_problem explain(struct conn *c, int rc, const char *path, char *why,
				 size_t why_bytes)
{
	int code = rc & 0xff;

	if (code == SQLITE_BUSY || code == SQLITE_LOCKED) {
		snprintf(why, why_bytes,
			 "'%s' is locked by an application in exclusive mode; let it open the "
			 "database with PRAGMA locking_mode=NORMAL",
			 path);
		return CONN_EXCLUSIVE;
	}
	if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT) {
		snprintf(why, why_bytes, "'%s' is not a sound SQLite database (%s)", path,
			 sqlite3_errmsg(c->db));
		return CONN_NOT_DB;
	}
	if (code == SQLITE_CANTOPEN || code == SQLITE_PERM || code == SQLITE_READONLY) {
		snprintf(why, why_bytes,
			 "cannot open '%s' with its -wal and -shm (%s); run as root or as the "
			 "database's owner",
			 path, sqlite3_errmsg(c->db));
		return CONN_NO_ACCESS;
	}
	snprintf(why, why_bytes, "cannot read '%s': %s", path, sqlite3_errmsg(c->db));
	return CONN_FAILED;
}

int conn_exec(struct conn *c, const char *sql)
{
	int rc = sqlite3_exec(c->db, sql, NULL, NULL, NULL) & 0xff;

	if (rc == SQLITE_OK)
		return 0;
	return rc == SQLITE_BUSY || rc == SQLITE_LOCKED ? -EBUSY : -EIO;
}

int conn_recover(struct conn *c)
{
	return conn_exec(c, "SELECT count(*) FROM sqlite_schema");
}

static int is_wal(struct conn *c, bool *ret_wal)
{
	sqlite3_stmt *stmt = NULL;
	int rc = sqlite3_prepare_v2(c->db, "PRAGMA journal_mode", -1, &stmt, NULL);

	*ret_wal = false;
	if (rc == SQLITE_OK) {
		rc = sqlite3_step(stmt);
		if (rc == SQLITE_ROW)
			*ret_wal = !strcmp((const char *)sqlite3_column_text(stmt, 0), "wal");
	}
	sqlite3_finalize(stmt);
	return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

enum conn_problem conn_open(struct conn *c, const char *path, int busy_ms, char *why,
			    size_t why_bytes)
{
	enum conn_problem problem;
	volatile void *index = NULL;
	bool wal;
	int rc;

	memset(c, 0, sizeof(*c));
	/* FULLMUTEX: the pinned loop and the worker may use one connection in turn. */
	rc = sqlite3_open_v2(path, &c->db,
			     SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX,
			     NULL);
	if (rc != SQLITE_OK) {
		problem = explain(c, rc, path, why, why_bytes);
		goto fail;
	}
	sqlite3_extended_result_codes(c->db, 1);
	sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	sqlite3_busy_timeout(c->db, busy_ms);
	rc = sqlite3_exec(c->db, "PRAGMA wal_autocheckpoint=0; SELECT count(*) FROM sqlite_schema",
			  NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = is_wal(c, &wal);
	if (rc != SQLITE_OK) {
		problem = explain(c, rc, path, why, why_bytes);
		goto fail;
	}
	if (!wal) {
		snprintf(why, why_bytes,
			 "'%s' is not in WAL mode; run: PRAGMA journal_mode=WAL", path);
		problem = CONN_NOT_WAL;
		goto fail;
	}
	rc = sqlite3_file_control(c->db, "main", SQLITE_FCNTL_FILE_POINTER, &c->file);
	if (rc == SQLITE_OK && c->file && c->file->pMethods && c->file->pMethods->iVersion >= 2)
		rc = c->file->pMethods->xShmMap(c->file, 0, WAL_INDEX_REGION_BYTES, 0, &index);
	if (rc != SQLITE_OK || !index) {
		snprintf(why, why_bytes, "cannot map the wal-index of '%s'", path);
		problem = CONN_FAILED;
		goto fail;
	}
	c->index = index;
	return CONN_OK;
fail:
	conn_close(c);
	return problem;
}

void conn_close(struct conn *c)
{
	if (c->db)
		sqlite3_close_v2(c->db);
	memset(c, 0, sizeof(*c));
}

static int shm_lock(struct conn *c, int first, int n, int flags)
{
	int rc = c->file->pMethods->xShmLock(c->file, first, n, flags) & 0xff;

	if (rc == SQLITE_OK)
		return 0;
	return rc == SQLITE_BUSY ? -EBUSY : -EIO;
}

int conn_lock_shared(struct conn *c, int first)
{
	return shm_lock(c, first, 1, SQLITE_SHM_LOCK | SQLITE_SHM_SHARED);
}

int conn_lock_exclusive(struct conn *c, int first, int n)
{
	return shm_lock(c, first, n, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
}

void conn_unlock_shared(struct conn *c, int first)
{
	shm_lock(c, first, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
}

void conn_unlock_exclusive(struct conn *c, int first, int n)
{
	shm_lock(c, first, n, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
}

volatile void *conn_region(struct conn *c, uint32_t region, bool extend)
{
	volatile void *at = NULL;

	if (region >= CONN_REGIONS_MAX ||
	    c->file->pMethods->xShmMap(c->file, (int)region, WAL_INDEX_REGION_BYTES, extend, &at) !=
		    SQLITE_OK)
		return NULL;
	return at;
}

int conn_read_file(struct conn *c, void *to, uint32_t bytes, uint64_t offset)
{
	int rc = c->file->pMethods->xRead(c->file, to, (int)bytes, (sqlite3_int64)offset);

	return rc == SQLITE_OK || rc == SQLITE_IOERR_SHORT_READ ? 0 : -EIO;
}

int conn_file_pages(struct conn *c, uint32_t page_bytes, uint32_t *ret_pages)
{
	sqlite3_int64 bytes = 0;

	if (c->file->pMethods->xFileSize(c->file, &bytes) != SQLITE_OK)
		return -EIO;
	*ret_pages = (uint32_t)((uint64_t)bytes / page_bytes);
	return 0;
}

int conn_sync_file(struct conn *c)
{
	return c->file->pMethods->xSync(c->file, SQLITE_SYNC_NORMAL) == SQLITE_OK ? 0 : -EIO;
}

int conn_checkpoint(struct conn *c, uint32_t *ret_frames, uint32_t *ret_backfilled)
{
	int frames = 0, backfilled = 0;
	int rc = sqlite3_wal_checkpoint_v2(c->db, "main", SQLITE_CHECKPOINT_PASSIVE, &frames,
					   &backfilled) & 0xff;

	if (rc != SQLITE_OK)
		return rc == SQLITE_BUSY || rc == SQLITE_LOCKED ? -EBUSY :
		       rc == SQLITE_FULL			? -ENOSPC :
								  -EIO;
	*ret_frames = frames < 0 ? 0 : (uint32_t)frames;
	*ret_backfilled = backfilled < 0 ? 0 : (uint32_t)backfilled;
	return 0;
}
