/* tap.c - choose, load and feed the programs of bpf/tap.bpf.c.
 *
 * Which programs a kernel lets us use is not asked of its version: each is loaded and attached
 * alone, and the final object holds those that came through. Whether the lock hook really fires
 * is seen at once, since learning begins with a lock of ours that the program must answer. */
#include "daemon/capture/tap.h"

#include <assert.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "bpf/tap.skel.h"

#define INODES (2 * TAP_FILES) /* of a slot: each file's own and the one behind it */

struct tap {
	struct tap_bpf *skel; /* NULL: never wakes */
	struct ring_buffer *events;
	struct tap_seen *draining;
	unsigned int learning; /* slot */
	int handshake_fd;      /* a memfd, whose cookie byte we lock to be recognised */
	uint64_t known[TAP_SLOTS][INODES];
	char describe[256];
};

enum fs { FS_ANY, FS_EXT4, FS_XFS, FS_BTRFS, FS_F2FS, FS_TMPFS, FILE_SYSTEMS };

/* Of a file system's hooks those of the first rank that works are used, all that work of it. */
struct hook {
	const char *program;
	enum fs fs;
	int rank;
	bool tracing; /* fexit: a kernel may refuse them all */
};

static const struct hook lock_hook = {"locks", FS_ANY, 0, false};

static const struct hook write_hooks[] = {
	{"ext4_file_write_iter", FS_EXT4, 1, true},
	{"ext4_da_write_end", FS_EXT4, 2, false},
	{"ext4_write_end", FS_EXT4, 2, false},
	{"xfs_file_write_iter", FS_XFS, 1, true},
	{"xfs_file_buffered_write", FS_XFS, 2, false},
	{"btrfs_file_write_iter", FS_BTRFS, 1, true},
	{"f2fs_file_write_iter", FS_F2FS, 1, true},
	{"shmem_file_write_iter", FS_TMPFS, 1, true},
	{"generic_file_write_iter", FS_TMPFS, 2, true}, /* tmpfs before Linux 6.6 */
};

#define WRITE_HOOKS (sizeof(write_hooks) / sizeof(write_hooks[0]))

/* An object with these programs and no others, attached. NULL with errno. */
static struct tap_bpf *load_programs(const struct hook *const *hooks, size_t n, uint64_t cookie,
				     bool locks_teach)
{
	struct tap_bpf *skel = tap_bpf__open();
	struct bpf_program *prog;
	int err;

	if (!skel)
		return NULL;
	bpf_object__for_each_program(prog, skel->obj)
	{
		bool wanted = false;

		for (size_t i = 0; i < n; i++)
			wanted |= !strcmp(hooks[i]->program, bpf_program__name(prog));
		bpf_program__set_autoload(prog, wanted);
	}
	skel->rodata->cookie = cookie;
	skel->rodata->locks_teach = locks_teach;
	err = tap_bpf__load(skel);
	if (!err)
		err = tap_bpf__attach(skel);
	if (err) {
		tap_bpf__destroy(skel);
		errno = -err;
		return NULL;
	}
	return skel;
}

/* Does it load and attach here? 0 or -errno. */
static int probe(const struct hook *hook)
{
	struct tap_bpf *skel = load_programs(&hook, 1, 0, false);

	if (!skel)
		return -errno;
	tap_bpf__destroy(skel);
	return 0;
}

/* Fill `ret` with the write hooks that work. */
static size_t choose_write_hooks(const struct hook **ret)
{
	int rank[FILE_SYSTEMS] = {0};
	bool tracing = true;
	size_t n = 0;

	for (size_t i = 0; i < WRITE_HOOKS; i++) {
		const struct hook *hook = &write_hooks[i];
		int err;

		if ((rank[hook->fs] && rank[hook->fs] != hook->rank) || (hook->tracing && !tracing))
			continue;
		err = probe(hook);
		if (err == -EPERM && hook->tracing)
			tracing = false;
		if (err)
			continue;
		rank[hook->fs] = hook->rank;
		ret[n++] = hook;
	}
	return n;
}

