/* test_tap.c - the tap against real applications: other processes that use SQLite, or that write
 * to its files behind its back.
 *
 * Applications are this program executed again ("app", "pwrite", "hold"), so SQLite never crosses
 * a fork and the daemon's side (main) never opens a database at all: it learns inodes with plain
 * locks, as the pin would. Files are made in $TMPDIR, or /tmp. */
#include "daemon/capture/tap.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define BOTH   (TAP_ARM_BEGIN | TAP_ARM_CHECKPOINT)
#define SHARED 0x40000002 /* first of SQLite's shared lock bytes on the database */

static char dir[200];
static struct tap *tap; /* in mode AUTO, for most tests */
static char tap_why[128];
static const char *failure; /* of the running test */

#define CHECK(condition)                              \
	do {                                          \
		if (!(condition)) {                   \
			if (!failure)                 \
				failure = #condition; \
			return;                       \
		}                                     \
	} while (0)

/* ---- applications ---- */

struct app {
	pid_t pid;
	int fd; /* a line to it, a byte back: 'k' done, 'e' failed */
};

static void app_spawn(struct app *a, const char *what, const char *path, const char *number)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	a->pid = fork();
	if (a->pid == 0) {
		dup2(pair[1], 0);
		execl("/proc/self/exe", "test_tap", what, path, number, NULL);
		_exit(127);
	}
	close(pair[1]);
	a->fd = pair[0];
}

static bool app_reply(struct app *a)
{
	char c = 0;

	return read(a->fd, &c, 1) == 1 && c == 'k';
}

static bool app_do(struct app *a, const char *sql)
{
	return write(a->fd, sql, strlen(sql)) > 0 && write(a->fd, "\n", 1) == 1 && app_reply(a);
}

static bool app_end(struct app *a)
{
	int status = -1;

	close(a->fd);
	return waitpid(a->pid, &status, 0) == a->pid && status == 0;
}

/* A one-off: spawn, wait for its reply, let it end. */
static bool run(const char *what, const char *path, const char *number)
{
	struct app a;
	bool ok;

	app_spawn(&a, what, path, number);
	ok = app_reply(&a);
	return app_end(&a) && ok;
}

static void reply(bool ok)
{
	if (write(0, ok ? "k" : "e", 1) != 1)
		exit(1);
}

/* Runs each line as SQL. */
static int app_main(const char *path)
{
	sqlite3 *db;
	FILE *in = fdopen(dup(0), "r");
	char line[512];

	reply(sqlite3_open(path, &db) == SQLITE_OK);
	while (fgets(line, sizeof(line), in))
		reply(sqlite3_exec(db, line, NULL, NULL, NULL) == SQLITE_OK);
	sqlite3_close(db);
	return 0;
}

/* Writes what stands at `offset` there once more; at the end of the file, a zero. */
static int pwrite_main(const char *path, off_t offset)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char c = 0;

	reply(fd >= 0 && pread(fd, &c, 1, offset) >= 0 && pwrite(fd, &c, 1, offset) == 1);
	return 0;
}

static int lock_byte(int fd, int type, off_t byte)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_SETLK, &lock);
}

/* Holds one byte exclusively until a line comes, then unlocks it, and ends at the next. */
static int hold_main(const char *path, off_t byte)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char c = 0;

	reply(fd >= 0 && lock_byte(fd, F_WRLCK, byte) == 0);
	while (read(0, &c, 1) == 1 && c != '\n')
		;
	reply(lock_byte(fd, F_UNLCK, byte) == 0);
	return read(0, &c, 1) < 0;
}

/* ---- a watched database ---- */

struct database {
	char path[256];
	struct app app; /* keeps a connection open */
	int db, shm, wal;
};

static const char *beside(const struct database *d, const char *suffix)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s%s", d->path, suffix);
	return path;
}

