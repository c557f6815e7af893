/* tap_event.h - what crosses between the kernel's half of the tap and ours.
 *
 *   kernel -> us   struct tap_event, through a ring buffer; counters and learned inodes in .bss
 *   us -> kernel   struct tap_words in .bss; struct tap_watch in a hash map, by inode address
 *
 * Fixed widths, explicit padding: both sides are compiled from this file. */
#ifndef WALWIRE_TAP_EVENT_H
#define WALWIRE_TAP_EVENT_H

#include <linux/types.h>

#define TAP_SLOTS	64 /* databases: one bit each in a mask */
#define TAP_EVENT_BYTES 65536

/* What wakes. Every event first disarms, so an armed tap costs the application one wakeup.
 * The end of what began before the arming wakes too: such a transaction is else not heard of. */
#define TAP_ARM_BEGIN	   1u /* byte 120 locked exclusively (or unlocked); a write to a watched WAL */
#define TAP_ARM_CHECKPOINT 2u /* byte 121 locked exclusively (or unlocked); writes are not heard */

/* Byte of the -wal that we lock and unlock, to show its inode to the program. SQLite locks no
 * byte of that file; this one spells "walwire" in ASCII. */
#define TAP_WAL_LEARN_BYTE 0x77616c77697265ull

enum tap_file { TAP_FILE_SHM, TAP_FILE_DB, TAP_FILE_WAL, TAP_FILES };

enum tap_event_kind {
	TAP_EVENT_BEGIN,      /* a transaction begins, or one that began before the arming ends */
	TAP_EVENT_CHECKPOINT, /* the same of a checkpoint */
	TAP_EVENT_WAL_WRITE,
	TAP_EVENT_FOREIGN_WRITE, /* to the database file, while nobody held byte 121 */
};

struct tap_event {
	__u32 kind;
	__u32 slot;
};

struct tap_watch {
	__u32 slot;
	__u32 file;
};

/* Read first by every program, before anything else; so it has its cache line to itself. */
struct tap_words {
	__u64 arm;	  /* W us, program (only to 0)  R program; 0 = muted */
	__u64 learning;	  /* W us  R program; locks of `learner` teach */
	__u64 slot_muted; /* W us  R program; slots whose events do not count */
	__u64 padding[5];
} __attribute__((aligned(64)));

/* Inodes as the program saw them; `behind` is the file below an overlayfs inode, else 0. */
struct tap_learned {
	__u64 inode;
	__u64 behind;
};

#endif