static void describe(struct tap *t, const struct hook *const *hooks, size_t n, bool locks_teach)
{
	size_t end = sizeof(t->describe);
	size_t at;

	at = snprintf(t->describe, end, "locks: posix_lock_inode%s; writes:%s",
		      locks_teach ? " (to learn)" : "", n ? "" : " none");
	for (size_t i = 0; i < n && at < end; i++)
		at += snprintf(t->describe + at, end - at, "%s %s%s", i ? "," : "",
			       hooks[i]->tracing ? "fexit " : "", hooks[i]->program);
}

static int silent(enum libbpf_print_level level, const char *format, va_list args)
{
	(void)level;
	(void)format;
	(void)args;
	return 0;
}

static int take_event(void *ctx, void *data, size_t bytes)
{
	const struct tap_event *e = data;
	struct tap_seen *seen = ((struct tap *)ctx)->draining;
	uint64_t bit;

	assert(bytes >= sizeof(*e) && e->slot < TAP_SLOTS);
	bit = 1ull << e->slot;
	switch (e->kind) {
	case TAP_EVENT_BEGIN:
		seen->begin |= bit;
		break;
	case TAP_EVENT_CHECKPOINT:
		seen->checkpoint |= bit;
		break;
	case TAP_EVENT_WAL_WRITE:
		seen->wal_write |= bit;
		break;
	case TAP_EVENT_FOREIGN_WRITE:
		seen->foreign_write |= bit;
		break;
	}
	return 0;
}

/* Locking the cookie's byte of a file of our own tells the program which thread we are, in the
 * kernel's own numbers (getpid() tells those of our pid namespace), and tells us that it runs. */
static int introduce_ourselves(struct tap *t)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
	struct tap_bpf__bss *bss = t->skel->bss;
	uint64_t before = bss->learner;
	int err = 0;

	lock.l_start = t->skel->rodata->cookie;
	__atomic_store_n(&bss->learner, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&bss->words.learning, 1, __ATOMIC_SEQ_CST);
	if (fcntl(t->handshake_fd, F_SETLK, &lock) < 0)
		err = -errno;
	lock.l_type = F_UNLCK;
	if (!err && fcntl(t->handshake_fd, F_SETLK, &lock) < 0)
		err = -errno;
	if (!err && !__atomic_load_n(&bss->learner, __ATOMIC_RELAXED))
		err = -EAGAIN;
	if (err) {
		__atomic_store_n(&bss->words.learning, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&bss->learner, before, __ATOMIC_RELAXED);
	}
	return err;
}

static void unload(struct tap *t)
{
	ring_buffer__free(t->events);
	tap_bpf__destroy(t->skel);
	if (t->handshake_fd >= 0)
		close(t->handshake_fd);
	t->events = NULL;
	t->skel = NULL;
	t->handshake_fd = -1;
}

/* From the chosen hooks to a tap that is known to fire. 0 or -errno, then nothing is loaded. */
static int start(struct tap *t, const struct hook *const *hooks, size_t n, bool locks_teach)
{
	uint64_t cookie;
	int err;

	if (getrandom(&cookie, sizeof(cookie), 0) != sizeof(cookie))
		return -EIO;
	cookie = cookie >> 2 | 1ull << 61; /* a lock offset, far above all that SQLite locks */
	t->skel = load_programs(hooks, n, cookie, locks_teach);
	if (!t->skel)
		return -errno;
	t->events = ring_buffer__new(bpf_map__fd(t->skel->maps.events), take_event, t, NULL);
	if (!t->events) {
		err = -errno;
		goto failed;
	}
	t->handshake_fd = memfd_create("walwire-tap", MFD_CLOEXEC);
	if (t->handshake_fd < 0) {
		err = -errno;
		goto failed;
	}
	err = introduce_ourselves(t);
	if (err)
		goto failed;
	tap_learn_end(t);
	return 0;
failed:
	unload(t);
	return err;
}