/* Made by its application, which has committed one row, and opened by us; not yet learned. */
static bool database_open(struct database *d, const char *folder, const char *name)
{
	snprintf(d->path, sizeof(d->path), "%s/%s", folder, name);
	app_spawn(&d->app, "app", d->path, "");
	if (!app_reply(&d->app) || !app_do(&d->app, "PRAGMA journal_mode=WAL;") ||
	    !app_do(&d->app, "CREATE TABLE IF NOT EXISTS t(x);") ||
	    !app_do(&d->app, "INSERT INTO t VALUES(1);"))
		return false;
	d->db = open(d->path, O_RDWR | O_CLOEXEC);
	d->shm = open(beside(d, "-shm"), O_RDWR | O_CLOEXEC);
	d->wal = open(beside(d, "-wal"), O_RDONLY | O_CLOEXEC);
	return d->db >= 0 && d->shm >= 0 && d->wal >= 0;
}

static void database_close(struct database *d)
{
	close(d->db);
	close(d->shm);
	close(d->wal);
	app_end(&d->app);
	unlink(beside(d, "-wal"));
	unlink(beside(d, "-shm"));
	unlink(d->path);
}

/* Everything, as the pin and the capture would teach it. The mask of what was learned. */
static int learn(struct tap *t, unsigned int slot, const struct database *d)
{
	int mask = 0;

	if (tap_learn_begin(t, slot) < 0)
		return -1;
	lock_byte(d->shm, F_RDLCK, 128);
	lock_byte(d->db, F_RDLCK, SHARED);
	mask = tap_learn_end(t);
	lock_byte(d->shm, F_UNLCK, 128);
	lock_byte(d->db, F_UNLCK, SHARED);
	return mask | tap_learn_wal(t, slot, d->wal);
}

#define LEARNED_ALL (TAP_LEARNED_SHM | TAP_LEARNED_DB | TAP_LEARNED_WAL)

