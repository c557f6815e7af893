/* tap.h - the kernel tells us when an application touches a watched database.
 *
 * A tap event is a hint to look, never the truth: a lost one costs a look, not data. A tap that
 * found no BPF it may use works all the same; it only never wakes.
 *
 *   tap_arm()  look at every database once more  sleep on tap_fd()  tap_drain()  stay awake ...
 *
 * Armed, the first event disarms and wakes: at most one wakeup for each tap_arm(), paid by the
 * application. Muted (arm 0), every program returns on one word. What began before the arming
 * wakes by its end, so arming in the middle of a transaction or checkpoint misses nothing.
 *
 * Programs know a file by the address of its inode, which is learned from a lock of our own and
 * stays good while we keep the file open. Slots (0..TAP_SLOTS-1) are the caller's numbers for
 * databases. All calls from one thread, but for two; nothing is allocated after tap_open(), but by
 * tap_attach(). */
#ifndef WALWIRE_TAP_H
#define WALWIRE_TAP_H

#include "bpf/tap_event.h" /* TAP_ARM_BEGIN, TAP_ARM_CHECKPOINT, TAP_SLOTS */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tap;

/* What may be tried. WRITES attaches the lock hook too, since only locks can teach inodes, but it
 * never wakes; so nothing tells of a checkpoint then. */
enum tap_mode { TAP_MODE_AUTO, TAP_MODE_LOCKS, TAP_MODE_WRITES, TAP_MODE_OFF };

#define TAP_LEARNED_SHM (1 << TAP_FILE_SHM)
#define TAP_LEARNED_DB	(1 << TAP_FILE_DB)
#define TAP_LEARNED_WAL (1 << TAP_FILE_WAL)

/* A bit for each slot: what was heard of it. */
struct tap_seen {
	uint64_t begin;		/* a transaction began, or one that began before the arming ended */
	uint64_t checkpoint;	/* the same of a checkpoint */
	uint64_t wal_write;	/* someone whose locks we did not see */
	uint64_t foreign_write; /* to the database file, while nobody held the checkpoint lock */
};

struct tap_counts { /* since tap_open() */
	uint64_t events;
	uint64_t dropped; /* ring buffer full */
	uint64_t missed;  /* programs the kernel did not run, another being at work on that CPU */
	uint64_t wal_writes; /* the application's, while armed for a begin; some go uncounted */
	uint64_t wal_bytes;
};

/* 0 or -ENOMEM. Always a usable tap: where BPF is not used at all, `why` says so in one clause,
 * else it is empty. Takes some 100 ms: every program is tried on its own. */
int tap_open(struct tap **ret_tap, enum tap_mode mode, char *why, size_t why_bytes);
void tap_close(struct tap *t); /* NULL is fine */

/* Take the programs out of the kernel's way and put them back: muted ones still cost the application
 * a little (5-9 % of a small commit). What was learned stays; while they are out nothing wakes and
 * nothing can be learned. 0.3 ms, and 8 ms; the only calls that another thread may make, one at a
 * time. Of a tap that is in, or out, already: no effect. attach: 0 or -errno, then it is out. */
void tap_detach(struct tap *t);
int tap_attach(struct tap *t);

/* "locks: posix_lock_inode; writes: fexit ext4_file_write_iter", "none: naps alone", ... */
const char *tap_describe(const struct tap *t);

/* false: it will never wake, naps alone must do. */
bool tap_wakes(const struct tap *t);

/* Becomes readable when an event waits; -1 if none ever will. Not to be read: tap_drain(). */
int tap_fd(const struct tap *t);

/* TAP_ARM_... or 0 to mute. A full barrier: what the caller reads afterwards is newer than the
 * arming, so whatever it does not see yet will wake it. */
void tap_arm(struct tap *t, unsigned int arm);

/* Events of these slots (a bit each) do not count: the databases that are being polled anyway. */
void tap_mute_slots(struct tap *t, uint64_t slots);

/* Consume what waits; never blocks. *ret is set, not added to. How many events there were; no
 * more than one for each tap_arm() since the last drain. */
unsigned int tap_drain(struct tap *t, struct tap_seen *ret);

/* A few system calls: for status, not for every cycle. */
void tap_count(const struct tap *t, struct tap_counts *ret);

/* Between begin and end, locks of the calling thread teach: one within bytes 120..128 its -shm,
 * one within SQLite's lock bytes from 0x40000000 on the database file. A lock that is refused
 * teaches too. begin: 0; -EAGAIN if the program did not hear us, learn later. end: TAP_LEARNED_...
 * A file learned again replaces the slot's former one. A tap that never wakes learns nothing. */
int tap_learn_begin(struct tap *t, unsigned int slot);
int tap_learn_end(struct tap *t);

/* Learn the -wal, by a read lock of a byte that SQLite does not use. 0 or TAP_LEARNED_WAL,
 * -errno. `wal_fd` is readable. */
int tap_learn_wal(struct tap *t, unsigned int slot, int wal_fd);

/* Before the slot's files are closed. */
void tap_forget(struct tap *t, unsigned int slot);

#endif
