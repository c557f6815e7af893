/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* tap.bpf.c - says "look here" when an application touches a watched database.
 *
 * Two hooks: locks (posix_lock_inode: every lock step of SQLite passes it) and writes (the file
 * system's own *_file_write_iter, or a tracepoint on its way). Every program is loaded only where
 * it was seen to work (daemon/capture/tap.c). The common cases return first: muted, not ours.
 *
 * Both hooks are in one file, because they share the words, the map and the one way to wake().
 * The kernel's structs are declared with the fields we read only; CO-RE finds their places. */
#include "bpf/tap_event.h"
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <stdbool.h>

char LICENSE[] SEC("license") = "GPL";

#define F_WRLCK	      1
#define F_UNLCK	      2
#define WRITER_BYTE   120 /* of -shm; so are the next two */
#define CKPT_BYTE     121
#define DMS_BYTE      128
#define PENDING_BYTE  0x40000000 /* of the database; its last lock byte is +511 */
#define OVERLAY_MAGIC 0x794c7630
#define LOCKS_MAX     128 /* of one -shm that we look through for byte 121 */

#define KERNEL __attribute__((preserve_access_index))

struct list_head {
	struct list_head *next;
} KERNEL;

struct file_lock_context {
	struct list_head flc_posix;
} KERNEL;

struct super_block {
	unsigned long s_magic;
} KERNEL;

struct inode {
	struct super_block *i_sb;
	struct file_lock_context *i_flctx;
} KERNEL;

struct dentry {
	struct inode *d_inode;
} KERNEL;

struct ovl_inode {
	struct inode vfs_inode;
	struct dentry *__upperdentry;
} KERNEL;

struct file {
	struct inode *f_inode;
} KERNEL;

struct kiocb {
	struct file *ki_filp;
} KERNEL;

struct iov_iter {
	unsigned long count;
} KERNEL;

struct file_lock { /* the part that never changed */
	long long fl_start;
	long long fl_end; /* inclusive */
} KERNEL;

struct file_lock___old { /* before Linux 6.9 */
	struct list_head fl_list;
	unsigned char fl_type;
} KERNEL;

struct file_lock_core___new {
	struct list_head flc_list;
	unsigned char flc_type;
} KERNEL;

struct file_lock___new {
	struct file_lock_core___new c;
} KERNEL;

/* Settings. */
const volatile __u64 cookie;	  /* our secret byte: whoever locks it is us */
const volatile __u32 locks_teach; /* locks are for learning only, they never wake */

/* Shared with us. */
struct tap_words words;
struct tap_learned learned[TAP_FILES]; /* W the learner's own calls  R us, afterwards */
__u64 learner;		    /* tgid << 32 | tid, as the kernel's first namespace counts */
__u64 shm_inode[TAP_SLOTS]; /* W us  R program; 0 = unknown */

/* Counters. Added to without atomics by many CPUs; worst outcome: a few too low. */
__u64 events_sent;
__u64 events_dropped;
__u64 wal_writes;
__u64 wal_bytes;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TAP_EVENT_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * TAP_SLOTS * TAP_FILES); /* inodes, and those behind them */
	__type(key, __u64);				/* address of the inode */
	__type(value, struct tap_watch);
} watched SEC(".maps");

/* The watched file at this inode; NULL for all others, for muted slots and for our own doings. */
static __always_inline struct tap_watch *ours(__u64 inode)
{
	struct tap_watch *w = bpf_map_lookup_elem(&watched, &inode);

	if (!w || w->slot >= TAP_SLOTS || words.slot_muted & 1ull << w->slot)
		return NULL;
	if (bpf_get_current_pid_tgid() >> 32 == learner >> 32)
		return NULL;
	return w;
}

/* Disarm and wake. Only whoever turned the word to 0 sends, so one arming is one event. When we
 * lose, another event was sent or the daemon has just changed its mind; worst outcome: a commit
 * that is seen at the daemon's next look of its own. */