/* Does the descriptor say that an event waits? */
static bool readable(struct tap *t, int timeout_ms)
{
	struct pollfd p = {.fd = tap_fd(t), .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

static bool commit(struct database *d)
{
	return app_do(&d->app, "INSERT INTO t VALUES(2);");
}

static bool checkpoint(struct database *d)
{
	return app_do(&d->app, "PRAGMA wal_checkpoint;");
}

/* Is there a write hook for the file system that we test on? */
static bool has_writes(void)
{
	const char *hooks = strstr(tap_describe(tap), "writes:");
	struct statfs fs;

	if (!hooks || statfs(dir, &fs) < 0)
		return false;
	switch ((unsigned long)fs.f_type) {
	case EXT4_SUPER_MAGIC:
		return strstr(hooks, "ext4_");
	case XFS_SUPER_MAGIC:
		return strstr(hooks, "xfs_");
	case BTRFS_SUPER_MAGIC:
		return strstr(hooks, "btrfs_");
	case F2FS_SUPER_MAGIC:
		return strstr(hooks, "f2fs_");
	case TMPFS_MAGIC:
		return strstr(hooks, "shmem_") || strstr(hooks, "generic_");
	}
	return false;
}

static struct database one, two; /* slots 3 and 63; `two` is learned by some tests only */
static struct tap_seen seen;

/* ---- tests ---- */

/* Armed for a begin, a commit wakes, as what it is. */
static void commit_wakes(void)
{
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(commit(&one));
	CHECK(readable(tap, 1000));
	CHECK(tap_drain(tap, &seen) == 1);
	CHECK(seen.begin == 1ull << 3);
	CHECK(!seen.checkpoint && !seen.wal_write && !seen.foreign_write);
}

/* The event comes when the transaction begins, not when it ends. */
static void begin_wakes_before_the_commit(void)
{
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(app_do(&one.app, "BEGIN IMMEDIATE;"));
	CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 3);
	CHECK(app_do(&one.app, "COMMIT;"));
}

/* A transaction that had begun before the arming wakes by its end. */
static void late_arming_hears_the_end(void)
{
	CHECK(app_do(&one.app, "BEGIN IMMEDIATE;"));
	CHECK(app_do(&one.app, "INSERT INTO t VALUES(3);"));
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(app_do(&one.app, "COMMIT;"));
	CHECK(tap_drain(tap, &seen) == 1);
	CHECK(seen.begin || seen.wal_write);
}

/* A reader neither begins nor checkpoints. */
static void reader_does_not_wake(void)
{
	tap_arm(tap, BOTH);
	CHECK(app_do(&one.app, "SELECT count(*) FROM t;"));
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
}

/* Armed for a checkpoint, commits pass in silence and the checkpoint wakes. */
static void checkpoint_wakes(void)
{
	tap_arm(tap, TAP_ARM_CHECKPOINT);
	CHECK(commit(&one) && commit(&one));
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
	CHECK(checkpoint(&one));
	CHECK(readable(tap, 1000));
	CHECK(tap_drain(tap, &seen) == 1);
	CHECK(seen.checkpoint == 1ull << 3 && !seen.begin && !seen.wal_write);
	CHECK(!seen.foreign_write);
}

/* An arming is one event, however much happens; the next arming brings the next. */
static void one_wake_per_arming(void)
{
	for (int round = 0; round < 5; round++) {
		tap_arm(tap, BOTH);
		for (int i = 0; i < 20; i++)
			CHECK(commit(&one) && checkpoint(&one));
		CHECK(readable(tap, 1000));
		CHECK(tap_drain(tap, &seen) == 1);
		CHECK(!readable(tap, 0) && tap_drain(tap, &seen) == 0);
	}
}

/* Arming again without draining adds an event, it does not lose the first. */
static void undrained_events_add_up(void)
{
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(commit(&one));
	tap_arm(tap, TAP_ARM_CHECKPOINT);
	CHECK(checkpoint(&one));
	CHECK(tap_drain(tap, &seen) == 2);
	CHECK(seen.begin == 1ull << 3 && seen.checkpoint == 1ull << 3);
}

/* Muted, nothing wakes: not after an arming that was taken back either. */
static void muted_is_silent(void)
{
	tap_arm(tap, BOTH);
	tap_arm(tap, 0);
	for (int i = 0; i < 20; i++)
		CHECK(commit(&one));
	CHECK(checkpoint(&one) && run("pwrite", one.path, "0"));
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
}

/* Databases that nobody taught are not ours. */
static void unrelated_is_silent(void)
{
	tap_arm(tap, BOTH);
	for (int i = 0; i < 20; i++)
		CHECK(commit(&two));
	CHECK(checkpoint(&two) && run("pwrite", two.path, "0"));
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
}

/* Each slot has its own bit, the last one too; a muted slot leaves the arming to the others. */
static void slots_are_told_apart(void)
{
	CHECK(learn(tap, 63, &two) == LEARNED_ALL);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(commit(&two));
	CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 63);
	tap_mute_slots(tap, 1ull << 63);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(commit(&two));
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(commit(&one));
	CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 3);
	tap_mute_slots(tap, 0);
	tap_forget(tap, 63);
}

/* The daemon's own locks and writes are no news. */
static void own_process_is_ignored(void)
{
	int wal = open(beside(&one, "-wal"), O_WRONLY | O_CLOEXEC);
	struct stat st;
	char c;

	CHECK(wal >= 0 && fstat(wal, &st) == 0);
	tap_arm(tap, BOTH);
	CHECK(lock_byte(one.shm, F_WRLCK, 120) == 0 && lock_byte(one.shm, F_UNLCK, 120) == 0);
	CHECK(lock_byte(one.shm, F_WRLCK, 121) == 0 && lock_byte(one.shm, F_UNLCK, 121) == 0);
	CHECK(pwrite(wal, "", 1, st.st_size) == 1 && ftruncate(wal, st.st_size) == 0);
	CHECK(pread(one.db, &c, 1, 0) == 1 && pwrite(one.db, &c, 1, 0) == 1);
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
	close(wal);
}

/* A lock that is refused begins nothing. */
static void refused_lock_does_not_wake(void)
{
	CHECK(lock_byte(one.shm, F_WRLCK, 120) == 0);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(!commit(&one));
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(lock_byte(one.shm, F_UNLCK, 120) == 0);
}