static void explain(char *why, size_t why_bytes, int err)
{
	const char *clause;
	char other[96];

	switch (err) {
	case -EPERM:
	case -EACCES:
		clause = "the kernel does not permit it (needs CAP_BPF and CAP_PERFMON, or root)";
		break;
	case -EAGAIN:
		clause = "posix_lock_inode could be attached but does not fire";
		break;
	case -ENOSYS:
		clause = "the kernel is built without BPF";
		break;
	default:
		if (access("/sys/kernel/btf/vmlinux", R_OK) < 0) {
			clause = "the kernel is built without BTF";
			break;
		}
		snprintf(other, sizeof(other), "posix_lock_inode cannot be attached: %s",
			 strerror(-err));
		clause = other;
	}
	snprintf(why, why_bytes, "%s", clause);
}

int tap_open(struct tap **ret_tap, enum tap_mode mode, char *why, size_t why_bytes)
{
	const struct hook *hooks[1 + WRITE_HOOKS] = {&lock_hook};
	bool locks_teach = mode == TAP_MODE_WRITES;
	struct tap *t = calloc(1, sizeof(*t));
	libbpf_print_fn_t print;
	size_t writes = 0;
	int err;

	if (!t)
		return -ENOMEM;
	t->handshake_fd = -1;
	snprintf(t->describe, sizeof(t->describe), "none: naps alone");
	snprintf(why, why_bytes, "%s", mode == TAP_MODE_OFF ? "switched off" : "");
	if (mode == TAP_MODE_OFF)
		goto out;
	print = libbpf_set_print(silent); /* a refusal is an answer, not a message */
	err = probe(&lock_hook);
	if (!err && mode != TAP_MODE_LOCKS)
		writes = choose_write_hooks(hooks + 1);
	if (!err && locks_teach && !writes)
		snprintf(why, why_bytes, "no write hook can be attached");
	else if (!err)
		err = start(t, hooks, 1 + writes, locks_teach);
	libbpf_set_print(print);
	if (err)
		explain(why, why_bytes, err);
	if (t->skel)
		describe(t, hooks + 1, writes, locks_teach);
out:
	*ret_tap = t;
	return 0;
}

void tap_close(struct tap *t)
{
	if (!t)
		return;
	unload(t);
	free(t);
}

void tap_detach(struct tap *t)
{
	if (t->skel)
		tap_bpf__detach(t->skel);
}

int tap_attach(struct tap *t)
{
	int err = t->skel ? tap_bpf__attach(t->skel) : 0;

	if (err)
		tap_bpf__detach(t->skel);
	return err;
}

const char *tap_describe(const struct tap *t)
{
	return t->describe;
}

bool tap_wakes(const struct tap *t)
{
	return t->skel;
}

int tap_fd(const struct tap *t)
{
	return t->skel ? bpf_map__fd(t->skel->maps.events) : -1;
}

void tap_arm(struct tap *t, unsigned int arm)
{
	assert(!(arm & ~(TAP_ARM_BEGIN | TAP_ARM_CHECKPOINT)));
	if (t->skel)
		__atomic_store_n(&t->skel->bss->words.arm, arm, __ATOMIC_SEQ_CST);
}

void tap_mute_slots(struct tap *t, uint64_t slots)
{
	if (t->skel)
		__atomic_store_n(&t->skel->bss->words.slot_muted, slots, __ATOMIC_SEQ_CST);
}

unsigned int tap_drain(struct tap *t, struct tap_seen *ret)
{
	int events;

	memset(ret, 0, sizeof(*ret));
	if (!t->skel)
		return 0;
	t->draining = ret;
	events = ring_buffer__consume(t->events);
	t->draining = NULL;
	return events > 0 ? events : 0;
}