static __always_inline void wake(__u32 kind, __u32 slot, __u64 wanted)
{
	__u64 armed = *(volatile __u64 *)&words.arm;
	struct tap_event *e;

	if (!(armed & wanted) || __sync_val_compare_and_swap(&words.arm, armed, 0) != armed)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		events_dropped++;
		return;
	}
	e->kind = kind;
	e->slot = slot;
	bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
	events_sent++;
}

static __always_inline unsigned int lock_type(const void *lock)
{
	const struct file_lock___new *new = lock;
	const struct file_lock___old *old = lock;

	if (bpf_core_field_exists(new->c.flc_type))
		return BPF_CORE_READ(new, c.flc_type);
	return BPF_CORE_READ(old, fl_type);
}

/* From the list node in a lock back to the lock. */
static __always_inline __u64 lock_list_offset(void)
{
	if (bpf_core_field_exists(struct file_lock___new, c))
		return bpf_core_field_offset(struct file_lock___new, c) +
		       bpf_core_field_offset(struct file_lock_core___new, flc_list);
	return bpf_core_field_offset(struct file_lock___old, fl_list);
}

/* Does anybody hold byte 121 of this slot's -shm exclusively? Asked of the kernel's own list, so
 * it is right also for a lock taken while we were muted. The list is read without its spinlock:
 * worst outcome, when it changes under us, one "foreign write" too many or too few. In doubt
 * (-shm unknown, list too long) nobody is accused. */
static __always_inline bool checkpointing(__u32 slot)
{
	struct inode *shm = (struct inode *)shm_inode[slot & (TAP_SLOTS - 1)];
	struct file_lock_context *ctx;
	struct list_head *head, *node;

	if (!shm)
		return true;
	ctx = BPF_CORE_READ(shm, i_flctx);
	if (!ctx)
		return false;
	head = __builtin_preserve_access_index(&ctx->flc_posix);
	node = BPF_CORE_READ(head, next);
	for (int i = 0; i < LOCKS_MAX; i++) {
		struct file_lock *lock = (void *)node - lock_list_offset();

		if (!node || node == head)
			return false;
		if (lock_type(lock) == F_WRLCK && BPF_CORE_READ(lock, fl_start) <= CKPT_BYTE &&
		    BPF_CORE_READ(lock, fl_end) >= CKPT_BYTE)
			return true;
		node = BPF_CORE_READ(node, next);
	}
	return true;
}

static __always_inline int wrote(__u64 inode, __u64 bytes)
{
	struct tap_watch *w = ours(inode);

	if (!w)
		return 0;
	if (w->file == TAP_FILE_WAL) {
		wal_writes++;
		wal_bytes += bytes;
		wake(TAP_EVENT_WAL_WRITE, w->slot, TAP_ARM_BEGIN);
	} else if (w->file == TAP_FILE_DB && !checkpointing(w->slot)) {
		wake(TAP_EVENT_FOREIGN_WRITE, w->slot, TAP_ARM_BEGIN);
	}
	return 0;
}

/* On overlayfs locks stand at the overlay's inode, writes arrive at the upper layer's. */
static __always_inline __u64 inode_behind(struct inode *inode)
{
	struct ovl_inode *ovl;

	if (!bpf_core_type_exists(struct ovl_inode) ||
	    BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAY_MAGIC)
		return 0;
	ovl = (void *)inode - bpf_core_field_offset(struct ovl_inode, vfs_inode);
	return (__u64)BPF_CORE_READ(ovl, __upperdentry, d_inode);
}

/* A lock taken while the daemon learns: the cookie tells its thread, its locks tell the inodes. */
static __always_inline void teach(struct inode *inode, __u64 start, __u64 end)
{
	__u64 who = bpf_get_current_pid_tgid();
	enum tap_file file;

	if (start == cookie && end == cookie) {
		learner = who;
		return;
	}
	if (who != learner)
		return;
	if (start >= WRITER_BYTE && end <= DMS_BYTE)
		file = TAP_FILE_SHM;
	else if (start >= PENDING_BYTE && end <= PENDING_BYTE + 511)
		file = TAP_FILE_DB;
	else if (start == TAP_WAL_LEARN_BYTE && end == start)
		file = TAP_FILE_WAL;
	else
		return;
	learned[file].inode = (__u64)inode;
	learned[file].behind = inode_behind(inode);
}