/* A write to the WAL by someone who took no lock. */
static void wal_write_wakes(void)
{
	struct tap_counts before, after;
	char end[32];
	struct stat st;

	CHECK(fstat(one.wal, &st) == 0);
	snprintf(end, sizeof(end), "%lld", (long long)st.st_size - 1);
	tap_count(tap, &before);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(run("pwrite", beside(&one, "-wal"), end));
	CHECK(readable(tap, 1000));
	CHECK(tap_drain(tap, &seen) == 1);
	CHECK(seen.wal_write == 1ull << 3 && !seen.begin && !seen.foreign_write);
	tap_count(tap, &after);
	CHECK(after.wal_writes == before.wal_writes + 1);
	CHECK(after.wal_bytes == before.wal_bytes + 1);
	CHECK(after.events == before.events + 1);
}

/* What is written to the WAL while a transaction is awaited is counted. */
static void wal_bytes_are_counted(void)
{
	struct tap_counts before, after;

	tap_count(tap, &before);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(run("pwrite", beside(&one, "-wal"), "0"));
	tap_count(tap, &after);
	CHECK(after.wal_bytes > before.wal_bytes);
}

/* A daemon that waits for checkpoints alone hears nothing of commits. */
static void commits_between_checkpoints_wake_nobody(void)
{
	tap_arm(tap, TAP_ARM_CHECKPOINT);
	CHECK(commit(&one));
	CHECK(tap_drain(tap, &seen) == 0);
}

/* A write to the database file while nobody checkpoints, heard by a daemon that sleeps. */
static void foreign_write_wakes(void)
{
	const unsigned int arms[] = {TAP_ARM_BEGIN, BOTH};

	for (int i = 0; i < 2; i++) {
		unsigned int arm = arms[i];

		tap_arm(tap, arm);
		CHECK(run("pwrite", one.path, "0"));
		CHECK(readable(tap, 1000));
		CHECK(tap_drain(tap, &seen) == 1);
		CHECK(seen.foreign_write == 1ull << 3 && !seen.wal_write && !seen.begin);
	}
}

/* SQLite's own checkpoint writes the database, too. Armed for a begin alone, which a passive
 * checkpoint is not, the tap stays armed all through it. */
static void checkpoint_is_not_foreign(void)
{
	CHECK(commit(&one));
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(checkpoint(&one));
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(commit(&one));
	CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 3);
}

/* A write under the checkpoint lock is the checkpoint's, also if we were muted when it was taken
 * and whatever other locks there are; afterwards it is foreign again. */
static void checkpoint_write_is_not_foreign(void)
{
	struct app holder;

	app_spawn(&holder, "hold", beside(&one, "-shm"), "121");
	CHECK(app_reply(&holder));
	CHECK(lock_byte(one.shm, F_RDLCK, 127) == 0);
	tap_arm(tap, BOTH);
	CHECK(run("pwrite", one.path, "0"));
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(app_do(&holder, "unlock"));
	CHECK(tap_drain(tap, &seen) == 1 && seen.checkpoint == 1ull << 3);
	tap_arm(tap, BOTH);
	CHECK(run("pwrite", one.path, "0"));
	CHECK(tap_drain(tap, &seen) == 1 && seen.foreign_write == 1ull << 3);
	CHECK(lock_byte(one.shm, F_UNLCK, 127) == 0);
	CHECK(app_end(&holder));
}

/* Forgotten, a database is silent; learned again, it wakes again. */
static void forget_works(void)
{
	tap_forget(tap, 3);
	tap_forget(tap, 3);
	tap_forget(tap, 0);
	tap_arm(tap, BOTH);
	CHECK(commit(&one) && checkpoint(&one) && run("pwrite", one.path, "0"));
	CHECK(!readable(tap, 20) && tap_drain(tap, &seen) == 0);
	CHECK(learn(tap, 3, &one) == LEARNED_ALL);
	commit_wakes();
}

/* What is learned is only what was locked, by us, between begin and end. */
static void learns_only_what_is_locked(void)
{
	CHECK(tap_learn_begin(tap, 7) == 0);
	CHECK(commit(&two));
	CHECK(tap_learn_end(tap) == 0);
	CHECK(lock_byte(two.shm, F_RDLCK, 128) == 0 && lock_byte(two.shm, F_UNLCK, 128) == 0);
	CHECK(tap_learn_end(tap) == 0);
	CHECK(tap_learn_begin(tap, 7) == 0);
	CHECK(lock_byte(two.db, F_RDLCK, SHARED) == 0 && lock_byte(two.db, F_UNLCK, SHARED) == 0);
	CHECK(tap_learn_end(tap) == TAP_LEARNED_DB);
	CHECK(tap_learn_wal(tap, 7, -1) == -EBADF);
	tap_arm(tap, BOTH);
	CHECK(commit(&two));
	CHECK(tap_drain(tap, &seen) == 0);
	tap_forget(tap, 7);
}

