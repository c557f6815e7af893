/* slots.h - a small record on disk that survives being killed at any moment.
 *
 * A mapped file of 4096 bytes: 64 bytes of head (magic, version, record size, 16 bytes of identity),
 * then two slots of {sequence, record, check}. A write goes to the older slot and its check
 * (XXH3 of sequence and record) last; a read takes the newest slot whose check agrees. */
#ifndef WALWIRE_SLOTS_H
#define WALWIRE_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLOTS_RECORD_MAX 1024

struct slots {
	uint8_t *at;
	size_t record_bytes;
	uint64_t sequence;
	int fd;
	bool fresh; /* no record has been written yet */
};

/* Open or create `path`. `id` is set from the file, or, in a new file, to random bytes unless
 * it is not all zeros: then that is written. 0; -EPROTO: another format; -errno. */
int slots_open(struct slots *s, const char *path, size_t record_bytes, uint8_t id[16]);
void slots_close(struct slots *s);

/* The newest record, or -ENOENT. */
int slots_read(struct slots *s, void *ret_record);
void slots_write(struct slots *s, const void *record);

/* Which boot of the machine this is (/proc/sys/kernel/random/boot_id); zeros where nobody says. What
 * was not synced in another boot may be lost. */
void boot_id(uint64_t ret_boot[2]);

/* Let it reach the disk. 0 or -errno. */
int slots_sync(struct slots *s);

#endif