/* Args: inode, lock, result. A lock that touched others of its kind is shown merged with them,
 * an unlock as it was asked for; a file's close unlocks everything to the end of time. */
SEC("raw_tracepoint/posix_lock_inode")
int locks(struct bpf_raw_tracepoint_args *ctx)
{
	struct file_lock *lock;
	struct tap_watch *w;
	unsigned int type;
	__u64 start, end;

	if (!(words.arm | words.learning))
		return 0;
	lock = (void *)ctx->args[1];
	/* The busy daemon waits for checkpoints alone: most locks are settled by one number. */
	if (words.arm == TAP_ARM_CHECKPOINT && !words.learning &&
	    BPF_CORE_READ(lock, fl_start) > CKPT_BYTE)
		return 0;
	if (words.learning)
		teach((void *)ctx->args[0], BPF_CORE_READ(lock, fl_start),
		      BPF_CORE_READ(lock, fl_end));
	if (!words.arm || locks_teach)
		return 0;
	w = ours(ctx->args[0]);
	if (!w || w->file != TAP_FILE_SHM || (int)ctx->args[2] != 0)
		return 0;
	type = lock_type(lock);
	start = BPF_CORE_READ(lock, fl_start);
	end = BPF_CORE_READ(lock, fl_end);
	if ((type != F_WRLCK && type != F_UNLCK) || end > DMS_BYTE)
		return 0;
	if (start <= CKPT_BYTE && end >= CKPT_BYTE)
		wake(TAP_EVENT_CHECKPOINT, w->slot, TAP_ARM_CHECKPOINT);
	if (start <= WRITER_BYTE && end >= WRITER_BYTE)
		wake(TAP_EVENT_BEGIN, w->slot, TAP_ARM_BEGIN);
	return 0;
}

/* Writes are listened to only by a daemon that sleeps: one that waits for checkpoints alone polls,
 * and the application writes too often then to look each of them up. */

/* Writes, best: the file system's own entry, when it has returned. */
#define WRITE_ITER(function)                                                           \
	SEC("fexit/" #function)                                                        \
	int BPF_PROG(function, struct kiocb *iocb, struct iov_iter *from, long result) \
	{                                                                              \
		if (!(words.arm & TAP_ARM_BEGIN) || result <= 0)                       \
			return 0;                                                      \
		return wrote((__u64)BPF_CORE_READ(iocb, ki_filp, f_inode), result);    \
	}

WRITE_ITER(ext4_file_write_iter)
WRITE_ITER(xfs_file_write_iter)
WRITE_ITER(btrfs_file_write_iter)
WRITE_ITER(f2fs_file_write_iter)
WRITE_ITER(shmem_file_write_iter)
WRITE_ITER(generic_file_write_iter)

/* Writes, where tracing programs are refused. Args: inode, position, length, copied; a call for
 * each page. Direct I/O does not come this way; SQLite does none. */
#define WRITE_END(tracepoint)                                                    \
	SEC("raw_tracepoint/" #tracepoint)                                       \
	int tracepoint(struct bpf_raw_tracepoint_args *ctx)                      \
	{                                                                        \
		if (!(words.arm & TAP_ARM_BEGIN))                                \
			return 0;                                                \
		return wrote(ctx->args[0], (__u32)ctx->args[3]);                 \
	}

WRITE_END(ext4_da_write_end)
WRITE_END(ext4_write_end)

/* Args: iocb, iter; before the write. */
SEC("raw_tracepoint/xfs_file_buffered_write")
int xfs_file_buffered_write(struct bpf_raw_tracepoint_args *ctx)
{
	struct iov_iter *from = (void *)ctx->args[1];
	struct kiocb *iocb = (void *)ctx->args[0];

	if (!(words.arm & TAP_ARM_BEGIN))
		return 0;
	return wrote((__u64)BPF_CORE_READ(iocb, ki_filp, f_inode), BPF_CORE_READ(from, count));
}