static int open_descriptors(void);

/* Taken out, nothing is heard and nothing can be learned; put back, all that was learned is still
 * known. Nothing piles up. */
static void out_and_in(void)
{
	int fds = open_descriptors();

	for (int i = 0; i < 5; i++) {
		tap_detach(tap);
		tap_detach(tap);
		tap_arm(tap, BOTH);
		CHECK(commit(&one) && checkpoint(&one));
		CHECK(!readable(tap, 0) && tap_drain(tap, &seen) == 0);
		CHECK(tap_learn_begin(tap, 7) == -EAGAIN && tap_learn_end(tap) == 0);
		CHECK(tap_attach(tap) == 0 && tap_attach(tap) == 0);
		CHECK(commit(&one));
		CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 3);
	}
	CHECK(open_descriptors() == fds);
	commit_wakes();
}

static int open_descriptors(void)
{
	DIR *fds = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(fds))
		n++;
	closedir(fds);
	return n;
}

/* Learning and forgetting for ever costs no memory, no descriptors and no room in the map. */
static void learning_does_not_leak(void)
{
	int fds = open_descriptors();
	size_t bytes;

	CHECK(learn(tap, 63, &two) == LEARNED_ALL);
	bytes = mallinfo2().uordblks;
	for (unsigned int i = 0; i < 10000; i++) {
		CHECK(learn(tap, i % TAP_SLOTS, i & 1 ? &one : &two) == LEARNED_ALL);
		if (i % 3)
			tap_forget(tap, i % TAP_SLOTS);
	}
	for (unsigned int i = 0; i < TAP_SLOTS; i++)
		tap_forget(tap, i);
	CHECK(mallinfo2().uordblks == bytes);
	CHECK(open_descriptors() == fds);
	tap_arm(tap, BOTH);
	CHECK(commit(&one) && commit(&two));
	CHECK(tap_drain(tap, &seen) == 0);
	CHECK(learn(tap, 3, &one) == LEARNED_ALL);
	commit_wakes();
}

/* Opening and closing the tap itself leaves nothing behind either, and taps do not meet. */
static void open_close_does_not_leak(void)
{
	char why[128] = "";
	int fds = 0;

	for (int i = 0; i < 4; i++) {
		struct tap *t;

		CHECK(tap_open(&t, TAP_MODE_AUTO, why, sizeof(why)) == 0 && tap_wakes(t));
		CHECK(learn(t, 5, &one) == LEARNED_ALL);
		tap_arm(t, TAP_ARM_BEGIN);
		CHECK(commit(&one));
		CHECK(tap_drain(t, &seen) == 1 && seen.begin == 1ull << 5);
		tap_close(t);
		CHECK(!i || open_descriptors() == fds);
		fds = open_descriptors();
	}
	tap_close(NULL);
}

/* Locks alone: commits and checkpoints wake, lockless writes do not. */
static void mode_locks(void)
{
	char why[128] = "";
	struct tap *t;

	CHECK(tap_open(&t, TAP_MODE_LOCKS, why, sizeof(why)) == 0 && tap_wakes(t));
	CHECK(!strcmp(tap_describe(t), "locks: posix_lock_inode; writes: none"));
	CHECK(learn(t, 3, &one) == LEARNED_ALL);
	tap_arm(t, BOTH);
	CHECK(run("pwrite", one.path, "0") && tap_drain(t, &seen) == 0);
	CHECK(commit(&one));
	CHECK(tap_drain(t, &seen) == 1 && seen.begin == 1ull << 3);
	tap_close(t);
}