void tap_count(const struct tap *t, struct tap_counts *ret)
{
	struct bpf_program *prog;

	memset(ret, 0, sizeof(*ret));
	if (!t->skel)
		return;
	ret->events = __atomic_load_n(&t->skel->bss->events_sent, __ATOMIC_RELAXED);
	ret->dropped = __atomic_load_n(&t->skel->bss->events_dropped, __ATOMIC_RELAXED);
	ret->wal_writes = __atomic_load_n(&t->skel->bss->wal_writes, __ATOMIC_RELAXED);
	ret->wal_bytes = __atomic_load_n(&t->skel->bss->wal_bytes, __ATOMIC_RELAXED);
	bpf_object__for_each_program(prog, t->skel->obj)
	{
		struct bpf_prog_info info = {0};
		uint32_t bytes = sizeof(info);
		int fd = bpf_program__fd(prog);

		if (fd >= 0 && !bpf_obj_get_info_by_fd(fd, &info, &bytes))
			ret->missed += info.recursion_misses;
	}
}

int tap_learn_begin(struct tap *t, unsigned int slot)
{
	assert(slot < TAP_SLOTS);
	if (!t->skel)
		return 0;
	t->learning = slot;
	memset(t->skel->bss->learned, 0, sizeof(t->skel->bss->learned));
	return introduce_ourselves(t);
}

/* Stop watching the slot's inode; unless the address has been learned for another slot since. */
static void unwatch(struct tap *t, unsigned int slot, unsigned int i)
{
	struct bpf_map *map = t->skel->maps.watched;
	uint64_t inode = t->known[slot][i];
	struct tap_watch w;

	t->known[slot][i] = 0;
	if (!inode || bpf_map__lookup_elem(map, &inode, sizeof(inode), &w, sizeof(w), 0) < 0)
		return;
	if (w.slot == slot && w.file == i / 2)
		bpf_map__delete_elem(map, &inode, sizeof(inode), 0);
}

/* True if the program watches `inode` now as the slot's `i`. */
static bool watch(struct tap *t, unsigned int slot, unsigned int i, uint64_t inode)
{
	struct tap_watch w = {.slot = slot, .file = i / 2};

	if (t->known[slot][i] != inode)
		unwatch(t, slot, i);
	if (!inode || bpf_map__update_elem(t->skel->maps.watched, &inode, sizeof(inode), &w,
					   sizeof(w), BPF_ANY) < 0)
		return false;
	t->known[slot][i] = inode;
	return true;
}

int tap_learn_end(struct tap *t)
{
	struct tap_bpf__bss *bss;
	int mask = 0;

	if (!t->skel || !t->skel->bss->words.learning)
		return 0;
	bss = t->skel->bss;
	__atomic_store_n(&bss->words.learning, 0, __ATOMIC_SEQ_CST);
	for (unsigned int file = 0; file < TAP_FILES; file++) {
		const struct tap_learned *l = &bss->learned[file];

		if (!l->inode || !watch(t, t->learning, 2 * file, l->inode))
			continue;
		watch(t, t->learning, 2 * file + 1, l->behind);
		mask |= 1 << file;
	}
	if (mask & TAP_LEARNED_SHM)
		__atomic_store_n(&bss->shm_inode[t->learning], bss->learned[TAP_FILE_SHM].inode,
				 __ATOMIC_RELAXED);
	return mask;
}

int tap_learn_wal(struct tap *t, unsigned int slot, int wal_fd)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
	int err = tap_learn_begin(t, slot);
	int mask;

	if (err || !t->skel)
		return err;
	lock.l_start = TAP_WAL_LEARN_BYTE;
	if (fcntl(wal_fd, F_SETLK, &lock) < 0)
		err = -errno;
	lock.l_type = F_UNLCK;
	if (!err && fcntl(wal_fd, F_SETLK, &lock) < 0)
		err = -errno;
	mask = tap_learn_end(t);
	return err ? err : mask;
}

void tap_forget(struct tap *t, unsigned int slot)
{
	assert(slot < TAP_SLOTS);
	if (!t->skel)
		return;
	/* First, so that nobody walks the locks of a -shm that is about to be closed. */
	__atomic_store_n(&t->skel->bss->shm_inode[slot], 0, __ATOMIC_RELAXED);
	for (unsigned int i = 0; i < INODES; i++)
		unwatch(t, slot, i);
}