/* Writes alone: locks teach but do not wake; the first frame does. */
static void mode_writes(void)
{
	char why[128] = "";
	struct tap *t;

	CHECK(tap_open(&t, TAP_MODE_WRITES, why, sizeof(why)) == 0 && tap_wakes(t));
	CHECK(learn(t, 3, &one) == LEARNED_ALL);
	tap_arm(t, TAP_ARM_BEGIN);
	CHECK(app_do(&one.app, "BEGIN IMMEDIATE;") && tap_drain(t, &seen) == 0);
	CHECK(app_do(&one.app, "INSERT INTO t VALUES(4);") && app_do(&one.app, "COMMIT;"));
	CHECK(tap_drain(t, &seen) == 1 && seen.wal_write == 1ull << 3 && !seen.begin);
	tap_close(t);
}

/* A tap that never wakes takes every call. */
static void never_wakes(struct tap *t, const char *why)
{
	struct tap_counts counts;

	CHECK(!tap_wakes(t) && tap_fd(t) == -1 && why[0]);
	CHECK(!strcmp(tap_describe(t), "none: naps alone"));
	tap_arm(t, BOTH);
	tap_mute_slots(t, 1);
	CHECK(tap_learn_begin(t, 0) == 0 && tap_learn_end(t) == 0);
	CHECK(tap_learn_wal(t, 0, 0) == 0);
	CHECK(tap_drain(t, &seen) == 0 && !seen.begin);
	tap_count(t, &counts);
	CHECK(!counts.events);
	tap_forget(t, 0);
	tap_close(t);
}

static void mode_off(void)
{
	char why[128] = "";
	struct tap *t;

	CHECK(tap_open(&t, TAP_MODE_OFF, why, sizeof(why)) == 0);
	CHECK(!strcmp(why, "switched off"));
	never_wakes(t, why);
}

/* Without rights: the same, and a reason. */
static void without_rights(void)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		char why[128] = "";
		struct tap *t;

		if (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0)
			_exit(2);
		if (tap_open(&t, TAP_MODE_AUTO, why, sizeof(why)) < 0)
			_exit(3);
		never_wakes(t, why);
		_exit(failure ? 4 : !!strncmp(why, "the kernel does not permit it", 29));
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* The applications of one database on overlayfs: locks at one inode, writes at another. Runs in
 * a mount namespace of its own. */
static void on_overlayfs(void)
{
	struct database d;

	CHECK(database_open(&d, beside(&one, ".merged"), "o.db"));
	CHECK(learn(tap, 9, &d) == LEARNED_ALL);
	tap_arm(tap, TAP_ARM_BEGIN);
	CHECK(commit(&d));
	CHECK(tap_drain(tap, &seen) == 1 && seen.begin == 1ull << 9);
	tap_arm(tap, TAP_ARM_CHECKPOINT);
	CHECK(checkpoint(&d));
	CHECK(tap_drain(tap, &seen) == 1 && seen.checkpoint == 1ull << 9);
	if (has_writes()) {
		tap_arm(tap, TAP_ARM_BEGIN);
		CHECK(run("pwrite", beside(&d, "-wal"), "0"));
		CHECK(tap_drain(tap, &seen) == 1 && seen.wal_write == 1ull << 9);
		tap_arm(tap, TAP_ARM_BEGIN);
		CHECK(run("pwrite", d.path, "0"));
		CHECK(tap_drain(tap, &seen) == 1 && seen.foreign_write == 1ull << 9);
	}
	tap_forget(tap, 9);
	database_close(&d);
}

/* NULL, or why it cannot be shown here. */
static const char *overlayfs(void)
{
	static const char *const layers[] = {"lower", "upper", "work", "merged"};
	char options[1200], path[300];
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		for (int i = 0; i < 4; i++) {
			snprintf(path, sizeof(path), "%s.%s", one.path, layers[i]);
			mkdir(path, 0700);
		}
		snprintf(options, sizeof(options),
			 "lowerdir=%s.lower,upperdir=%s.upper,workdir=%s.work", one.path, one.path,
			 one.path);
		if (unshare(CLONE_NEWNS) < 0 ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		    mount("overlay", path, "overlay", 0, options) < 0)
			_exit(77);
		/* A child is no longer the tap's process for the program, until it learns. */
		on_overlayfs();
		if (failure)
			fprintf(stderr, "on_overlayfs: %s\n", failure);
		_exit(!!failure);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		return "overlayfs cannot be mounted here";
	if (status)
		failure = "on_overlayfs()";
	return NULL;
}

struct test {
	const char *name;
	void (*run)(void);
	bool writes; /* needs a write hook */
};

static const struct test tests[] = {
	{"commit_wakes", commit_wakes, false},
	{"begin_wakes_before_the_commit", begin_wakes_before_the_commit, false},
	{"late_arming_hears_the_end", late_arming_hears_the_end, false},
	{"reader_does_not_wake", reader_does_not_wake, false},
	{"checkpoint_wakes", checkpoint_wakes, false},
	{"one_wake_per_arming", one_wake_per_arming, false},
	{"undrained_events_add_up", undrained_events_add_up, false},
	{"muted_is_silent", muted_is_silent, false},
	{"unrelated_is_silent", unrelated_is_silent, false},
	{"slots_are_told_apart", slots_are_told_apart, false},
	{"own_process_is_ignored", own_process_is_ignored, false},
	{"refused_lock_does_not_wake", refused_lock_does_not_wake, false},
	{"wal_write_wakes", wal_write_wakes, true},
	{"wal_bytes_are_counted", wal_bytes_are_counted, true},
	{"commits_between_checkpoints_wake_nobody", commits_between_checkpoints_wake_nobody, false},
	{"foreign_write_wakes", foreign_write_wakes, true},
	{"checkpoint_is_not_foreign", checkpoint_is_not_foreign, true},
	{"checkpoint_write_is_not_foreign", checkpoint_write_is_not_foreign, true},
	{"forget_works", forget_works, false},
	{"learns_only_what_is_locked", learns_only_what_is_locked, false},
	{"out_and_in", out_and_in, false},
	{"learning_does_not_leak", learning_does_not_leak, false},
	{"open_close_does_not_leak", open_close_does_not_leak, false},
	{"mode_locks", mode_locks, false},
	{"mode_writes", mode_writes, true},
};

static int failed;

static void report(const char *name, const char *skip)
{
	if (failure)
		printf("FAIL %s: %s\n", name, failure);
	else if (skip)
		printf("skip %s: %s\n", name, skip);
	else
		printf("ok %s\n", name);
	failed |= failure != NULL;
	failure = NULL;
	fflush(stdout);
}

static void run_tests(void)
{
	const char *skip = tap_wakes(tap) ? NULL : tap_why;

	if (!skip && (!database_open(&one, dir, "one.db") || !database_open(&two, dir, "two.db") ||
		      learn(tap, 3, &one) != LEARNED_ALL)) {
		failure = "a database was made and learned";
		report("setup", NULL);
		return;
	}
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		const char *why = skip;

		if (!why && tests[i].writes && !has_writes())
			why = "no write hook for this file system here";
		if (!why) {
			tests[i].run();
			tap_arm(tap, 0); /* whatever state a failed test left */
			tap_drain(tap, &seen);
		}
		report(tests[i].name, why);
	}
	report("overlayfs", skip ? skip : overlayfs());
	if (skip)
		return;
	database_close(&one);
	database_close(&two);
}

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	char remove[256];

	if (argc == 4 && !strcmp(argv[1], "app"))
		return app_main(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "pwrite"))
		return pwrite_main(argv[2], atoll(argv[3]));
	if (argc == 4 && !strcmp(argv[1], "hold"))
		return hold_main(argv[2], atoll(argv[3]));

	snprintf(dir, sizeof(dir), "%s/test_tap.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir) || tap_open(&tap, TAP_MODE_AUTO, tap_why, sizeof(tap_why)) < 0)
		return 1;
	printf("# %s%s%s\n", tap_describe(tap), tap_why[0] ? ", because " : "", tap_why);
	run_tests();
	tap_close(tap);
	mode_off();
	report("mode_off", NULL);
	without_rights();
	report("without_rights", NULL);
	snprintf(remove, sizeof(remove), "rm -rf '%s'", dir);
	return system(remove) != 0 || failed;
}
